"""The page and the text of a run: the answer first, and only what the run has."""

import io
import re
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from normscope.records import Run
from normscope.report import glossary, terminal
from normscope.report import run as run_report
from normscope.report.charts import cards
from normscope.report.document import Details, Document, Terms, parts
from normscope.report.messages import LANGUAGES, Lang
from tests.report.pages import digits_inspection, made_up_run

WIDTHS = (40, 60, 80, 140)


@pytest.fixture(scope="module")
def run() -> Run:
    return made_up_run(digits_inspection())


def printed(document: Document, lang: Lang, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    terminal.show(document, lang, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def titles(document: Document) -> list[str]:
    return [section.title.en for section in document.sections]


def test_the_answer_is_one_sentence_with_the_numbers_of_the_run(run: Run) -> None:
    answer = run_report.answer(run)
    assert answer is not None
    batch = run.rows[0]
    layers = len(digits_inspection().layers)
    shares = dict(zip(run.histories[0].classes, run.histories[0].passing[-1], strict=True))
    first = min(k for k in shares if shares[k] == max(shares.values()))
    last = max(k for k in shares if shares[k] == min(shares.values()))
    for part in (
        f"in all {layers} layers",
        f"channel 7 of norm2 lets {100 * shares[first]:.0f}% of class {first} pass",
        f"and {100 * shares[last]:.0f}% of class {last}",
        f"the network (batch) classifies {100 * batch.mean:.1f}% of the test samples.",
    ):
        assert part in answer.en
    assert answer.en.count(". ") == 0
    numbers = re.findall(r"\d+(?:\.\d+)?", answer.en)
    assert sorted(re.findall(r"\d+(?:\.\d+)?", answer.zh)) == sorted(numbers)
    measured = run.inspection
    assert measured is not None
    broken = replace(measured, layers=tuple(replace(la, invariance=0.5) for la in measured.layers))
    unkept = run_report.answer(replace(run, inspection=broken))
    assert unkept is not None
    assert "are the same" not in unkept.en  # it claims no more than was measured


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_terminal_leads_with_question_and_answer_and_splits_nothing(
    run: Run, lang: Lang, width: int
) -> None:
    document = run_report.document(run)
    text = printed(document, lang, width)
    answer = run_report.answer(run)
    assert answer is not None
    squeezed = re.sub(r"\s", "", text)
    first = document.title.read(lang) + answer.read(lang)
    assert squeezed.startswith(re.sub(r"\s", "", first))
    assert all(cell_len(line) <= width for line in text.splitlines())
    whole = set(re.split(r"\s+", text))
    for row in run.rows:
        assert row.norm in {word.rstrip("*") for word in whole}
        assert any(f"{100 * row.mean:.1f}%" in word for word in whole)


def test_parts_that_a_run_does_not_have_fall_away(run: Run) -> None:
    whole = titles(run_report.document(run))
    assert whole[0] == "The experiments behind the answer"
    few = replace(made_up_run(None, ("batch", "none"), seeds=1), histories=(), traces=(), sweeps=())
    document = run_report.document(few)
    assert document.picture is None
    assert titles(document) == [t for t in whole if t != whole[0]]
    answer = run_report.answer(few)
    assert answer is not None
    assert "channel" not in answer.en.replace("each channel's gate", "")
    bare = replace(few, members=(), rows=(), complete=False)
    assert run_report.answer(bare) is None
    shown = printed(run_report.document(bare), "en", 80)
    assert "The run was stopped before its end" in shown
    other = made_up_run(None, ("none", "layer"))
    assert run_report.answer(other) is None
    assert run_report.document(other).title.en == "What normalisation did: digits, mlp"


def test_cards_show_what_stays_what_two_numbers_do_and_the_trap(run: Run) -> None:
    assert run.inspection is not None
    kept, alone, trap = cards.kept(run.inspection), cards.alone(run), cards.trap(run)
    assert kept is not None
    assert alone is not None
    assert trap is not None
    flat: dict[str, set[float]] = {}
    for row in kept.spec["data"]["values"]:
        flat.setdefault(row["series"], set()).add(round(row["value"], 6))
    assert {name: len(values) for name, values in flat.items()} == {
        layer.name: 1 for layer in run.inspection.layers
    }
    row = next(r for r in run.rows if r.norm == "affine_only")
    assert alone.value == f"10% → {100 * row.mean:.1f}%"
    points = alone.spec["data"]["values"]
    assert points[0] == {"epoch": 0, "accuracy": row.before}
    assert points[-1]["accuracy"] == pytest.approx(row.mean)
    assert trap.value == "99.7% → 16%"
    cells = {(c["x"], c["y"]): c["share"] for c in trap.spec["data"]["values"]}
    assert len(cells) == 2 * 10 * 10
    assert cells[3, 3] == 1
    assert cells[3, 4] == 0
    blind = {(round(x - 11.5), y): share for (x, y), share in cells.items() if x > 10}
    assert blind[3, 3] == pytest.approx(9 / 54, abs=1e-3)
    assert blind[3, 4] == pytest.approx(5 / 54, abs=1e-3)
    assert cards.alone(made_up_run(None, ("batch",))) is None
    assert cards.trap(made_up_run(None, ("batch",))) is None
    # without counted predictions, as of many classes, the trap is still told
    uncounted = replace(
        run, members=tuple(replace(m, confusion_without_label=()) for m in run.members)
    )
    assert cards.trap(uncounted) is None
    assert "The trap: per_class scores" in printed(run_report.document(uncounted), "en", 80)


def test_the_head_is_named_where_it_learns_too(run: Run) -> None:
    free = replace(run, config=replace(run.config, freeze_head=False))
    chart = cards.alone(free)
    assert chart is not None
    assert chart.note.en.startswith("Of 13,258 numbers the 384 of γ, β and the output layer learn")
    assert [run_report.drawing(h, run)["learns"] for h in run.histories] == ["all", "some"]
    assert [run_report.drawing(h, free)["learns"] for h in free.histories] == ["all", "head"]


def test_lanes_are_in_the_order_of_their_pass_rates(run: Run) -> None:
    history = run.histories[0]
    drawing = run_report.drawing(history, run)
    last = drawing["passing"][-1]
    assert last == sorted(last, reverse=True)
    for sample in (0, 57, 399):
        assert drawing["classes"][drawing["label"][sample]] == run.classes[history.label[sample]]


def test_every_symbol_is_explained(run: Run) -> None:
    document = run_report.document(run)
    (terms,) = [block for block in parts(document) if isinstance(block, Terms)]
    assert {t.symbol for t in terms.terms} == glossary.SYMBOLS.keys()
    better = {t.symbol: t.better for t in terms.terms}
    assert (better["J"], better["κ"], better["γ"]) == ("up", "down", "")


def test_gained_layers_are_not_said_to_lose() -> None:
    for lang in LANGUAGES:
        for block in parts(run_report.document(made_up_run(digits_inspection()))):
            if isinstance(block, Details) and not isinstance(block.title, str):
                assert "loses most" not in block.title.read(lang)
                assert "损失最大" not in block.title.read(lang)
