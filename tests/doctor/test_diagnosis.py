"""What is asked, in which order, what becomes of the answers, and how causes are measured."""

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from normscope import InputError, ModelError
from normscope.doctor import diagnose
from normscope.doctor.checks import CHECKS
from normscope.doctor.checks.base import Skip
from normscope.doctor.diagnosis import _allowed, _asked, _causes, _checks, _gap
from normscope.doctor.evidence import Composition
from normscope.probe.compare import Quality
from normscope.probe.load import write_weights
from normscope.records import Finding
from tests.doctor.checks.cases import case, layer


def finding(code: str, where: str = "a", repair: str = "recalibrate", **facts: str) -> Finding:
    return Finding(
        code=code, severity="error", layer=where, measured=1, threshold=0, source="", facts=facts,
        repair=repair,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("of", "keep", "expected"),
    [
        (finding("NS003"), True, ("info", "")), (finding("NS013"), True, ("warning", "")),
        (finding("NS015", kind="stale"), True, ("warning", "")),
        (finding("NS003"), False, ("error", "recalibrate")),
        (finding("NS002", kind="never"), True, ("error", "recalibrate")),
        (finding("NS009", repair="repair_channels"), True, ("error", "repair_channels")),
    ],
)  # fmt: skip
def test_no_error_and_no_repair_where_new_statistics_would_do_harm(
    of: Finding, keep: bool, expected: tuple[str, str]
) -> None:
    allowed = _allowed(case(layer(), keep=keep), of)
    assert (allowed.severity, allowed.repair) == expected
    assert (allowed.code, allowed.layer, allowed.facts) == (of.code, of.layer, of.facts)


def check(found: Any = (), missing: str | None = None, fixed: Any = None) -> Any:
    def find(of: Any) -> Any:
        if isinstance(found, Exception):
            raise found
        yield from found

    return SimpleNamespace(
        missing=lambda of: missing, find=find, fixed=lambda of, names: fixed(names)
    )


def test_every_check_is_asked_once_and_told_before() -> None:
    heard: list[Any] = []
    two = [finding("NS013"), finding("NS013", "b")]
    checks = {
        "NS003": check(Skip("why.not")), "NS013": check(two), "NS001": check(two, missing="no.model"),
        "NS009": check(),
    }  # fmt: skip
    findings, skipped, passed = _asked(
        case(layer(), keep=True), checks, lambda *step: heard.append(step)
    )
    assert [(f.layer, f.severity, f.repair) for f in findings] == [
        ("a", "warning", ""), ("b", "warning", ""),
    ]  # fmt: skip
    assert [(s.code, s.reason) for s in skipped] == [("NS003", "why.not"), ("NS001", "no.model")]
    assert passed == ["NS009"]
    assert heard == [(i, 4, code) for i, code in enumerate(checks)]


def attributed(**more: Any) -> Any:
    """An attribution that closes what it is given as answers."""
    facts = {
        "states": {"a": 1, "b": 2}, "closes": lambda answers: answers, "of_batches": 0.5,
        "advantage": lambda answers: 10 * answers, "answers": lambda override: override,
        "parts": lambda: {"stale_mean": 0.2, "unbiased": -0.1},
    }  # fmt: skip
    return SimpleNamespace(**{**facts, **more})


def test_causes_are_ordered_by_what_closes_when_each_alone_is_fixed() -> None:
    asked, heard = [], []

    def fixes(name: str, closes: float) -> Any:
        def fixed(names: tuple[str, ...]) -> tuple[str, float]:
            asked.append(names)
            return name, closes

        return check(fixed=fixed)

    checks = {
        "NS003": fixes("stale", 0.7),
        "NS009": fixes("not_finite", 0.3),
        "NS004": check(fixed=lambda names: None),
    }
    findings = [
        finding("NS003", "a"), finding("NS004", ""), finding("NS003", "a"), finding("NS003", "gone"),
        finding("NS009", ""),
    ]  # fmt: skip
    of: Any = case(layer(), attribution=attributed(), data=SimpleNamespace())
    causes = _causes(of, checks, findings, lambda *step: heard.append(step))
    assert [(c.name, c.code, c.closes, c.layers) for c in causes] == [
        ("stale", "NS003", 0.7, ("a",)), ("small_batch", "NS007", 0.5, ()),
        ("not_finite", "NS009", 0.3, ("a", "b")), ("stale_mean", "", 0.2, ("a", "b")),
        ("unbiased", "", -0.1, ("a", "b")),
    ]  # fmt: skip
    assert [c.advantage for c in causes if c.code == "NS003"] == [7]
    assert asked == [("a",), ("a", "b")]
    assert heard == [(0, 3, "NS003"), (1, 3, "NS004"), (2, 3, "NS009")]
    more = {**checks, "NS008": check(fixed=lambda names: None)}
    names = {c.name: c.code for c in _causes(of, more, [finding("NS008", "")], lambda *step: None)}
    assert names == {"composition": "NS008", "stale_mean": "", "unbiased": ""}
    for bare in (case(layer(), data=SimpleNamespace()), case(layer(), attribution=attributed())):
        assert _causes(bare, checks, findings, lambda *step: None) == ()


