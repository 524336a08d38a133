"""Linear layers and norms seen as operators: their tensors as the layer holds them, and noise."""

from types import SimpleNamespace
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


def test_every_linear_operator_says_where_its_channels_are() -> None:
    x, w, b = torch.ones(5, 4), torch.ones(4, 3), torch.ones(3)
    aten: Any = torch.ops.aten

    def told(run: Any) -> tuple[str, str, int]:
        calls: list[OperatorCall] = []
        with torch.inference_mode(), Operators({}, calls.append):
            run()
        (call,) = calls
        return call.kind, call.operator, call.axis

    assert told(lambda: aten.mm(x, w)) == ("linear", "aten::mm", -1)
    assert told(lambda: aten.addmm(b, x, w)) == ("linear", "aten::addmm", -1)
    assert told(lambda: aten.linear(x, w.t(), b)) == ("linear", "aten::linear", -1)
    image, kernel = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 1, 1)
    how = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    found = told(lambda: aten.convolution(image, kernel, None, *how))
    assert found == ("linear", "aten::convolution", 1)
    assert told(lambda: aten._convolution(image, kernel, None, *how, *[False] * 4))[2] == 1


def test_what_an_operator_is_told_by_name_counts() -> None:
    x, w, b = torch.ones(5, 4), torch.ones(4, 3), torch.ones(3)
    calls: list[OperatorCall] = []
    with torch.no_grad(), Operators({w.data_ptr(): "layer", b.data_ptr(): "shift"}, calls.append):
        y = torch.addmm(b, x, w, beta=2, alpha=3)
        z = torch.add(x[:, :3], b, alpha=5)
    assert y.tolist() == [[14] * 3] * 5
    assert z.tolist() == [[6] * 3] * 5
    linear, shift = calls
    assert (linear.kind, linear.name, shift.kind, shift.name) == (
        "linear",
        "layer",
        "shift",
        "shift",
    )
    assert torch.equal(linear.tensors["weight"], w.t())
    assert torch.equal(linear.tensors["bias"], b)
    assert linear.before is x
    assert (shift.axis, shift.operator, shift.settings) == (1, "aten::add", {})


def test_a_norm_says_whether_it_trains() -> None:
    aten: Any = torch.ops.aten
    x, weight, bias, mean, var = torch.randn(5, 2), *(torch.ones(2) for _ in range(4))
    runs: dict[str, Any] = {
        "aten::_batch_norm_with_update": lambda: aten._batch_norm_with_update(
            x, weight, bias, mean, var, 0.1, 1e-5
        ),
        "aten::_batch_norm_no_update": lambda: aten._batch_norm_no_update(
            x, weight, bias, mean, var, 0.1, 1e-5
        ),
        "aten::_native_batch_norm_legit_no_training": (
            lambda: aten._native_batch_norm_legit_no_training(x, weight, bias, mean, var, 0.1, 1e-5)
        ),
    }
    for name, run in runs.items():
        calls: list[OperatorCall] = []
        with torch.no_grad(), Operators({mean.data_ptr(): "norm"}, calls.append):
            run()
        call = next(c for c in calls if c.operator == name)
        assert call.settings == {"training": name.endswith("update") and "no" not in name.split(
            "norm")[1], "momentum": 0.1, "eps": 1e-5}, name  # fmt: skip
        assert (call.kind, call.name) == ("norm", "norm")


def test_noise_is_plus_or_minus_one_error_of_the_largest_size() -> None:
    a = torch.tensor([[1.0, -8.0], [1.0, 1.0], [1.0, 2.0]])
    names: dict[int, str] = {}
    noisy = Operators(names, lambda call: None, noise=True)
    exact = a @ torch.eye(2)
    signs: set[float] = set()
    with torch.no_grad(), noisy:
        for _ in range(20):
            off = torch.mm(a, torch.eye(2)).double() - exact
            signs |= set((off / torch.tensor([EPS, 8 * EPS])).flatten().round(decimals=1).tolist())
    assert {-1.0, 1.0} <= signs <= {-1.0, -0.5, 0.0, 0.5, 1.0, -2.0, 2.0}
    endless = torch.tensor([[torch.inf, 1.0], [3.0, -torch.inf], [2.0, 5.0]])
    with torch.no_grad(), Operators(names, lambda call: None, noise=True):
        y = torch.nn.functional.linear(endless.nan_to_num(9, 9, 9), torch.eye(2))
        z = nn.BatchNorm1d(2).eval()(endless)
    assert y.isfinite().all()
    scale = 1 / (1 + 1e-5) ** 0.5
    finite = endless.isfinite()
    torch.testing.assert_close(z[finite], scale * endless[finite], rtol=1e-6, atol=0)
    assert z[~finite].isinf().all()
    with torch.no_grad(), Operators(names, lambda call: None):
        assert torch.equal(torch.mm(a, torch.eye(2)), exact), "none unless it is asked for"


