"""Documents: what records make, and what terminals, pages and notebooks show of them."""

import io
import re
from collections.abc import Iterator

import pytest
from rich.cells import cell_len
from rich.console import Console

from normscope.records import Change, Comparison, Converted, Left
from normscope.report import conversion, html, terminal
from normscope.report.bilingual import Text, read
from normscope.report.document import (
    Block,
    Cell,
    Document,
    Finding,
    Listing,
    Only,
    Paragraph,
    Section,
    Table,
    for_medium,
    table,
)
from normscope.report.messages import LANGUAGES, Lang

WIDTHS = (40, 60, 80, 140)
# a word or number as a reader sees it: what stands between spaces, Chinese characters one by one
WORD = re.compile(r"[\u2e80-\u9fff\uff00-\uffef]|[^\s\u2e80-\u9fff\uff00-\uffef]+")


def converted() -> Converted:
    return Converted(
        model="net.py:make",
        to="batch",
        changed=(Change("features.denseblock3.norm1", "BatchNorm2d", "BatchNorm2d", "always"),),
        kept=(Left("4", "InstanceNorm2d", "it normalises within each sample in training"),),
        refused=(),
        comparisons=(Comparison("outputs", "eval", 3.3e-16, 1e-9),),
    )


DOCUMENTS = {"conversion": lambda: conversion.document(converted())}


def printed(document: Document, lang: Lang, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    terminal.show(document, lang, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def said(document: Document, lang: Lang) -> Iterator[str]:
    """Every text of a document that a terminal shows."""

    def inside(blocks: tuple[Block, ...]) -> Iterator[str | Text]:
        for block in for_medium(blocks, "terminal"):
            if isinstance(block, Paragraph):
                yield block.text
            elif isinstance(block, Finding):
                yield from (block.headline or "", *block.details)
            elif isinstance(block, Listing):
                yield from block.items
            elif isinstance(block, Table):
                yield from block.head
                yield from (cell.text for row in block.rows for cell in row)
            elif isinstance(block, Section):
                yield from inside(block.blocks)

    for words in inside(document.sections):
        yield read(words, lang)


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_terminal_never_splits_a_word_or_a_number(name: str, lang: Lang) -> None:
    document = DOCUMENTS[name]()
    for width in WIDTHS:
        text = printed(document, lang, width)
        shown = {word for line in text.splitlines() for word in WORD.findall(line)}
        longest = 0
        for words in said(document, lang):
            for word in WORD.findall(words):
                # a head in front of a sentence ends in a colon, a remark is marked by stars
                assert {word, word + ":", word + "*", word + "**"} & shown, (width, word)
                longest = max(longest, cell_len(word))
        for line in text.splitlines():
            assert cell_len(line.rstrip()) <= max(width, longest + 2), (width, line)


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