def test_checks_are_chosen_by_the_beginnings_of_their_codes() -> None:
    assert list(_checks((), {})) == list(CHECKS)
    assert list(_checks(("NS00", "NS012"), {})) == [
        c for c in CHECKS if c.startswith("NS00") or c == "NS012"
    ]
    made = _checks(("NS003", "NS004"), {"NS003": (0.25, 0.75)})
    assert (made["NS003"].warn, made["NS003"].fail) == (0.25, 0.75)
    assert (made["NS004"].warn, made["NS004"].fail) == (0.02, 0.1)
    assert CHECKS["NS003"].warn == 0.1, "of this run alone"
    wrong: Any
    for wrong in ({"select": ("NS003", "XX")}, {"select": (), "thresholds": {"XX": (1, 2)}}):
        with pytest.raises(InputError, match="there is no check 'XX'; there are NS001, NS002"):
            _checks(wrong["select"], wrong.get("thresholds", {}))


@pytest.mark.parametrize("known", [True, False])
def test_the_gap_in_numbers(known: bool) -> None:
    reference, other = Quality(), Quality()
    for quality, share in ((reference, 0.75), (other, 0.5)):
        quality.right = [torch.full((4,), share)]
        quality.losses, quality.metrics = [torch.full((4,), 1 - share)], [10 * share]
    gap = SimpleNamespace(
        known=known, relative=0.3, disagreement=0.2, accuracies=(0.75, 0.5), samples=4,
        reference=reference, other=other, advantage=-3.0,
    )  # fmt: skip
    answers = [SimpleNamespace(values=torch.zeros(4, 3))]
    data: Any = SimpleNamespace(gap=gap, eval=answers, labels=Composition())
    found = _gap(data)
    assert found.from_one == 0
    for labels, classes in (([1, 2, 3], 3), ([0, 1, 3], 0), ([1, 2], 0), ([1, 2, 3, 4], 0)):
        data.labels = Composition(counts=Counter(labels))
        assert _gap(data).from_one == (0 if known else classes)
    assert (found.relative, found.disagreement, found.samples, found.advantage) == (0.3, 0.2, 4, -3)
    assert (found.train_accuracy, found.eval_accuracy) == (0.75, 0.5)
    assert (found.train_metric, found.eval_metric) == (7.5, 5)
    if known:
        assert (found.train_loss, found.eval_loss) == (0.25, 0.5)
        assert math.isnan(found.by_chance)
    else:
        assert math.isnan(found.train_loss)
        assert math.isnan(found.eval_loss)
        assert found.by_chance == 0.5


def test_what_a_diagnosis_is_of(tmp_path: Path) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)).eval()
    select = {"select": ["NS009"]}
    plain = diagnose(model, **select)
    assert (plain.model, plain.data, plain.layers) == ("Sequential", "", 2)
    assert (plain.gap, plain.causes, plain.by_layer, plain.channels) == (None, (), (), ())
    assert plain.passed == ("NS009",)
    named = diagnose(model, model_name="mine", data_name="theirs", **select)
    assert (named.model, named.data) == ("mine", "theirs")
    assert diagnose(model.state_dict(), **select).model == "checkpoint"
    path = tmp_path / "weights.safetensors"
    write_weights(path, model.state_dict(), {})
    for given in (path, str(path)):
        assert diagnose(given, **select).model == str(path)
    whole = diagnose(model, [torch.randn(8, 2)], **select)
    assert whole.gap is not None
    assert [g.name for g in whole.by_layer] == ["0", "1"]
    cold = {**model.state_dict(), "0.num_batches_tracked": torch.tensor(10)}
    cold["0.running_mean"] = torch.ones(2)
    share = diagnose(cold, select=["NS002"], momentum=0.2).findings[0]
    assert share.layer == "0"
    assert share.measured == pytest.approx(0.8**10)


def test_what_cannot_be_diagnosed_is_told_first() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2)).eval()
    wrong: Any = 3
    with pytest.raises(InputError, match="the optimizer is a int; give the torch.optim.Optimizer"):
        diagnose(model, optimizer=wrong)
    more: Any
    for more in ({"batches": []}, {"live": []}):
        with pytest.raises(InputError, match="data need a model to run them through"):
            diagnose(model.state_dict(), **more)
    program: Any = type("ExportedProgram", (), {"__module__": "torch.export.exported_program"})()
    with pytest.raises(ModelError, match="its mode and layers were fixed when it was traced"):
        diagnose(program)
    with pytest.raises(ModelError, match="has no layer with running statistics"):
        diagnose(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="the model is a int"):
        diagnose(wrong)
