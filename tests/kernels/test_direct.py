"""The function that Python calls without torch.ops: the same bits, and None for what is not plain."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import profile

import normscope
from normscope import functional
from normscope.kernels import cpu
from normscope.kernels.cpu import build

Call = Callable[..., Tensor | None]


@pytest.fixture(scope="module")
def direct() -> Call:
    assert cpu.operator("batch_norm") is not None
    found = build.direct("batch_norm")
    if found is None:
        pytest.skip("the library was built without Python's headers")
    return found


def arguments(**other: Any) -> dict[str, Any]:
    """Arguments of a call in the operator's order."""
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "x": torch.randn(6, 3, requires_grad=True),
        "running_mean": torch.zeros(3),
        "running_var": torch.ones(3),
        "weight": nn.Parameter(torch.rand(3)),
        "bias": nn.Parameter(torch.rand(3)),
        "from_batch": True,
        "update": True,
        "momentum": 0.1,
        "eps": 1e-5,
        "tracked": torch.tensor(0),
        "groups": None,
        "num_groups": 1,
        "mask": None,
        "act": 1,
        "residual": torch.randn(6, 3, requires_grad=True),
        "min_count": 2,
    }
    return given | other


CALLS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"from_batch": False, "update": False, "tracked": None},
    {"weight": None, "bias": None, "residual": None, "act": 0},
    {"running_mean": None, "running_var": None, "update": False, "tracked": None},
    {"groups": torch.tensor([0, 1, 0, 1, 1, 0]), "num_groups": 2, "act": 3},
    {"mask": torch.tensor([[True], [False], [True], [True], [True], [True]])},
]


@pytest.mark.parametrize("other", CALLS)
def test_it_gives_the_bits_of_the_operator(direct: Call, other: dict[str, Any]) -> None:
    found = []
    for call in (direct, cpu.operator("batch_norm")):
        assert call is not None
        given = arguments(**other)
        y = call(*given.values())
        assert y is not None
        y.backward(torch.linspace(-1, 1, 18).reshape(6, 3))
        tensors = [value for value in given.values() if isinstance(value, Tensor)]
        found.append([y, *tensors, *(t.grad for t in tensors if t.grad is not None)])
    assert len(found[0]) == len(found[1])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class Watcher(Tensor):
    """A subclass that sees every call."""


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.randn(6, 3).as_subclass(Watcher)},
        {"weight": torch.rand(3).as_subclass(Watcher)},
        {"x": [[1.0, 2.0, 3.0]]},
        {"momentum": "0.1"},
        {"momentum": 1},
        {"eps": torch.tensor(1e-5)},
        {"from_batch": 1},
        {"num_groups": 1.0},
        {"act": -1},
        {"x": torch.randn(6, 4)},
    ],
)
def test_it_leaves_what_is_not_plain(direct: Call, other: dict[str, Any]) -> None:
    given = arguments(**other)
    assert direct(*given.values()) is None
    assert torch.equal(given["running_mean"], torch.zeros(3))
    assert int(given["tracked"]) == 0


def test_it_leaves_calls_with_another_number_of_arguments(direct: Call) -> None:
    assert direct() is None
    assert direct(*[None] * 17) is None


def test_plain_calls_of_layers_reach_it_and_profiles_name_them(direct: Call) -> None:
    x = torch.randn(6, 3)
    assert functional.plain_call(x) is direct
    layer = normscope.BatchNorm1d(3)
    with profile(acc_events=True) as seen:
        layer(x)
    assert "normscope::batch_norm" in {event.name for event in seen.events() or ()}


def test_without_it_the_operator_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(6, 3)
    expected = normscope.BatchNorm1d(3)(x)
    monkeypatch.setattr(build._state, "functions", None)
    monkeypatch.setattr(cpu, "_OPERATORS", {})
    monkeypatch.setattr(cpu, "_DIRECT", {})
    monkeypatch.setattr(cpu, "ready", cpu._DIRECT.get)
    assert cpu.operator("batch_norm") is not None
    assert functional.plain_call(x) is cpu.operator("batch_norm")
    assert torch.equal(normscope.BatchNorm1d(3)(x), expected)


def test_errors_of_torch_pass_through_it(direct: Call) -> None:
    given = arguments()
    y = direct(*given.values())
    assert y is not None
    with torch.no_grad():
        given["x"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
