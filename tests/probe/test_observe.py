"""What a watcher is told of each call: its number, condition, mask, and what activates it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normscope
from normscope import probe
from normscope.probe import Call
from normscope.probe.observe import SIGNATURE, observe

X = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))


class Told:
    """Keeps what is told, in order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.said: list[tuple[str, ...]] = []
        self.outputs: list[Tensor] = []
        self.given: list[tuple[str, str, Tensor | None]] = []

    def normed(self, call: Call, before: Tensor, after: Tensor) -> None:
        self.calls.append(call)
        self.said.append((call.name,))
        self.outputs.append(after.clone())

    def activated(self, call: Call, activation: str, after: Tensor) -> None:
        self.said.append((call.name, activation))
        self.outputs.append(after.clone())

    def preceded(self, call: Call, activation: str, given: Tensor | None) -> None:
        self.given.append((call.name, activation, None if given is None else given.clone()))


def watched(model: nn.Module, *runs: Callable[[Any], Any], preceded: bool = False) -> Told:
    told = Told()
    before = told.preceded if preceded else None
    with torch.no_grad(), observe(model, probe.find_norms(model), told, preceded=before):
        for run in runs:
            run(model)
    return told


def test_a_mask_is_known_however_it_is_given() -> None:
    norm, mask = normscope.BatchNorm1d(3), torch.ones(6).bool()
    told = watched(
        norm, lambda m: m(X), lambda m: m(X, None, mask), lambda m: m(X, mask=mask),
        lambda m: m(input=X, mask=None),
    )  # fmt: skip
    assert [call.masked for call in told.calls] == [False, True, True, False]
    assert [call.condition for call in told.calls] == [None] * 4
    assert [call.index for call in told.calls] == [0] * 4, "each is a forward of its own"
    layer = normscope.ConditionalBatchNorm1d(3, 2)
    ids = torch.tensor([0, 1] * 3)
    told = watched(layer, lambda m: m(X, ids, mask), lambda m: m(X, ids))
    assert [call.masked for call in told.calls] == [True, False]
    assert all(call.condition is ids and call.module is layer for call in told.calls)


def test_calls_of_a_forward_are_numbered_layer_by_layer() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Any:
            return self.a(F.relu(self.b(self.a(self.a(x)))))

    model = Model()
    told = watched(model, lambda m: m(X), lambda m: m(X))
    names = [("a",), ("a#2",), ("b",), ("b", "relu"), ("a#3",)]
    assert told.said == names * 2
    assert Call("a", 1, model, None).name == "a#2"
    assert not Call("a", 1, model, None).masked


def test_of_a_residual_the_sum_is_not_the_layer() -> None:
    plain = nn.BatchNorm1d(3).eval()
    assert plain.running_mean is not None
    plain.running_mean.fill_(0.5)
    for act in (None, "relu"):
        norm = normscope.BatchNorm1d(3, act=act).eval()
        norm.load_state_dict(plain.state_dict())
        told = watched(norm, lambda m: m(X, X), lambda m: m(X, residual=X), lambda m: m(X))
        for output in told.outputs[:3]:
            torch.testing.assert_close(output, plain(X))
        names = [("BatchNorm1d",)] * 3
        assert told.said == (names if act is None else [*names, ("BatchNorm1d", "relu")])
        if act:
            torch.testing.assert_close(told.outputs[3], plain(X).relu())
    frozen = normscope.FrozenBatchNorm1d(3, act="silu")
    told = watched(frozen, lambda m: m(X))
    assert told.said == [("FrozenBatchNorm1d",), ("FrozenBatchNorm1d", "silu")]
    torch.testing.assert_close(told.outputs[1], F.silu(told.outputs[0]))


class Swish(nn.Module):
    """An activation of somebody's own, of two functions."""

    def forward(self, x: Tensor) -> Any:
        return x * torch.sigmoid(x)


