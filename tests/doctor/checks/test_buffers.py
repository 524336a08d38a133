"""What is stored: the whole answer of each check on numbers made by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from normscope.doctor.checks import CHECKS
from normscope.doctor.checks.buffers import relevant_gain, steps_of
from normscope.doctor.evidence import LayerSample
from normscope.probe.compare import Quality
from tests.doctor.checks.cases import case, data, found, layer, one, skipped, stream, told, wide


@pytest.mark.parametrize(
    ("tracked", "with_data", "matters", "severity"),
    [(0, False, False, "warning"), (None, False, False, "warning"), (7, False, False, "error"), (0, True, True, "error")],
)  # fmt: skip
def test_statistics_that_were_never_updated(
    tracked: int | None, with_data: bool, matters: bool, severity: str
) -> None:
    fresh = layer(mean=wide(0, 0), var=wide(1, 1), tracked=tracked)
    more = {"data": data()} if with_data else {}
    finding = one("NS002", case(layer("b"), fresh, matters=matters, **more))
    assert told(finding) == (severity, 1, 0.1, "high", "recalibrate")
    assert finding.facts == {"tracked": str(tracked or 0), "kind": "never"}


def test_statistics_that_still_hold_a_share_of_their_start() -> None:
    warm, cold = layer(tracked=50), layer(tracked=10)
    share = 0.9**10
    assert found("NS002", case(warm, layer("b", momentum=None), layer("c", tracked=None))) == []
    finding = one("NS002", case(warm, cold))
    assert told(finding) == ("error", round(share, 6), 0.1, "low", "correct_cold")
    assert finding.facts == {"tracked": "10", "momentum": "0.1", "kind": "cold"}
    assert told(one("NS002", case(layer(tracked=30))))[:3] == ("warning", round(0.9**30, 6), 0.01)
    known = layer(tracked=10, module=nn.BatchNorm1d(2))
    assert one("NS002", case(known)).confidence == "medium"
    mean, var = cold.corrected() or (wide(), wide())
    near = data(by_batch={"a": [stream(mean, var)]})
    assert told(one("NS002", case(known, data=near, matters=True)))[::3] == ("error", "high")
    assert one("NS002", case(known, data=near)).severity == "warning", "eval() is no worse for it"
    assert one("NS002", case(known, data=near, matters=True, keep=True)).severity == "info"
    assert found("NS002", case(known, data=near, matters=True, sizes={"a": 3.0})) == []
    assert found("NS002", case(known, data=data(), matters=True)) == [], "the data refute it"
    assert found("NS002", case(layer(tracked=10, var=wide(0.3, 2)))) == [], "so do the numbers"


def test_what_is_not_finite_is_counted_by_channel() -> None:
    bad = layer("b", mean=wide(1, math.nan, 1, 1), var=wide(2, 2, -1, 2))
    shift = layer("c", weight=wide(1, 1), bias=wide(math.inf, 0))
    first, second = found("NS009", case(layer(), bad, layer("n", weight=None, bias=None), shift))
    assert told(first) == ("error", 0.5, 0, "high", "repair_channels")
    assert (first.layer, first.channels, first.facts) == ("b", (1, 2), {"count": "2", "of": "4"})
    assert told(second) == ("error", 0.5, 0, "high", "")
    assert (second.layer, second.channels, second.facts) == ("c", (0,), {"count": "1", "of": "2"})
    target = {"b": (wide(5, 6, 7, 8), wide(9, 10, 11, 12))}
    attribution: Any = SimpleNamespace(states={"b": bad}, target=target)
    mean, var = CHECKS["NS009"]().override(case(bad, attribution=attribution), ("b",)).stored["b"]
    assert (mean.tolist(), var.tolist()) == ([1, 6, 7, 1], [2, 10, 11, 2])


def test_small_variances_lie_between_a_constants_and_ten_times_eps() -> None:
    var = wide(1e-8, 0.99e-8, 9.9e-5, 1.01e-4, 0)
    finding = one("NS006", case(layer(), layer("b", var=var)))
    assert told(finding) == ("info", 0.4, 0.05, "low", "choose_eps")
    assert (finding.layer, finding.channels) == ("b", (0, 2))
    assert finding.facts == {"eps": "1e-05", "smallest": "1e-08", "best": "nan", "kind": "guess"}
    few = torch.full((20,), 2.0).double()
    few[3] = 1e-6
    assert found("NS006", case(layer(var=few))) == [], "one in twenty is not more than 5 %"


def test_constant_channels_are_told_by_the_layer_that_has_most() -> None:
    a, b = layer(var=wide(0.9e-8, 2, 2)), layer("b", var=wide(0, 1.1e-8, 5e-9, -1))
    finding = one("NS028", case(a, b, layer("c")))
    assert told(finding) == ("info", 3, 0, "high", "")
    assert (finding.layer, finding.channels) == ("b", (0, 2))
    assert finding.facts == {"count": "3", "of": "9", "layers": "2"}
    assert found("NS028", case(layer())) == []


def test_groups_of_which_nothing_was_seen() -> None:
    seen = layer(mean=torch.ones(7, 2).double(), unseen=(0, 1, 2, 3, 4, 6))
    finding = one("NS031", case(layer(), seen))
    assert told(finding) == ("warning", 6, 0, "high", "")
    assert finding.facts == {"groups": "0, 1, 2, 3, 4", "count": "6", "of": "7"}
    fresh = replace(seen, mean=torch.zeros(7, 2).double(), var=torch.ones(7, 2).double())
    assert found("NS031", case(fresh)) == [], "NS002 says so"


def test_scales_that_are_nearly_zero() -> None:
    weight = wide(0.0099, -0.0099, 0.01, 1)
    finding = one("NS010", case(layer("n", weight=None), layer(), layer("b", weight=weight)))
    assert told(finding) == ("info", 0.5, 0.01, "high", "")
    assert (finding.layer, finding.channels, finding.facts) == (
        "b",
        (0, 1),
        {"count": "2", "of": "4"},
    )


def test_gates_that_the_data_never_open_or_never_close() -> None:
    active = torch.tensor([0, 1, 999, 1000])
    ran = {"a": LayerSample(active=active, values=1000, activation="relu", sizes=[8])}
    of = case(layer("none"), layer(), data=data(layers=ran))
    finding = one("NS011", of)
    assert told(finding) == ("warning", 0.5, 0.1, "high", "")
    assert (finding.layer, finding.channels) == ("a", (0, 3))
    assert finding.facts == {"shut": "1", "open": "1", "of": "4"}
    silent = {"a": replace(ran["a"], activation="")}
    assert found("NS011", case(layer(), data=data(layers=silent))) == [], "no activation follows"
    damaged = case(layer("x", var=wide(-1, 1)), layer(), data=data(layers={"x": ran["a"], **ran}))
    assert [f.layer for f in found("NS011", damaged)] == ["a"]


def test_gates_are_guessed_from_scale_and_shift_without_data() -> None:
    gated = layer("b", weight=wide(1, -2, 2, 1), bias=wide(-3.1, 6.1, 5.9, -2.9))
    finding = one("NS011", case(layer("n", weight=None), gated))
    assert told(finding) == ("info", 0.5, 0.1, "low", "")
    assert (finding.channels, finding.facts) == ((0, 1), {"shut": "1", "open": "1", "of": "4"})
    assert found("NS011", case(layer(bias=None))) == []
    ten = torch.zeros(10).double()
    ten[4] = 9
    assert found("NS011", case(layer(weight=torch.ones(10).double(), bias=ten))) == []


def test_sixteen_bits_and_means_that_drown_the_spread_of_one_layer() -> None:
    both = layer("b", dtype=torch.bfloat16, mean=wide(2001, 1999, -3, 9), var=wide(4, 4, 0, -1))
    bits, ratio = found("NS023", case(layer(), both))
    assert told(bits) == ("warning", 16, 32, "high", "widen")
    assert bits.facts == {"kind": "bits", "dtype": "bfloat16"}
    assert told(ratio) == ("warning", 1000.5, 1000, "high", "")
    assert (ratio.channels, ratio.facts) == ((0,), {"kind": "ratio", "dtype": "bfloat16"})


def optimizer_of(steps: int) -> Any:
    return SimpleNamespace(state={0: {"step": torch.tensor(steps)}, 1: {}})


def test_layers_that_counted_more_batches_than_others() -> None:
    none = layer("n", tracked=None)
    got = found(
        "NS027", case(none, layer(tracked=100), layer("b", tracked=200), layer("c", tracked=150))
    )
    assert [f.layer for f in got] == ["b"]
    assert told(got[0]) == ("warning", 2, 1.5, "medium", "recalibrate")
    assert got[0].facts == {"tracked": "200", "usual": "100", "kind": "layers"}
    for of in (case(none), case(none, layer(tracked=0)), case(layer(tracked=5))):
        assert skipped("NS027", of) == "doctor.skip.counters"
    alike = case(layer(tracked=100), layer("b", tracked=140))
    assert skipped("NS027", alike) == "doctor.skip.steps"


@pytest.mark.parametrize(
    ("tracked", "steps", "accumulate", "outcome"),
    [
        (40, 20, None, "steps"), (20, 20, None, "passed"), (40, 20, 2, "passed"),
        (80, 20, None, "steps"), (100, 20, None, "doctor.skip.steps"),
        (50, 20, None, "doctor.skip.steps"), (18, 9, None, "doctor.skip.counters"),
        (20, 10, None, "steps"),
    ],
)  # fmt: skip
def test_the_optimizer_says_how_often_a_layer_should_have_counted(
    tracked: int, steps: int, accumulate: int | None, outcome: str
) -> None:
    of = case(layer(tracked=tracked), optimizer=optimizer_of(steps), accumulate=accumulate)
    if outcome.startswith("doctor"):
        assert skipped("NS027", of) == outcome
        return
    got = found("NS027", of)
    assert [f.facts["kind"] for f in got] == ([] if outcome == "passed" else ["steps"])
    if got:
        assert told(got[0]) == ("warning", tracked / steps, 1.5, "high", "recalibrate")
        assert got[0].facts["usual"] == str(steps)
    assert steps_of(None) == 0
    assert steps_of(of.optimizer) == steps


def test_another_eps_must_bring_enough() -> None:
    def of(accuracy: float | None, loss: float, metric: float | None = None) -> Quality:
        found = Quality()
        found.losses = [torch.full((1000,), loss).double()]
        if accuracy is not None:
            found.right = [(torch.arange(1000) < 1000 * accuracy).double()]
        found.metrics = [] if metric is None else [metric]
        return found

    assert relevant_gain(of(0.5, 1.0), of(0.52, 0.9)) == pytest.approx(0.1)
    assert relevant_gain(of(0.5, 1.0), of(0.51, 0.9)) == 0
    assert relevant_gain(of(0.5, 1.0), of(0.5, 0.79)) == pytest.approx(0.21)
    assert relevant_gain(of(0.5, 1.0), of(0.49, 0.5)) == 0, "accuracy falls"
    assert relevant_gain(of(None, 1.0), of(None, 0.7)) == pytest.approx(0.3)
    assert relevant_gain(of(0.5, 1.0, 0.2), of(0.9, 0.1, 0.25)) == pytest.approx(0.05)
