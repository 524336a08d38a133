"""Linear layers and norms seen as operators: their tensors as the layer holds them, and noise."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normscope.probe.operators import OperatorCall, Operators, addresses

EPS = torch.finfo(torch.float32).eps


def seen(model: nn.Module, *args: Tensor, noise: bool = False) -> tuple[Any, list[OperatorCall]]:
    calls: list[OperatorCall] = []
    with torch.no_grad(), Operators(addresses(model), calls.append, noise=noise):
        output = model(*args)
    return output, calls


class Product(nn.Module):
    """A linear map without a bias, as torch's own operator."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.linear.weight.t())


@pytest.mark.parametrize(
    ("model", "name", "bias"),
    [
        (nn.Sequential(nn.Linear(4, 3)), "0", True),
        (Product(), "linear", False),
        (nn.Sequential(nn.Linear(4, 3, bias=False)), "0", False),
    ],
)
def test_weights_are_told_as_the_layer_holds_them(model: nn.Module, name: str, bias: bool) -> None:
    x = torch.randn(5, 4)
    output, calls = seen(model, x)
    (call,) = [c for c in calls if c.kind == "linear"]
    layer: Any = model.get_submodule(name)
    assert (call.name, call.kind) == (name, "linear")
    assert torch.equal(call.tensors["weight"], layer.weight), "(outputs, inputs)"
    assert ("bias" in call.tensors) is bias
    assert torch.equal(call.before, x)
    assert torch.equal(call.after, output)


def test_a_norm_is_told_with_the_statistics_that_it_had() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(4, eps=1e-3, momentum=0.3))
    _, (call,) = seen(model, torch.randn(5, 4) + 3)
    assert (call.kind, call.name, call.axis) == ("norm", "0", 1)
    assert call.tensors["running_mean"].tolist() == [0, 0, 0, 0]
    assert (model[0].running_mean > 0.3).all()
    assert call.settings == {"training": True, "momentum": 0.3, "eps": 1e-3}


@pytest.mark.parametrize(
    ("model", "args"),
    [
        (nn.Conv2d(2, 3, 1), [torch.randn(5, 2, 4, 4)]),
        (nn.Linear(4, 3), [torch.randn(5, 4)]),
        (nn.BatchNorm1d(4).eval(), [torch.randn(5, 4)]),
    ],
)
def test_noise_is_one_rounding_error_of_the_channels_largest_value(
    model: nn.Module, args: list[Tensor]
) -> None:
    with torch.no_grad():
        exact = model(*args)
    noisy, _ = seen(model, *args, noise=True)
    axes = [d for d in range(exact.dim()) if d != (exact.dim() - 1 if exact.dim() == 2 else 1)]
    size = exact.abs().amax(axes, keepdim=True) * EPS
    off = (noisy - exact).abs()
    assert bool(off.any())
    assert bool((off <= 1.6 * size).all()), "one rounding error, rounded once more"
    quiet, _ = seen(model, *args)
    assert torch.equal(quiet, exact)


class Multiplies(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.mm(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.ones(3, 2, dtype=torch.long), torch.ones(2, 4, dtype=torch.long)),
        (torch.ones(0, 2), torch.ones(2, 4)),
        (torch.ones(3, 2), torch.ones(2, 0)),
    ],
    ids=["whole numbers", "no rows", "no columns"],
)
def test_what_has_no_rounding_has_no_noise(a: Tensor, b: Tensor) -> None:
    output, calls = seen(Multiplies(), a, b, noise=True)
    assert torch.equal(output, a @ b)
    assert len(calls) == 1


def test_a_norm_that_became_a_product_and_a_sum_is_seen_by_its_tensors() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.rand(1, 3, 1, 1) + 0.5)
            self.register_buffer("shift", torch.rand(1, 3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.shift + x * self.scale * 2

    model: Any = nn.Sequential(Folded())
    _, calls = seen(model, torch.randn(5, 3, 4, 4))
    assert [(call.kind, call.name) for call in calls] == [("scale", "0"), ("shift", "0")]
    assert torch.equal(calls[0].tensors["weight"], model[0].scale.flatten())
    assert torch.equal(calls[1].tensors["bias"], model[0].shift.flatten())


def test_what_is_no_layer_runs_as_it_was_called_and_what_nobody_owns_has_no_name() -> None:
    class Functions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.linear(x, torch.ones(2, 4))
            return y.sum(0, dtype=torch.float64)

    output, calls = seen(Functions(), torch.ones(5, 4))
    assert (output.dtype, output.tolist()) == (torch.float64, [20, 20])
    assert [(call.kind, call.name) for call in calls] == [("linear", "")]
