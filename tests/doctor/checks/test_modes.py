"""How layers are set: the whole answer of each check on numbers made by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import normscope
from normscope.doctor.checks import CHECKS
from tests.doctor.checks.cases import case, data, found, layer, one, skipped, stream, told, wide


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
    model[2].add_module("inside", nn.Linear(1, 1))  # what is its own counts alone
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


def test_ours_frozen_by_half_is_seen_too() -> None:
    model = nn.Sequential(nn.Linear(2, 2), normscope.BatchNorm1d(2))
    model[1].requires_grad_(False)
    assert one("NS014", case(layer("1", module=model[1]), subject=model)).layer == "1"


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
    model = twins(0.05)
    model["online"][0].bias.requires_grad_(False)
    assert found("NS014", case(layer("target.1", module=model["target"][1]), subject=model)) == []
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
