"""The lesson as text: the right sentence, in both languages, in every width."""

import io
import string
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from normscope.lesson import lesson
from normscope.records import Lesson, Stage
from normscope.report import format, messages, story, terminal
from normscope.report.lesson import document
from normscope.report.messages import LANGUAGES, Lang, catalogue, say
from normscope.report.terminal import wrapped


@pytest.fixture(scope="module")
def worked() -> Lesson:
    return lesson()


def printed(record: Lesson, lang: Lang, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    terminal.show(document(record), lang, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def sentence(record: Lesson, name: str, lang: Lang = "en") -> str:
    return story.sentence(record, stage(record, name)).read(lang)


def stage(record: Lesson, name: str) -> Stage:
    return story.by_name(record, name)


# --- the whole text ---------------------------------------------------------------------------


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_no_line_is_wider_than_the_terminal(worked: Lesson, lang: Lang, width: int) -> None:
    for line in printed(worked, lang, width).splitlines():
        assert cell_len(line.rstrip()) <= width, line
        assert "{" not in line


def test_the_text_shows_the_numbers_of_the_worked_example(worked: Lesson) -> None:
    text = printed(worked, "en", 100)
    for row in (
        "-1.342, -0.4472, 0.4472, 1.342",
        "3.292, 7.764, 12.24, 16.71     10        25",
        "0.3167, 2.106, 3.894, 5.683     3         4",
        "threshold accuracy 4/8 (50%)",
        "threshold accuracy 7/8 (87.5%)",
        "within 1% of the input's in 20 of 20 starts",
        "none at inference",
        "overlap between 3.292 and 5.683",
        "0.969 (0.96",
    ):
        assert row in text, row
    assert text.index("Batch norm does not make") < text.index("1. Input"), "verdict first"
    assert all(f"\n{part}. " in text[text.index("So how can") :] for part in range(1, 7))


def test_chinese_is_chinese(worked: Lesson) -> None:
    text = printed(worked, "zh", 80)
    for term in ("批量归一化", "标准化", "缩放", "平移", "表达能力", "阈值", "后验概率"):
        assert term in text, term
    for word in ("class", "threshold", "batch norm", "variance"):
        assert word not in text.lower(), word


def test_a_line_of_values_shows_where_the_classes_are(worked: Lesson) -> None:
    lines = printed(worked, "en", 80).splitlines()
    line = lines[next(i for i, text in enumerate(lines) if text.startswith("1. Input")) + 1]
    assert line.startswith("2 ")
    assert line.endswith(" 56")
    assert [c for c in line[2:-3] if c != "-"] == list("2222|1111")
    standardised = next(i for i, text in enumerate(lines) if text.startswith("5. Each"))
    assert lines[standardised + 1].count("*") == 4


def test_many_classes_and_values_are_cut_short() -> None:
    record = lesson(np.random.default_rng(0).normal(size=(40, 15)).tolist(), None, None, seeds=2)
    text = printed(record, "en", 80)
    assert "... and 28 more classes" in text
    assert "39 thresholds" in text
    assert max(map(cell_len, text.splitlines())) <= 80


def test_digits_show_that_values_differ() -> None:
    record = lesson([[1000.1, 1000.2], [1000.4, 1000.5]], None, None, seeds=1)
    assert "1000.1, 1000.2" in printed(record, "en", 80)


# --- the sentence that the numbers call for ---------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "gamma", "beta", "name", "said"),
    [
        ([[1, 2], [8, 9]], None, None, "input", "The ranges do not overlap: one threshold"),
        ([[1, 3], [2, 4]], None, None, "input", "Classes 1 and 2 overlap between 2 and 3"),
        ([[1, 3], [3, 4]], None, None, "input", "Classes 1 and 2 overlap at 3, so"),
        ([[1, 3], [6, 9], [2, 4]], None, None, "input", "Classes 1 and 3 overlap between 2 and 3"),
        ([[1, 3], [6, 9], [4, 5]], None, None, "input", "2 thresholds can classify 6/6"),
        ([[1, 2], [8, 9]], None, None, "standardised_per_class", "same list of numbers"),
        ([[1, 2, 3], [1, 2, 9]], None, None, "standardised_per_class", "different shapes"),
        ([[1, 2], [8, 9]], None, None, "scaled_shifted", "change nothing: still 2/4"),
        ([[1, 2], [8, 9]], (1, 1), (0, 9), "scaled_shifted", "can classify 4/4 instead of 2/4"),
        ([[1, 2], [8, 9]], (1, 1), (0, 1), "scaled_shifted", "not wholly: classes 1 and 2 still"),
        ([[1, 2], [8, 9]], (3, 3), (1, 1), "scaled_shifted", "bring nothing (2/4 before, 2/4"),
        ([[1, 2], [8, 9]], (5, 1), (1, 1), "joint_scaled_shifted", "still 4/4, still η² 0.98"),
        ([[1, 2], [8, 9]], (0, 1), (1, 1), "joint_scaled_shifted", "come out as β"),
        ([[1, 2], [8, 9]], None, None, "inferred", "picks the right class for 4/4"),
        ([[1, 2, 3, 4], [3, 4, 5, 6]], None, None, "inferred", "right class for only 6/8"),
        ([[1, 2], [8, 9]], None, None, "activated", "class 1: 0/2, class 2: 2/2"),
        ([[1, 4], [0, 5]], None, None, "activated", "same share of each class passes"),
    ],
)
def test_the_sentence_follows_the_numbers(
    classes: list[list[float]],
    gamma: tuple[float, ...] | None,
    beta: tuple[float, ...] | None,
    name: str,
    said: str,
) -> None:
    assert said in sentence(lesson(classes, gamma, beta, seeds=2), name)


def test_starts_that_have_not_arrived_are_not_called_arrived(worked: Lesson) -> None:
    short = lesson(steps=12)
    for name, arrived in (("classification", "to 100%"), ("distribution", "within 1%")):
        assert "20 of 20 random starts" in sentence(worked, f"learned_{name}")
        assert "the others need more steps" in sentence(short, f"learned_{name}")
        assert arrived in sentence(worked, f"learned_{name}")
    right = sum(path.accuracy[-1] == 1 for path in short.recoveries[1].learning)
    assert 0 < right < 20
    assert f"takes {right} of 20 random starts" in sentence(short, "learned_classification")
    assert "in 0 of 20 random starts within 12 steps" in sentence(short, "learned_distribution")


def test_a_gate_that_fails_is_not_called_right() -> None:
    record = lesson([[1, 2, 8, 9], [4, 4.5, 5, 5.5]], None, None, seeds=3)
    learned = stage(record, "learned_joint")
    assert learned.facts["right"] == 0
    assert "in 0 of 3 random starts" in sentence(record, "learned_joint")
    assert story.fraction(learned.facts["head_accuracy"], learned) in sentence(
        record, "learned_joint"
    )


def test_the_trap_counts_the_readers(worked: Lesson) -> None:
    facts = stage(worked, "unlabelled").facts
    assert f"{facts['readers_right']:.0f} still classify every value" in sentence(
        worked, "unlabelled"
    )
    assert f"{facts['readers_right']:.0f} of 20 trained readers" in story.answer(worked)[3].en


def test_the_answer_says_so_where_there_is_no_signal_to_lose(worked: Lesson) -> None:
    assert "leaves 99.2%, a batch of one class 0%" in story.answer(worked)[5].en
    assert "no class signal" in story.answer(replace(worked, composition=()))[5].en
    assert "no class signal" in printed(replace(worked, composition=()), "en", 80)


def test_both_languages_say_the_same_numbers() -> None:
    """Every message of the lesson has both languages, with the same placeholders."""

    def placeholders(text: str) -> set[str]:
        return {name for _, name, *_ in string.Formatter().parse(text) if name}

    messages = {key: m for key, m in catalogue().items() if key.startswith("lesson.")}
    assert messages
    for key, text in messages.items():
        assert set(text) == set(LANGUAGES), key
        assert placeholders(text["en"]) == placeholders(text["zh"]), key


# --- numbers and lines ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0, "100%"), (0.5, "50%"), (0.875, "87.5%"), (0.99999, ">99.9%"), (-1e-5, "0%")],
)
def test_per_cent_is_100_only_where_it_is_all(value: float, shown: str) -> None:
    assert format.percent(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (12.23607, "12.24"),
        (0.0, "0"),
        (-0.0, "0"),
        (12345.6, "12346"),
        (1e-17, "0"),
        (3e9, "3e+09"),
    ],
)
def test_numbers_have_four_digits(value: float, shown: str) -> None:
    assert format.number(value, zero=1e-12) == shown


