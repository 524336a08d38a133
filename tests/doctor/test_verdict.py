"""Which finding comes first, whose fault it is, and how a finding reads in one line."""

from typing import Any

import pytest

from normscope.doctor.checks import CHECKS
from normscope.doctor.verdict import ranked, verdict
from normscope.doctor.watch import line
from normscope.records import Cause, Finding


def found(code: str, severity: Any = "error", **facts: str) -> Finding:
    return Finding(
        code=code, severity=severity, layer="2", measured=1.25, threshold=0.5, source="", facts=facts
    )  # fmt: skip


def cause(code: str, closes: float, advantage: float = 3.0, name: str = "one") -> Cause:
    return Cause(name=name, code=code, closes=closes, layers=("2",), advantage=advantage)


def order(findings: list[Finding], *causes: Cause) -> list[str]:
    return [finding.code for finding in ranked(findings, causes)]


def test_of_two_causes_of_a_kind_the_one_that_closes_more_comes_first() -> None:
    first, second = "NS002", "NS006"
    assert CHECKS[first].specific == CHECKS[second].specific
    both = [found(first), found(second)]
    assert order(both, cause(first, 0.56), cause(second, 0.62)) == [second, first]
    assert order(both, cause(first, 0.62), cause(second, 0.56)) == [first, second]
    assert order(both, cause(first, 0.05), cause(second, 0.15)) == [first, second], (
        "both too little"
    )
    assert order(both, cause(first, 0.3), cause(second, 0.9, advantage=-2.1)) == [first, second]
    assert order(both, cause(second, 0.1), cause(second, 0.4)) == [second, first], "the best counts"
    assert order(both, cause(second, 0.4), cause(second, 0.1)) == [second, first]
    for advantage in (0.0, -2.0, float("nan")):
        assert order(both, cause(second, 0.5, advantage)) == [second, first], "it does no harm"
    assert order(both, cause(second, 0.2)) == [second, first], "from a fifth on it explains"
    assert order(both, cause(first, 0.561), cause(second, 0.564)) == [first, second], "alike"
    assert order(both, cause(first, 1.0), cause(second, 1.3)) == [first, second], "no more than all"


def test_without_causes_the_gravest_of_a_code_decides_and_then_the_code() -> None:
    mixed = [found("NS006", "info"), found("NS002", "warning"), found("NS006", "error")]
    assert order(mixed) == ["NS006", "NS006", "NS002"]
    mixed = [found("NS006", "error"), found("NS002", "warning"), found("NS006", "info")]
    assert order(mixed) == ["NS006", "NS006", "NS002"]
    notes = [found("NS001", "error"), found("NS006", "info"), found("NS009", "warning")]
    assert order(notes) == ["NS001", "NS009", "NS006"]
    assert order([found("NS001", "warning"), found("NS009")]) == ["NS009", "NS001"]
    assert order([found("NS009"), found("NS001")]) == ["NS001", "NS009"]
    kinds = [found("NS004"), found("NS003", "warning"), found("NS002", "warning")]
    assert order(kinds) == ["NS002", "NS003", "NS004"], "the particular, the general, a symptom"


def test_a_general_cause_comes_before_a_particular_one_where_it_closes_far_more() -> None:
    general, particular = "NS003", "NS002"
    assert CHECKS[general].specific < CHECKS[particular].specific
    both = [found(general), found(particular)]
    assert order(both, cause(general, 0.74), cause(particular, 0.6)) == [particular, general]
    assert order(both, cause(general, 0.76), cause(particular, 0.6)) == [general, particular]
    assert order(both, cause(general, 0.65), cause(particular, 0.5)) == [general, particular]
    assert order(both, cause(general, 0.7)) == [general, particular]
    three = [found(general), found(particular), found("NS006")]
    of_two = [cause(general, 0.7), cause(particular, 0.6), cause("NS006", 0.3)]
    assert order(three, *of_two) == [particular, "NS006", general], "the best particular one counts"
    generals = [found(general), found("NS022")]
    assert order(generals, cause("NS022", 0.5)) == ["NS022", general], "nothing covers it"