def test_what_is_no_product_per_channel_is_passed_over() -> None:
    x = torch.randn(5, 3)
    weight, single = torch.rand(3) + 1, torch.tensor(2.0)
    names = {weight.data_ptr(): "w", single.data_ptr(): "s"}

    def told(run: Any) -> list[tuple[str, str, int]]:
        calls: list[OperatorCall] = []
        with torch.no_grad(), Operators(names, calls.append):
            run()
        return [(call.kind, call.name, call.axis) for call in calls]

    assert told(lambda: x * weight) == told(lambda: weight * x) == [("scale", "w", 1)]
    assert told(lambda: x[:1] * weight) == [("scale", "w", 1)], "of one sample"
    assert told(lambda: x[:, :1] * single) == [], "no axis of channels"
    assert told(lambda: x * torch.rand(3)) == [], "nobody's"
    assert told(lambda: weight * weight) == [], "no batch"
    assert told(lambda: x * 2) == []
    assert told(lambda: x[:, :1] * weight[:1]) == [("scale", "w", 1)]
    assert told(lambda: torch.ones(3, 5) * weight[:, None]) == [], "along the samples"
    assert told(lambda: x[:0] * weight[:0, None]) == [], "of no values"


def test_an_operator_of_quantised_arithmetic_is_noticed() -> None:
    class Operator:
        def __init__(self, name: str) -> None:
            self._schema = SimpleNamespace(name=name)

        def __call__(self, *args: Any) -> Any:
            return args

    watch = Operators({}, lambda call: None)
    assert not watch.quantised
    for name, seen in (
        ("aten::relu", False), ("my::quantized", False), ("quantized::linear", True),
        ("aten::relu", True),
    ):  # fmt: skip
        assert watch.__torch_dispatch__(Operator(name), (), (1, 2), None) == (1, 2)
        assert watch.quantised is seen
    for name in ("quantized_decomposed::x", "torchao::y"):
        other = Operators({}, lambda call: None)
        other.__torch_dispatch__(Operator(name), ())
        assert other.quantised


def test_tensors_are_named_by_the_module_that_owns_them() -> None:
    inner: Any = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model: Any = nn.Sequential(nn.ModuleDict({"_orig_mod": inner}))
    model.register_buffer("empty", torch.zeros(0))
    model.register_buffer("sparse", torch.eye(2).to_sparse())
    model.register_buffer("meta", torch.ones(2, device="meta"))
    model.register_buffer("own", torch.ones(2))
    model.register_buffer("shared", inner[0].bias.detach())
    found = addresses(model)
    assert found[inner[0].weight.data_ptr()] == "0.0"
    assert found[inner[1].running_mean.data_ptr()] == "0.1"
    assert found[inner[0].bias.data_ptr()] == "0.0", "the first that has it"
    assert found[model.own.data_ptr()] == ""
    assert set(found.values()) == {"0.0", "0.1", ""}
    assert len(found) == 8


def test_a_value_that_is_not_finite_brings_no_noise_to_the_others_of_its_channel() -> None:
    for bad in (torch.nan, torch.inf):
        x = torch.zeros(2, 3)
        x[0, 0] = bad
        layer = nn.Linear(3, 2)
        nn.init.ones_(layer.weight), nn.init.zeros_(layer.bias)
        noisy, _ = seen(layer, x, noise=True)
        assert noisy[1].tolist() == [0, 0]
        assert not noisy[0].isfinite().any()
