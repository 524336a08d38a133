"""What is told while training, once each, from which severity on, and what fails a test."""

from typing import Any

import pytest
import torch
from torch import nn

from normscope.doctor import Watch, assert_healthy
from normscope.doctor.watch import line
from normscope.records import Finding


def model() -> Any:
    found: Any = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    for norm in found[1:]:
        norm.num_batches_tracked.fill_(1000)
        norm.running_mean.fill_(1)
    return found


def told(net: nn.Module, **options: Any) -> list[tuple[str, str, str]]:
    heard: list[Finding] = []
    watch = Watch(net, heard.append, **options)
    watch(), watch()
    return [(f.code, f.severity, f.layer) for f in heard]


def test_findings_are_told_from_a_severity_on_and_once_for_each_layer() -> None:
    net = model()
    for norm in net[1:]:
        norm.running_var[0] = -1
    net[1].momentum = 0.9
    errors = [("NS009", "error", "1"), ("NS009", "error", "2")]
    warning, notes = ("NS005", "warning", "1"), {"NS012", "NS025"}
    assert told(net, least="error") == errors
    assert sorted(told(net)) == sorted([*errors, warning]), "warnings and errors unless told"
    assert {code for code, severity, _ in told(net, least="info") if severity == "info"} == notes
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    assert "NS016" in {code for code, _, _ in told(net, least="info", optimizer=optimizer)}
    later = Watch(net, least="error")
    with pytest.warns(UserWarning, match="NS009") as warned:
        record = later()
    texts = [str(warning.message) for warning in warned]
    assert texts == [f"normscope: NS009 error in {n}: 0.25 (count 1, of 4)" for n in "12"]
    assert {"NS005", "NS009", "NS012", "NS025"} <= set(record.codes), "a call returns all"


@pytest.mark.parametrize(
    ("fail_on", "fails"), [("error", False), ("warning", True), ("info", True)]
)
def test_what_fails_is_what_is_grave_enough(fail_on: Any, fails: bool) -> None:
    net = model()
    net[1].momentum = 0.9
    if not fails:
        assert "NS005" in assert_healthy(net, fail_on=fail_on).codes
        return
    with pytest.raises(AssertionError) as problem:
        assert_healthy(net, fail_on=fail_on)
    first, *lines = str(problem.value).splitlines()
    assert first == "the model is not healthy:"
    assert any(text.startswith("NS005 warning in 1: 0.9") for text in lines)
    assert any(text.startswith("NS012 info in the model: 1") for text in lines) is (
        fail_on == "info"
    )


def test_errors_fail_unless_another_severity_is_given() -> None:
    net = model()
    net[1].momentum = 0.9
    assert_healthy(net)
    net[1].running_var[0] = -1
    with pytest.raises(AssertionError, match="NS009 error in 1"):
        assert_healthy(net)
    assert assert_healthy(net, select=["NS005"]).codes == ("NS005",), "options go to diagnose"


def test_a_line_tells_all_facts_but_the_kind() -> None:
    def of(**facts: str) -> str:
        return line(Finding(code="NS001", severity="error", layer="", measured=0.123456,
                            threshold=0, source="", facts=facts))  # fmt: skip

    assert of() == "NS001 error in the model: 0.123"
    assert of(kind="x") == "NS001 error in the model: 0.123"
    assert of(a="1", kind="x", z="2") == "NS001 error in the model: 0.123 (a 1, z 2)"
