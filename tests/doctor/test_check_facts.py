"""Each check's whole answer on numbers made by hand: severity, threshold, facts, what to do."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normscope
from normscope.doctor.checks import CHECKS, CheckContext
from normscope.doctor.checks.base import Skip, in_digits
from normscope.doctor.checks.buffers import relevant_gain, steps_of
from normscope.doctor.evidence import Composition, Evidence, LayerSample
from normscope.doctor.state import LayerState
from normscope.moments import Moments
from normscope.probe.compare import Comparison, Quality
from normscope.probe.stream import MomentStream
from normscope.records import Finding


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def layer(name: str = "a", **changes: Any) -> LayerState:
    """A layer of two channels to which nothing is wrong."""
    well = LayerState(
        name=name, mean=wide(1, 1), var=wide(2, 2), weight=wide(1, 1), bias=wide(0, 0),
        tracked=1000, momentum=0.1, eps=1e-5, dtype=torch.float32,
    )  # fmt: skip
    return replace(well, **changes)


def stream(mean: Tensor, var: Tensor, batches: int = 4, n: int = 50) -> MomentStream:
    """So many equal batches of n values, with this mean and this unbiased variance in all."""
    found, total = MomentStream(), batches * n
    for _ in range(batches):
        m2 = var * (total - 1) / batches
        found.add(Moments(torch.full(mean.shape[:-1], float(n)).double(), mean, m2), n)
    return found


def data(**more: Any) -> Evidence:
    """Data that agree with `layer`."""
    as_stored = {"a": [stream(wide(1, 1), wide(2, 2))]}
    return Evidence(**{"by_batch": as_stored, "stored": as_stored, "sizes": [8, 8, 8], **more})


class Sure(CheckContext):
    """A case in which it is given whether the gap matters and whether to keep what is stored."""

    matters, keep, sizes = False, False, {}  # type: ignore[var-annotated]
    gap_matters = property(lambda self: self.matters)
    keep_stored = property(lambda self: self.keep)
    scales = property(lambda self: self.sizes)


def case(*layers: LayerState, matters: bool = False, keep: bool = False, **more: Any) -> Any:
    sizes = more.pop("sizes", {})
    found = Sure(list(layers), **more)
    found.matters, found.keep, found.sizes = matters, keep, sizes
    return found


def found(code: str, of: Any) -> list[Finding]:
    return list(CHECKS[code]().find(of))


def one(code: str, of: Any) -> Finding:
    (only,) = found(code, of)
    assert (only.code, only.source) == (code, CHECKS[code].source)
    return only


def told(finding: Finding) -> tuple[Any, ...]:
    measured = round(finding.measured, 6)
    return finding.severity, measured, finding.threshold, finding.confidence, finding.repair


def skipped(code: str, of: Any) -> str:
    with pytest.raises(Skip) as why:
        found(code, of)
    return str(why.value)


def comparison(
    worse: float = 0.0, accuracies: tuple[float, float] = (math.nan, math.nan), **more: Any
) -> Any:
    """A gap whose numbers are given."""
    known = not math.isnan(accuracies[0])
    facts = {
        "known": known, "relative": worse, "disagreement": math.nan, "advantage": 0.0,
        "samples": 24, "accuracies": accuracies, "reference": Quality(), "other": Quality(),
    }  # fmt: skip
    return SimpleNamespace(**{**facts, **more})


# NS001, NS005, NS014, NS015, NS016, NS019, NS030: how layers are set


def test_layers_in_train_within_a_model_in_eval() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.Linear(2, 2)).eval()
    states = [layer("0", module=model[0]), layer("1", module=model[1]), layer("2")]
    assert found("NS001", case(*states, subject=model)) == []
    model[1].train()
    finding = one("NS001", case(*states, subject=model))
    assert finding.layer == "1"
    assert told(finding) == ("error", 1, 0, "high", "eval_mode")
    assert skipped("NS001", case(*states, subject=model.train())) == "doctor.skip.training"


@pytest.mark.parametrize(
    ("momentum", "expected", "facts"),
    [
        (0.0, ("info", 0, 0.5, "high", ""), {"momentum": "0", "kind": "zero"}),
        (0.9, ("warning", 0.9, 0.5, "high", "momentum"), {"momentum": "0.9", "other": "0.1", "kind": "other"}),
        (0.6, ("warning", 0.6, 0.5, "medium", "momentum"), {"momentum": "0.6", "other": "0.4", "kind": "other"}),
        (0.997, ("warning", 0.997, 0.5, "high", "momentum"), {"momentum": "0.997", "other": "0.003", "kind": "other"}),
        (0.5, None, {}), (0.1, None, {}), (None, None, {}),
    ],
)  # fmt: skip
def test_a_momentum_of_another_convention(
    momentum: float | None, expected: Any, facts: dict[str, str]
) -> None:
    # another layer stands before: what is told of it stops nothing
    both = case(layer(momentum=None), layer("b", momentum=momentum))
    if expected is None:
        assert found("NS005", both) == []
        return
    finding = one("NS005", both)
    assert finding.layer == "b"
    assert told(finding) == expected
    assert finding.facts == facts


def frozen_pair() -> Any:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[2].requires_grad_(False)
    return model


def test_a_layer_that_is_frozen_by_half() -> None:
    model = frozen_pair()
    plain = nn.InstanceNorm1d(2, affine=True, track_running_stats=True).requires_grad_(False)
    states = [layer("0", module=None), layer("1", module=plain), layer("2", module=model[2])]
    finding = one("NS014", case(*states, subject=model))
    assert (finding.layer, finding.facts) == ("2", {"kind": "params"})
    assert told(finding) == ("error", 1, 0, "high", "freeze")
    model[2].eval()
    assert found("NS014", case(*states, subject=model)) == [], (
        "in eval() inside train(): on purpose"
    )
    model.eval()
    assert told(one("NS014", case(*states, subject=model))) == ("warning", 1, 0, "medium", "freeze")
    for shift, expected in (
        (0.05, ("info", 1, 0, "low", "")),
        (0.2, ("warning", 1, 0, "medium", "freeze")),
    ):
        moved = {"2": [stream(wide(1, 1) + shift * 2**0.5, wide(2, 2))]}
        of = case(*states, subject=model, data=data(by_batch=moved))
        assert told(one("NS014", of)) == expected
    for inside in model:
        inside.requires_grad_(False)
    assert found("NS014", case(*states, subject=model)) == [], "nothing learns: for inference"
    model[2].track_running_stats = False
    finding = one("NS014", case(*states, subject=model))
    assert (finding.facts, finding.severity) == ({"kind": "untracked"}, "error")
    bare = nn.BatchNorm1d(2, affine=False)
    held = nn.Sequential(nn.Linear(2, 2), bare).eval()
    assert found("NS014", case(layer("1", module=bare), subject=held)) == [], "nothing to freeze"


def twins(noise: float) -> Any:
    """An online part and its copy without gradients, as BYOL and MoCo have."""
    torch.manual_seed(0)
    model = nn.ModuleDict()
    for name in ("online", "target"):
        model[name] = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8))
    target: Any = model["target"]
    online: Any = model["online"]
    with torch.no_grad():
        for a, b in zip(target.parameters(), online.parameters(), strict=True):
            a.copy_(b + noise * torch.randn_like(b))
    target.requires_grad_(False)
    return model


def test_a_copy_of_what_learns_is_not_frozen_by_half() -> None:
    for noise, expected in ((0.05, 0), (30.0, 1)):
        model = twins(noise)
        states = [
            layer("target.1", module=model["target"][1]),
            layer("late", module=nn.BatchNorm1d(2, track_running_stats=False)),
        ]
        got = found("NS014", case(*states, subject=model))
        assert [f.layer for f in got] == ["target.1"] * expected + ["late"]
    model = twins(0.0)
    model["online"].requires_grad_(False)
    states = [layer("target.1", module=model["target"][1])]
    assert len(found("NS014", case(*states, subject=model))) == 1, "neither of the two learns"


def test_an_average_of_weights_and_whose_statistics_it_has() -> None:
    assert skipped("NS015", case(layer())) == "doctor.skip.average"
    assert (
        skipped("NS015", case(layer(), names=frozenset({"n_averaged.x"}))) == "doctor.skip.average"
    )
    for of in (
        case(layer(), names=frozenset({"a.weight", "n_averaged"})),
        case(layer(), subject=torch.optim.swa_utils.AveragedModel(nn.BatchNorm1d(2))),
    ):
        finding = one("NS015", of)
        assert told(finding) == ("warning", 1, 0, "low", "recalibrate")
        assert finding.facts == {"kind": "unknown", "distance": "0"}
        assert finding.layer == ""
    names = frozenset({"n_averaged"})
    for shift, matters, expected in (
        (0.05, True, None),
        (0.3, True, ("warning", 0.3, 0.1, "high", "recalibrate")),
        (0.8, True, ("error", 0.8, 0.5, "high", "recalibrate")),
        (0.8, False, ("warning", 0.8, 0.1, "high", "recalibrate")),
    ):
        moved = data(by_batch={"a": [stream(wide(1, 1) + shift * 2**0.5, wide(2, 2))]})
        got = found("NS015", case(layer("gone"), layer(), names=names, data=moved, matters=matters))
        assert [told(f) for f in got] == ([] if expected is None else [expected])
        assert all(f.facts["kind"] == "stale" for f in got)
        assert all(float(f.facts["distance"]) == shift for f in got)


def test_weight_decay_on_scale_and_shift_is_counted_by_layers() -> None:
    a, b, c = (nn.BatchNorm1d(2) for _ in range(3))
    states = [layer(n, module=m) for n, m in (("a", a), ("b", b), ("c", c), ("d", None))]
    groups = [
        {"params": a.parameters(), "weight_decay": 0.0},
        {"params": b.parameters(), "weight_decay": 1e-3},
        {"params": c.parameters(), "weight_decay": 1e-2},
    ]
    optimizer: Any = torch.optim.SGD(groups, lr=0.1)
    finding = one("NS016", case(*states, optimizer=optimizer))
    assert told(finding) == ("info", 0.01, 0, "high", "")
    assert (finding.layer, finding.facts) == ("", {"count": "2", "first": "b"})
    none = torch.optim.SGD(a.parameters(), lr=0.1)
    assert found("NS016", case(*states, optimizer=none)) == []
    other: Any = SimpleNamespace(param_groups=[{"params": list(b.parameters())}])
    assert found("NS016", case(*states, optimizer=other)) == [], "an optimizer without decay"


@pytest.mark.parametrize(("batches", "told_of"), [(1, False), (2, True)])
def test_steps_of_several_batches(batches: int, told_of: bool) -> None:
    got = found("NS019", case(layer(), accumulate=batches))
    assert bool(got) is told_of
    assert skipped("NS019", case(layer())) == "doctor.skip.accumulate"


def test_buffers_that_follow_another_model() -> None:
    followed = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(3), nn.BatchNorm1d(2))
    for norm in followed:
        norm.running_mean.fill_(1), norm.running_var.fill_(2)
    mean = wide(1, 1)
    for away, expected in (
        (0.05, None),
        (0.3, ("warning", 0.3, 0.1, "high", "copy_buffers")),
        (0.8, ("error", 0.8, 0.5, "high", "copy_buffers")),
    ):
        states = [layer("1"), layer("no"), layer("2", mean=mean + away * 2**0.5), layer("0")]
        got = found("NS030", case(*states, reference=followed))
        assert [(f.layer, f.facts["kind"]) for f in got] == [("2", "behind")] * (
            expected is not None
        )
        assert [told(f) for f in got] == ([] if expected is None else [expected])
    fresh = layer("0", mean=wide(0, 0), var=wide(1, 1))
    assert one("NS030", case(fresh, reference=followed)).facts == {"kind": "never"}
    over = CHECKS["NS030"]().override(case(fresh, reference=followed), ("0", "gone"))
    assert list(over.stored) == ["0"]
    assert [t.tolist() for t in over.stored["0"]] == [[1, 1], [2, 2]]


# NS002, NS006, NS009, NS010, NS011, NS023, NS027, NS028, NS031: what is stored


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


# NS003, NS004, NS013, NS017, NS021, NS029: what is stored against the data


@pytest.mark.parametrize(
    ("shift", "matters", "keep", "expected"),
    [
        (0.05, True, False, None),
        (0.3, True, False, ("warning", 0.3, 0.1)),
        (0.8, True, False, ("error", 0.8, 0.5)),
        (0.8, False, False, ("warning", 0.8, 0.1)),
        (0.8, True, True, ("error", 0.8, 0.5)),
    ],
)
def test_statistics_that_are_not_those_of_the_data(
    shift: float, matters: bool, keep: bool, expected: Any
) -> None:
    moved = data(by_batch={"a": [stream(wide(1, 1), wide(2, 2))]})
    off = layer(mean=wide(1, 1) - shift * 2**0.5)
    got = found("NS003", case(layer("gone"), off, data=moved, matters=matters, keep=keep))
    if expected is None:
        assert got == []
        return
    (finding,) = got
    assert told(finding) == (*expected, "high", "recalibrate")
    assert finding.channels == (0, 1)
    size = f"{shift:.3g}"
    kind = "kept" if keep else ""
    assert finding.facts == {"shift": size, "ratio": "1", "worst": size, "kind": kind}
    scaled = case(off, data=moved, matters=matters, sizes={"a": 2.0})
    assert found("NS003", scaled) == [], "NS033 says so"


def test_one_channel_of_many_that_is_far_off_is_enough() -> None:
    for away, expected in ((0.4, 0), (0.6, 1)):
        mean = torch.ones(40).double()
        var = torch.full((40,), 2.0).double()
        off = mean.clone()
        off[7] += away * 2**0.5
        of = case(
            layer(mean=off, var=var), data=data(by_batch={"a": [stream(mean, var)]}), matters=True
        )
        got = found("NS003", of)
        assert len(got) == expected
        if got:
            assert (got[0].severity, got[0].threshold, got[0].channels) == ("warning", 0.1, (7,))
            assert got[0].facts["worst"] == "0.6"
    spread = layer(var=wide(8, 8))
    finding = one("NS003", case(spread, data=data(), matters=True))
    assert finding.facts["ratio"] == "4"
    assert finding.facts["shift"] == "0"
    assert finding.measured == pytest.approx(1)


def test_a_distance_that_comes_about_by_chance_is_none() -> None:
    """A running average of a high momentum strays with every batch."""
    stray = MomentStream()
    for shift in (-2.0, 2.0, -2.0, 2.0):
        stray.add(Moments(wide(50).squeeze(), wide(1, 1) + shift, wide(99, 99)), 50)
    off = layer(mean=wide(2.5, 2.5), var=wide(6, 6))
    of = {"data": data(by_batch={"a": [stray]}), "matters": True}
    assert found("NS003", case(replace(off, momentum=1.0), **of)) == []
    assert len(found("NS003", case(replace(off, momentum=0.01), **of))) == 1
    assert len(found("NS003", case(replace(off, momentum=None), **of))) == 1


@pytest.mark.parametrize(
    ("gap", "matters", "keep", "expected"),
    [
        (comparison(0.09), False, False, None),
        (comparison(0.11), False, False, ("warning", 0.11, 0.1)),
        (comparison(0.51), True, False, ("error", 0.51, 0.5)),
        (comparison(0.51), True, True, ("info", 0.51, 0.5)),
        (comparison(0.3, (0.9, 0.8), disagreement=0.019), True, False, None),
        (comparison(0.3, (0.9, 0.8), disagreement=0.021), True, False, ("warning", 0.021, 0.02)),
        (comparison(0.3, (0.9, 0.8), disagreement=0.11), True, False, ("error", 0.11, 0.1)),
        (comparison(0.3, (0.9, 0.8), disagreement=0.11), False, False, ("warning", 0.11, 0.02)),
        (comparison(0.3, (0.8, 0.9), disagreement=0.11, advantage=2.1), False, False, ("info", 0.11, 0.02)),
        (comparison(0.3, (0.8, 0.9), disagreement=0.11, advantage=1.9), False, False, ("warning", 0.11, 0.02)),
    ],
)  # fmt: skip
def test_outputs_that_differ_between_the_modes(
    gap: Any, matters: bool, keep: bool, expected: Any
) -> None:
    got = found("NS004", case(layer(), data=data(gap=gap), matters=matters, keep=keep))
    if expected is None:
        assert got == []
        return
    (finding,) = got
    assert told(finding) == (*expected, "high", "")
    assert finding.facts == {
        "kind": "argmax" if gap.known else "relative", "relative": in_digits(gap.relative),
        "train": in_digits(gap.accuracies[0]), "eval": in_digits(gap.accuracies[1]),
    }  # fmt: skip


def test_a_gap_of_batches_of_this_size_alone_is_a_note() -> None:
    for explained, severity in ((0.99, "info"), (0.5, "warning")):
        attribution: Any = SimpleNamespace(of_batches=explained)
        of = case(layer(), data=data(gap=comparison(0.3)), attribution=attribution)
        assert one("NS004", of).severity == severity
    labelled = comparison(0.3, (0.9, 0.8), disagreement=0.11)
    attribution = SimpleNamespace(of_batches=1.0)
    assert one(
        "NS004", case(layer(), data=data(gap=labelled), attribution=attribution)
    ).severity == ("warning")
    assert skipped("NS004", case(layer(), data=data(gap=comparison(1.0, samples=0)))) == (
        "doctor.skip.outputs"
    )


@pytest.mark.parametrize(
    ("on", "stored", "matters", "severity"),
    [
        (4.0, 4.0, True, "error"), (4.0, 4.0, False, "warning"), (1.0, 1.0, False, "warning"),
        (4.0, 2.0, True, None), (2.4, 2.4, True, None), (2.6, 2.6, True, "error"),
        (1.5, 1.5, True, "error"), (1.7, 1.7, True, None),
    ],
)  # fmt: skip
def test_dropout_whose_variance_is_the_stored_one(
    on: float, stored: float, matters: bool, severity: str | None
) -> None:
    dropped = {"a": [stream(wide(1, 1), wide(on, on))]}
    state = layer(var=wide(stored, stored))
    of = data(dropped=dropped)
    got = found("NS013", case(layer("none"), state, data=of, matters=matters))
    assert [f.severity for f in got] == ([] if severity is None else [severity])
    for finding in got:
        assert told(finding) == (severity, round(2 / on, 6), 0.8, "high", "recalibrate")
        assert finding.facts == {"ratio": in_digits(2 / on)}
    damaged = layer(var=wide(-1, stored))
    assert found("NS013", case(damaged, data=of, matters=True)) == []
    assert skipped("NS013", case(state, data=data())) == "doctor.skip.dropout"


@pytest.mark.parametrize(
    ("apart", "matters", "severity"),
    [(0.09, True, None), (0.11, True, "warning"), (0.6, True, "error"), (0.6, False, "warning"), (0.5, True, "warning")],
)  # fmt: skip
def test_a_layer_of_several_calls(apart: float, matters: bool, severity: str | None) -> None:
    var = wide(2, 2)
    calls = [stream(wide(1, 1), var), stream(wide(1, 1) + (apart - 1e-9) * 2**0.5, var)]
    calls.append(stream(wide(1, 1), var))
    of = case(layer("b"), layer(), data=data(by_batch={"a": calls}), matters=matters)
    got = found("NS017", of)
    assert [f.severity for f in got] == ([] if severity is None else [severity])
    for finding in got:
        assert told(finding) == (severity, apart, 0.1, "high", "split")
        assert finding.facts == {"calls": "3", "distance": in_digits(apart)}
    assert CHECKS["NS017"]().override(of, ("a",)).by_batch == {"a"}


def spread_over(apart: float, sets: int = 2) -> Moments:
    """Sets of 100 values of variance 1 whose means are so far apart, in one of two channels."""
    mean = torch.zeros(sets, 2).double()
    mean[1, 0] = apart
    return Moments(torch.full((sets,), 100.0).double(), mean, torch.full((sets, 2), 100.0).double())


def test_domains_are_weighed_against_classes() -> None:
    places = Composition()
    for _ in range(4):
        places.add(torch.tensor([0, 1] * 4))
    # between / total of the one channel that differs, halved by the other, which does not
    eta = lambda apart: (apart**2 / 4) / (apart**2 / 4 + 1) / 2
    of = data(places=places, by_domain={"a": spread_over(2)}, by_class={"a": spread_over(1)})
    finding = one("NS021", case(layer("b"), layer(), data=of, matters=True))
    assert told(finding) == ("warning", round(eta(2) / eta(1), 6), 1, "high", "domains")
    assert finding.facts == {"domain": in_digits(eta(2)), "label": in_digits(eta(1))}
    assert one("NS021", case(layer(), data=of)).severity == "info"
    of.by_class = {"a": spread_over(3)}
    assert found("NS021", case(layer(), data=of)) == []
    of.by_class = {}
    assert one("NS021", case(layer(), data=of)).facts["label"] == "0.05"
    of.by_class = {"a": spread_over(0)}
    assert one("NS021", case(layer(), data=of)).facts["label"] == "0.01", "at least"
    of.by_domain = {"a": spread_over(0.6)}
    assert found("NS021", case(layer(), data=of)) == [], "a share of 4 % is none"
    per_condition = layer(mean=torch.ones(2, 2).double())
    of.by_domain = {"a": spread_over(2)}
    assert found("NS021", case(per_condition, data=of)) == []
    alone = Composition()
    for domain in (0, 1, 0, 1):
        alone.add(torch.full((8,), domain))
    of.places, of.by_class = alone, {"a": spread_over(3)}
    assert len(found("NS021", case(layer(), data=of))) == 1, "whole batches of one domain"
    assert skipped("NS021", case(layer(), data=data())) == "doctor.skip.domains"


def qualities(kind: str) -> tuple[Quality, Quality]:
    before, after = Quality(), Quality()
    for quality, value in ((before, 0.75), (after, 0.25)):
        quality.truth, quality.predicted = wide(3, 0, 1), wide(1, 1, 1)
        if kind == "metric":
            quality.metrics = [value]
        if kind != "loss":
            quality.right = [torch.full((4,), value)]
        quality.losses = [torch.full((4,), value)]
    return before, after


@pytest.mark.parametrize("kind", ["metric", "accuracy", "loss"])
def test_data_on_which_the_stored_statistics_do_better(kind: str) -> None:
    other, reference = qualities(kind)
    gap = comparison(0.3, (0.2, 0.7), other=other, reference=reference)
    far = data(by_batch={"a": [stream(wide(2, 2), wide(2, 2))]}, gap=gap)
    more: dict[str, Any] = {"data": far, "attribution": SimpleNamespace()}
    of = case(layer(), keep=True, **more)
    of.__dict__["restored"] = -3.0
    finding = one("NS029", of)
    assert told(finding) == ("info", round(0.5**0.5, 6), 0.1, "high", "")
    assert finding.facts == {
        "kind": kind, "eval": "0.75", "train": "0.25", "samples": "24", "classes": "2",
        "outputs": "3",
    }  # fmt: skip
    of = case(layer(), keep=False, **more)
    of.__dict__["restored"] = -3.0
    assert found("NS029", of) == []
    near = case(layer(), keep=True, data=data(gap=gap), attribution=more["attribution"])
    near.__dict__["restored"] = -3.0
    assert found("NS029", near) == [], "the statistics are those of the data"
    unknown = case(layer(), data=data(gap=comparison(0.3)), keep=True)
    assert skipped("NS029", unknown) == "doctor.skip.quality"


# NS007, NS008, NS020, NS026: the batches


@pytest.mark.parametrize(
    ("size", "positions", "matters", "expected"),
    [
        (16, 1, True, None), (15, 1, True, ("warning", 15, 16)), (3, 1, True, ("error", 3, 16)),
        (4, 1, True, ("warning", 4, 16)), (3, 1, False, ("warning", 3, 16)),
        (1, 9, True, ("warning", 9, 16)),
    ],
)  # fmt: skip
def test_batches_that_are_too_small(
    size: int, positions: int, matters: bool, expected: Any
) -> None:
    def sample(p: int) -> LayerSample:
        independent = Moments(wide(100).squeeze(), wide(0, 0), wide(100, 100) / p)
        whole = Moments(wide(100 * p).squeeze(), wide(0, 0), wide(100 * p, 100 * p))
        return LayerSample(sizes=[size] * 3, positions=p, means=independent, all=whole)

    layers = {"a": sample(positions), "large": sample(100)}
    of = case(
        layer("large"), layer("none"), layer(), data=data(layers=layers, sizes=[size] * 3),
        matters=matters,
    )  # fmt: skip
    got = found("NS007", of)
    if expected is None:
        assert got == []
        return
    (finding,) = got
    assert told(finding) == (*expected, "high", "own_weight")
    assert finding.layer == "a"
    assert finding.facts == {"size": str(size), "kind": "alone" if size == 1 else "small"}


def test_a_last_batch_of_one_is_told_where_it_would_fail() -> None:
    of = data(sizes=[64, 64, 1], layers={"a": LayerSample(sizes=[64, 64, 1])})
    finding = one("NS007", case(layer(), data=of))
    assert (finding.layer, finding.facts) == ("", {"size": "1", "kind": "last"})
    assert told(finding) == ("warning", 1, 16, "high", "own_weight")
    of.layers = {"a": LayerSample(sizes=[64, 64, 1], positions=4)}
    assert found("NS007", case(layer(), data=of)) == [], "an image has several positions"
    of.layers = {"a": LayerSample(sizes=[640])}
    assert found("NS007", case(layer(), data=of)) == [], "the number of samples is not known"
    assert skipped("NS007", case(layer("b"), data=of)) == "doctor.skip.none"


def of_labels(*batches: list[int]) -> Composition:
    found = Composition()
    for labels in batches:
        found.add(torch.tensor(labels))
    return found


SORTED = of_labels(*[[i % 2] * 8 for i in range(6)])
PLACES = of_labels(*[[0, 1, 2, 3] * 2] * 6)


@pytest.mark.parametrize(
    ("labels", "matters", "keep", "expected"),
    [
        (SORTED, True, False, ("error", 1, 0.3)), (SORTED, False, False, ("warning", 1, 0.1)),
        (SORTED, True, True, ("warning", 1, 0.1)), (PLACES, True, False, ("error", 1, 0.3)),
        (PLACES, False, False, ("info", 1, 0.1)), (PLACES, True, True, ("warning", 1, 0.1)),
    ],
)  # fmt: skip
def test_batches_whose_samples_belong_together(
    labels: Composition, matters: bool, keep: bool, expected: Any
) -> None:
    finding = one("NS008", case(layer(), data=data(labels=labels), matters=matters, keep=keep))
    assert told(finding) == (*expected, "high", "")
    kind = "mates" if labels is SORTED else "places"
    assert (finding.layer, finding.facts) == ("", {"kind": kind, "left": "0"})


def test_why_nothing_can_be_said_of_the_composition_of_batches() -> None:
    for labels, why in (
        (of_labels(*[[3] * 8] * 6), "doctor.skip.one_class"),
        (of_labels([0, 1, 0, 1]), "doctor.skip.one_batch"),
        (Composition(), "doctor.skip.labels"),
    ):
        assert skipped("NS008", case(layer(), data=data(labels=labels))) == why


def of_correlation(r: float, batches: int = 400, n: int = 8) -> LayerSample:
    """Sample means whose share r of variance lies between the batches."""
    within = 1 - r
    msw, msb = within, within + n * r
    m2 = wide(msw * batches * (n - 1) + msb * (batches - 1))
    means = Moments(wide(batches * n).squeeze(), wide(0), m2)
    return LayerSample(
        sizes=[n] * batches, means=means, within=wide(msw * batches * (n - 1)), all=means
    )


def test_the_layer_whose_samples_hang_together_most_is_told() -> None:
    layers = {"a": of_correlation(0.0), "b": of_correlation(0.3), "c": of_correlation(0.5)}
    layers |= {"d": of_correlation(0.4), "e": LayerSample()}
    assert layers["b"].batch_correlation()[0] == pytest.approx(0.3)
    finding = one("NS008", case(layer(), data=data(layers=layers), matters=True))
    assert (finding.layer, finding.severity) == ("c", "error")
    assert finding.measured == pytest.approx(0.5)
    assert finding.facts == {"kind": "means", "left": in_digits(0.5 * 7 / 8)}
    alone = {"a": of_correlation(0.05)}
    assert found("NS008", case(layer(), data=data(layers=alone), matters=True)) == []


@pytest.mark.parametrize(
    ("padded", "known", "matters", "severity"),
    [(0.04, False, False, None), (0.06, False, False, "warning"), (0.06, True, False, "info"), (0.06, True, True, "warning")],
)  # fmt: skip
def test_padding_that_counts_as_data(
    padded: float, known: bool, matters: bool, severity: str | None
) -> None:
    gap = comparison(0.0, (0.9, 0.9)) if known else comparison()
    layers = {"a": LayerSample(padded=padded), "b": LayerSample(padded=0.9), "0": LayerSample()}
    layers = layers if severity else {"a": layers["a"]}
    of = case(layer("none"), layer("0"), layer(), layer("b"), data=data(gap=gap, layers=layers),
              matters=matters)  # fmt: skip
    got = found("NS020", of)
    assert [f.severity for f in got] == ([] if severity is None else [severity])
    for finding in got:
        assert told(finding) == (severity, padded, 0.05, "medium", "")
        assert finding.layer == "a", "the first that is reached"


def test_an_output_that_depends_on_its_company() -> None:
    model = nn.Sequential(
        nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 2)
    )
    for norm, severity, confidence, kind in (
        (True, "error", "high", "norm"), (False, "warning", "medium", "other"),
    ):  # fmt: skip
        of = case(layer(), subject=model, data=data(leak=0.0011, normalised=norm))
        finding = one("NS026", of)
        assert told(finding) == (severity, 0.0011, 1e-3, confidence, "")
        assert (finding.layer, finding.facts) == ("1", {"change": "0.0011", "kind": kind})
    other = nn.Sequential(nn.BatchNorm1d(2))
    assert one("NS026", case(layer(), subject=other, data=data(leak=1.0))).layer == ""
    assert found("NS026", case(layer(), subject=model, data=data(leak=0.0009))) == []
    for sizes, why in (([2, 1], "outputs"), ([1, 2], "single")):
        of = case(layer(), subject=model, data=data(leak=math.nan, sizes=sizes))
        assert skipped("NS026", of) == f"doctor.skip.{why}"


# NS012, NS025, NS033 and what all share


def test_biases_that_a_norm_takes_away_are_counted() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3)), nn.Linear(3, 4), nn.BatchNorm1d(4),
        nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 5), nn.BatchNorm1d(4),
    )  # fmt: skip
    finding = one("NS012", case(layer(), subject=model))
    assert told(finding) == ("info", 2, 0, "medium", "fold_bias")
    assert finding.facts == {"first": "1", "norm": "2", "pairs": "2", "count": "7"}
    assert found("NS012", case(layer(), subject=nn.Sequential(model[3], model[4]))) == []


def test_a_norm_on_the_output() -> None:
    norm = nn.BatchNorm1d(2)
    for last, told_of in ((nn.Identity(), True), (nn.Flatten(), True), (nn.ReLU(), False)):
        got = found("NS025", case(layer(), subject=nn.Sequential(nn.Linear(2, 2), norm, last)))
        assert [(f.layer, *told(f)) for f in got] == [("1", "info", 1, 0, "medium", "")] * told_of
    assert found("NS025", case(layer(), subject=nn.Sequential(norm))) == [], "it is all there is"


def test_inputs_on_another_scale() -> None:
    far = data(by_batch={"a": [stream(wide(1.3, 1.3) * 2**0.5, wide(2, 2))]})
    of = case(layer(mean=wide(1, 1) * 2**0.5), data=far, matters=True, sizes={"a": 2.5})
    finding = one("NS033", of)
    assert told(finding) == ("warning", 0.3, 0.1, "high", "")
    assert (finding.layer, finding.facts) == ("a", {"factor": "2.5"})
    near = case(layer(), data=data(), matters=True, sizes={"a": 2.5})
    assert told(one("NS033", near))[:3] == ("warning", 0, 0.1)
    assert found("NS033", case(layer(), data=data())) == []
    fresh = layer(mean=wide(0, 0), var=wide(1, 1))
    assert skipped("NS033", case(fresh, data=data())) == "doctor.skip.none"


def test_a_larger_number_is_graded_by_two_thresholds() -> None:
    check = CHECKS["NS003"]()
    check.warn, check.fail = 1, 2
    assert [check.graded(v) for v in (1, 1.1, 2, 2.1)] == [
        None, ("warning", 1), ("warning", 1), ("error", 2),
    ]  # fmt: skip
    assert check.graded(3, case(layer())) == ("error", 2), "nothing says that it does no harm"
    assert check.graded(3, case(layer(), data=data())) == ("warning", 1)
    assert check.graded(3, case(layer(), data=data(), matters=True)) == ("error", 2)
    mask = torch.zeros(2, 30).bool()
    mask[:, 3:28] = True
    finding = check.finding("a", "info", 1, 2, channels=mask, repair="split", n=1, x=0.12345)
    assert finding.channels == tuple(range(3, 23))
    assert (finding.repair, finding.facts) == ("split", {"n": "1", "x": "0.123"})
    for code, subject, evidence, why in (
        ("NS002", None, None, None), ("NS001", None, None, "doctor.skip.model"),
        ("NS003", None, None, "doctor.skip.model"), ("NS001", nn.BatchNorm1d(2), None, None),
        ("NS003", nn.BatchNorm1d(2), None, "doctor.skip.data"),
        ("NS003", nn.BatchNorm1d(2), data(), None),
    ):  # fmt: skip
        assert CHECKS[code]().missing(case(layer(), subject=subject, data=evidence)) == why


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


def test_a_gap_is_looked_at_with_data_only() -> None:
    plain = CheckContext([layer()])
    assert not plain.gap_matters
    assert math.isnan(plain.restored)
    assert not plain.keep_stored
    assert plain.scales == {}
    assert plain.away(layer()) is None
    with_data = CheckContext([layer(), layer("b", var=wide(-1, 1))], data=data(gap=Comparison()))
    assert with_data.damaged == {"b"}
    assert with_data.away(layer("b")) is None
    away = with_data.away(layer(mean=wide(1, 1 + 2**0.5)))
    assert away is not None
    torch.testing.assert_close(away, wide(0, 1), atol=1e-6, rtol=1e-6)
    single = data(by_batch={"a": [stream(wide(5, 5), wide(0, 0), 1, 1)]})
    away = CheckContext([layer()], data=single).away(layer())
    assert away is not None
    assert away.tolist() == [0, 0], "one value has no variance"


def test_ours_frozen_by_half_is_seen_too() -> None:
    model = nn.Sequential(nn.Linear(2, 2), normscope.BatchNorm1d(2))
    model[1].requires_grad_(False)
    assert one("NS014", case(layer("1", module=model[1]), subject=model)).layer == "1"


def test_a_stored_variance_of_zero_has_a_ratio() -> None:
    finding = one("NS003", case(layer(var=wide(0, 2)), data=data(), matters=True))
    assert finding.facts["ratio"] == in_digits((1e-12 / 2) ** 0.5)
    constant = data(by_batch={"a": [stream(wide(1, 1), wide(0, 2))]})
    finding = one("NS003", case(layer(), data=constant, matters=True))
    assert finding.facts["ratio"] == in_digits((2 / 1e-12) ** 0.5)


def attributed(**more: Any) -> Any:
    """An attribution whose answers are what it was asked to override."""
    facts = {
        "target": {"a": ("mean", "var"), "b": ("other", "other")}, "train": "train",
        "eval": "eval", "answers": lambda over: over, "by_domain": lambda: "by domain",
    }  # fmt: skip
    return SimpleNamespace(**{**facts, **more})


def test_what_is_fixed_to_measure_a_cause() -> None:
    of = case(layer(), attribution=attributed())

    def fixed(code: str, of: Any) -> Any:
        return CHECKS[code]().fixed(of, ("a",))

    for code, expected in (
        ("NS003", ("stale", {"a": ("mean", "var")}, frozenset())), ("NS017", ("reused", {}, {"a"})),
    ):  # fmt: skip
        name, over = fixed(code, of)
        assert (name, over.stored, over.by_batch) == expected
    assert fixed("NS021", of) == ("domains", "by domain")
    for change, answers in ((0.0011, "train"), (0.0009, "eval")):
        moved = attributed(changes=lambda answers, change=change: change)
        assert fixed("NS001", case(layer(), attribution=moved)) == (
            "mode",
            answers,
        )
    for code in ("NS007", "NS010", "NS004", "NS006"):
        assert fixed(code, of) is None, "no cause, or no other eps was found"
    for code in ("NS001", "NS002", "NS003", "NS006"):
        assert fixed(code, case(layer())) is None