@given(st.text("ab，。（）“”类别 12", max_size=60), st.integers(6, 30))
def test_wrapping_loses_no_character(text: str, width: int) -> None:
    lines = list(wrapped(text, width))
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_wrapping_breaks_chinese_between_characters_but_not_before_a_comma() -> None:
    lines = list(wrapped("各个类别的取值范围，互不重叠（类别 1）。", 12))
    assert all(cell_len(line) <= 14 for line in lines)
    assert all(line[0] not in "，。）" for line in lines)
    assert all(line[-1] != "（" for line in lines)
    full = list(wrapped("各个类别的取值范围互不重叠", 12))
    assert [len(line) for line in full] == [6, 6, 1], "Chinese fills its lines"


COUNTED = {
    "batches": "batch", "channels": "channel", "checks": "check", "forwards": "forward",
    "gates": "gate", "images": "image", "layers": "layer", "networks": "network",
    "norms": "norm", "samples": "sample", "seeds": "seed", "steps": "step", "values": "value",
}  # fmt: skip


def test_one_thing_is_written_in_the_singular(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        f"{many}{verb}": {"en": f"In all {{n}} {many}{verb} of {{of}} {many}.", "zh": "{n} {of}"}
        for many in COUNTED
        for verb in ("", " are", " have", " were", " aren't")
    }
    monkeypatch.setattr(messages, "catalogue", lambda: texts)
    verbs = {"": "", " are": " is", " have": " has", " were": " was", " aren't": " aren't"}
    for many, one in COUNTED.items():
        for verb, single in verbs.items():
            key = f"{many}{verb}"
            assert say("en", key, n=2, of=1) == f"In all 2 {many}{verb} of 1 {one}."
            assert say("zh", key, n=1, of=1) == "1 1"
            if verb != " aren't":
                assert say("en", key, n=1, of=0) == f"In all 1 {one}{single} of 0 {many}."
            for other in ("11", "1,001", "0.1", "x1"):  # another number, or none
                assert (
                    say("en", key, n=other, of="21") == f"In all {other} {many}{verb} of 21 {many}."
                )
