"""Documents: what records make, and what terminals, pages and notebooks show of them."""

import io
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

import pytest
from rich.cells import cell_len
from rich.console import Console

from normscope.records import Layer
from normscope.report import document_of, html, inspection, measures, terminal
from normscope.report.bilingual import Text, read
from normscope.report.document import (
    Block,
    Cell,
    Document,
    Finding,
    Interactive,
    Listing,
    Only,
    Paragraph,
    Section,
    Table,
    for_medium,
    table,
)
from normscope.report.messages import LANGUAGES, Lang, catalogue
from tests.report.pages import (
    compared,
    converted,
    digits_inspection,
    documents,
    faulty,
    made_up_bench,
)

# a word or number as a reader sees it: what stands between spaces, Chinese characters one by one
WORD = re.compile(r"[\u2e80-\u9fff\uff00-\uffef]|[^\s\u2e80-\u9fff\uff00-\uffef]+")


@pytest.fixture(scope="module")
def shown() -> dict[str, Document]:
    return documents()


def printed(document: Document, lang: Lang, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    terminal.show(document, lang, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def texts(document: Document, lang: Lang) -> Iterator[tuple[str, bool]]:
    """Every text of a document that a terminal shows, and whether it is prose."""

    def inside(blocks: tuple[Block, ...]) -> Iterator[tuple[str | Text, bool]]:
        for block in for_medium(blocks, "terminal"):
            if isinstance(block, Paragraph):
                yield block.text, True
            elif isinstance(block, Finding):
                yield from ((words, True) for words in (block.headline or "", *block.details))
            elif isinstance(block, Listing):
                yield from ((item, True) for item in block.items)
            elif isinstance(block, Table):
                yield from ((head, False) for head in block.head)
                cells = (cell for row in block.rows for cell in row)
                yield from ((cell.text, cell.style == "text") for cell in cells)
            elif isinstance(block, Section):
                yield from inside(block.blocks)

    for words, prose in inside((*document.opening, *document.sections)):
        yield read(words, lang), prose


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_a_terminal_never_splits_a_word_or_a_number(
    shown: dict[str, Document], width: int, lang: Lang
) -> None:
    for name, document in shown.items():
        text = printed(document, lang, width)
        lines = text.splitlines()
        words = {word for line in lines for cut in (WORD.findall, str.split) for word in cut(line)}
        longest = 0
        for said, prose in texts(document, lang):
            for word in WORD.findall(said) if prose else said.split():
                # a head in front of a sentence ends in a colon, a remark is marked by a star
                assert {word, word + ":", word + "*"} & words, (name, word)
                longest = max(longest, cell_len(word))
        for line in lines:
            assert cell_len(line.rstrip()) <= max(width, longest + 2), (name, line)


def words(part: object) -> Iterator[str | Text]:
    """Everything that a reader sees of a part of a document, on a page too."""
    if isinstance(part, (str, Text)):
        yield part
    elif isinstance(part, tuple):
        for item in part:
            yield from words(item)
    elif is_dataclass(part) and not isinstance(part, Interactive):
        for field in fields(part):
            if field.name not in ("style", "styles", "nav", "id", "link", "spec", "data"):
                yield from words(getattr(part, field.name))


def test_no_sentence_is_left_in_english(shown: dict[str, Document]) -> None:
    texts_of_records = {"it normalises within each sample in training"}
    for name, document in shown.items():
        said = {read(word, "zh") for word in words(document)}
        assert len(said) > 1
        english = {text for text in said if re.search("[a-z]{3,} [a-z]{2,}", text)}
        left = {text for text in english if not re.search("[\u4e00-\u9fff]", text)}
        assert left <= texts_of_records, name


def a_table() -> Table:
    return table(Text("t", "t"), ["", "b", "c"], [["a name in words", "1.25 (1.20 – 1.30)", "0.5"]])


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (40, ["a name in words 1.25 (1.20 – 1.30) 0.5"]),
        (39, ["▸ a name in words", "b 1.25 (1.20 – 1.30) c 0.5"]),
        (27, ["▸ a name in words", "b 1.25 (1.20 – 1.30)", "c 0.5"]),
    ],
)
def test_a_table_that_is_too_wide_is_folded(width: int, expected: list[str]) -> None:
    document = Document(Text("d", "d"), (Section(Text("t", "t"), (a_table(),)),))
    lines = [" ".join(line.split()) for line in printed(document, "en", width).splitlines()]
    assert [line for line in lines if line][-len(expected) :] == expected


def test_sentences_in_a_table_break_before_it_is_folded() -> None:
    rows = (
        (Cell("relu", "name"), Cell("0.5"), Cell("a sentence that may break anywhere", "text")),
    )
    found = Table(Text("t", "t"), ["layer", "value", "why"], rows)
    document = Document(Text("d", "d"), (Section(Text("t", "t"), (found,)),))
    assert [line.rstrip() for line in printed(document, "en", 40).splitlines() if line][2:] == [
        "relu     0.5  a sentence that may break",
        "              anywhere",
    ]
    assert "why: a sentence that" in printed(document, "en", 30)


def test_each_medium_shows_its_own_part() -> None:
    blocks = (
        Only("terminal", (Paragraph("for the terminal"),)),
        Only("page", (Paragraph("for the page"),)),
    )
    document = Document(Text("d", "d"), (Section(Text("s", "s"), blocks),))
    assert "terminal" in printed(document, "en", 80)
    assert "page" not in printed(document, "en", 80)
    for text in (html.page(document, "en"), html.fragment(document, "en")):
        assert "for the page" in text
        assert "for the terminal" not in text


def test_a_new_measure_is_one_entry_and_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = measures.Measure[Layer](
        lambda layer: float(max(layer.gamma)), lambda value: f"{value:.5f}"
    )
    monkeypatch.setitem(measures.GATES, "largest", largest)
    monkeypatch.setitem(catalogue(), "page.rank.largest", {"en": "largest γ", "zh": "最大的 γ"})
    record = digits_inspection()
    document = inspection.document(record)
    shown = (printed(document, "en", 140), html.page(document, "en"), html.fragment(document, "en"))
    for text in shown:
        assert "largest γ" in text
        for layer in record.layers:
            assert f"{max(layer.gamma):.5f}" in text


def test_every_record_that_has_a_document_finds_it() -> None:
    found, repaired = faulty()
    records = (found, repaired, digits_inspection(), compared(), made_up_bench(), converted())
    for record in records:
        assert document_of(record).title.en
    assert document_of(found, repaired).title != document_of(found).title