class MyRelu(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return torch.relu(x)


def behind(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm1d(3), *parts)


def test_an_activation_module_is_one_activation_by_the_name_of_what_it_does() -> None:
    for part, name in ((Swish(), "swish"), (MyRelu(), "relu"), (nn.Hardswish(), "hardswish")):
        model = behind(part, nn.Tanh())
        told = watched(model, lambda m: m(X))
        assert told.said == [("0",), ("0", name)]
        torch.testing.assert_close(told.outputs[1], part(told.outputs[0]))


def test_what_holds_other_parts_is_no_activation_by_its_name() -> None:
    class ReluBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            return torch.tanh(x) + self.linear(x)

    model = behind(ReluBlock())
    assert watched(model, lambda m: m(X)).said == [("0",), ("0", "tanh")]


def test_a_copy_of_the_output_is_known_by_its_values() -> None:
    big = torch.randn(5, 3, 50, generator=torch.Generator().manual_seed(1))
    assert big.numel() > 2 * SIGNATURE
    copies: dict[str, Callable[[Tensor], Tensor]] = {
        "clone": lambda y: y.clone(),
        "detach": lambda y: y.detach().clone(),
        "memory": lambda y: y.transpose(0, 2).contiguous().transpose(0, 2),
    }

    class Copying(nn.Module):
        def __init__(self, copy: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.norm, self.copy = nn.BatchNorm1d(3), copy

        def forward(self, x: Tensor) -> Any:
            return torch.relu(self.copy(self.norm(x)))

    for copy in copies.values():
        model = Copying(copy)
        assert watched(model, lambda m: m(big)).said == [("norm",), ("norm", "relu")]
    for other in (lambda y: y + 1, lambda y: y[:4], lambda y: y.clone().flatten(1)):
        model = Copying(other)
        assert watched(model, lambda m: m(big)).said == [("norm",)]

    class Between(nn.Module):
        """Another layer runs between the output and its copy."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Any:
            y = self.a(x)
            self.b(2 * x + 1).add_(1)
            return torch.relu(y)

    between = Between()
    assert watched(between, lambda m: m(big)).said == [("a",), ("b",), ("a", "relu")]


def test_an_output_that_was_written_to_is_another() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Any:
            return torch.relu(self.norm(x).mul_(2))

    model: nn.Module = Writing()
    assert watched(model, lambda m: m(X)).said == [("norm",)]
    with torch.inference_mode():
        model = behind(nn.ReLU())
        told = watched(model, lambda m: m(X))
    assert told.said == [("0",), ("0", "relu")], "inference tensors count no versions"


def test_what_an_activation_before_a_norm_was_given_is_told_from_the_second_forward_on() -> None:
    class Model(nn.Module):
        """Two activations, of which the second feeds a layer."""

        def __init__(self) -> None:
            super().__init__()
            self.act: Any = nn.ELU()
            self.norm, self.next = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Any:
            torch.sigmoid(x)
            return self.next(F.relu(self.norm(self.act(x + 1))))

    for act, name in ((nn.ELU(), "elu"), (torch.tanh, "tanh"), (F.hardtanh_, "hardtanh")):
        model = Model()
        del model.act
        model.act = act
        told = watched(model, *3 * [lambda m: m(X)], preceded=True)
        first, *rest = told.given
        assert first == ("norm", name, None)
        for call, activation, given in rest:
            assert (call, activation) == ("norm", name)
            torch.testing.assert_close(given, X + 1)
        assert len(rest) == 2
        assert told.said[:4] == [("norm",), ("norm", "relu"), ("next",), ("norm",)]
    assert not watched(model, lambda m: m(X)).given


def test_between_an_activation_and_the_norm_lies_nothing() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Any:
            return self.norm(torch.relu(x) + 1)

    model = Model()
    assert not watched(model, lambda m: m(X), lambda m: m(X), preceded=True).given


def test_nothing_stays_behind_an_observation() -> None:
    model = behind(nn.ReLU(), nn.BatchNorm1d(3), Swish())
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    told = watched(model, lambda m: m(X))
    assert len(told.said) == 4
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    model(X)
    assert len(told.said) == 4
    skipped = nn.Sequential(nn.InstanceNorm1d(3), nn.ReLU())
    assert watched(skipped, lambda m: m(X)).said == [], "a layer that is skipped is not watched"


def test_a_share_of_its_own_statistics_stays_when_an_activation_is_taken_apart() -> None:
    norm = normscope.EvalNorm1d(3, act="relu", own_weight=0.5).eval()
    told = watched(norm, lambda m: m(X))
    alone = normscope.EvalNorm1d(3, own_weight=0.5).eval()
    torch.testing.assert_close(told.outputs[0], alone(X))
    torch.testing.assert_close(told.outputs[1], norm(X))
    assert norm.act == "relu"


def test_a_forward_that_failed_leaves_nothing_to_the_next() -> None:
    def fails(model: Any) -> None:
        with pytest.raises((RuntimeError, ValueError)):
            model(torch.ones(6, 5, 4))

    model = behind(nn.ReLU())
    told = watched(model, lambda m: m(X), fails, lambda m: m(X))
    assert told.said == 2 * [("0",), ("0", "relu")]
    assert [call.index for call in told.calls] == [0, 0]