def test_notes_are_last_and_data_that_cannot_judge_come_before_what_they_would_judge() -> None:
    noted = [found("NS002", "info"), found("NS006", "warning")]
    assert order(noted, cause("NS002", 0.9)) == ["NS006", "NS002"]
    unfit = [found("NS003", "warning"), found("NS029", "info"), found("NS001")]
    assert order(unfit) == ["NS001", "NS029", "NS003"], "a layer in train() is a fault by itself"
    assert order(unfit[:2], cause("NS003", 0.9)) == ["NS029", "NS003"]
    assert CHECKS["NS005"].needs == "model"
    assert CHECKS["NS002"].needs != "model"
    assert order([found("NS005", "warning"), found("NS029", "info")]) == ["NS029", "NS005"]
    assert order([found("NS002"), found("NS029", "info")]) == ["NS029", "NS002"]
    assert order([found("NS005", "warning"), found("NS002")]) == ["NS002", "NS005"]


def test_the_verdict_tells_what_its_own_cause_closes() -> None:
    causes = [cause("NS003", 0.9), cause("NS002", 0.3), cause("NS002", 0.4, name="other")]
    said = verdict([found("NS002"), found("NS003")], causes)
    assert (said.kind, said.code, said.closes, said.warns) == ("statistics", "NS002", 0.4, "")
    alone = verdict([found("NS009")], causes)
    assert alone.closes != alone.closes, "nothing was measured for it"


@pytest.mark.parametrize(
    ("codes", "kind", "warns"),
    [
        (["NS007"], "data", "retrain"), (["NS008"], "data", "retrain"),
        (["NS020", "NS029"], "data", "retrain"), (["NS033"], "data", "recalibrate"),
        (["NS022"], "data", ""),
        (["NS029"], "data", "recalibrate"),
        (["NS001", "NS029"], "statistics", "recalibrate"),
        (["NS003"], "statistics", ""),
    ],
)  # fmt: skip
def test_the_verdict_names_what_would_do_harm(codes: list[str], kind: str, warns: str) -> None:
    causes = [cause(codes[0], 0.25), cause("NS013", 0.75)]
    said = verdict([found(code) for code in codes], causes)
    assert (said.kind, said.warns, said.code, said.closes) == (kind, warns, codes[0], 0.25)
    assert verdict([found("NS029", "info")], []).kind == "data"


def test_the_correction_of_cold_statistics_is_warned_of_where_it_was_worse() -> None:
    both = [found("NS003"), found("NS002")]
    assert verdict(both, [cause("NS002", 0.5, advantage=-2.5)]).warns == "cold"
    assert verdict(both, [cause("NS002", 0.5, advantage=-2.0)]).warns == ""
    assert verdict(both, [cause("NS003", 0.5, advantage=-2.5)]).warns == ""
    for name in ("averaged", "stale"):
        assert verdict(both, [cause("NS015", -0.1, advantage=0.0, name=name)]).warns == ""
    assert verdict(both, [cause("NS002", 0.0, advantage=0.0, name="cold")]).warns == ""
    assert verdict(both, [cause("NS002", -0.1, advantage=0.0, name="cold")]).warns == "cold"
    assert verdict(both, [cause("NS002", 0.1, advantage=0.0, name="cold")]).warns == ""


def test_no_findings_and_notes_alone_are_nothing_to_mend() -> None:
    assert verdict([], []).kind == "nothing"
    assert verdict([found("NS012", "info")], []).kind == "nothing"
    assert verdict([found("NS012", "warning")], []).kind == "statistics"


def test_a_finding_in_one_line_has_its_facts_in_brackets_where_there_are_some() -> None:
    assert line(found("NS002")) == "NS002 error in 2: 1.25"
    told = line(found("NS002", tracked="3", kind="cold", momentum="0.1"))
    assert told == "NS002 error in 2: 1.25 (tracked 3, momentum 0.1)"
