"""Folding where torch.fx cannot trace: a run shows which layer runs on whose output."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normscope
from normscope.errors import ModelError
from normscope.folding import fold

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Block(nn.Module):
    """A pair in a forward that asks for values, which no trace can follow."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return F.relu(y) if float(y.detach().max()) > 0 else y


class Net(nn.Module):
    def __init__(self, block: nn.Module | None = None) -> None:
        super().__init__()
        self.first = Block(3, 5)
        self.second = Block(5, 4) if block is None else block
        self.bn = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, pixels: Tensor, scale: Tensor | None = None) -> dict[str, Tensor]:
        if pixels is None or pixels.shape[1] != 3:
            raise ValueError("give pixels with three channels")
        y = self.second(self.first(pixels))
        y = y if isinstance(y, Tensor) else y[0]
        y = y.mean((2, 3)) if scale is None else y.mean((2, 3)) * scale
        return {"logits": self.head(self.bn(y))}


def trained(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    model = model.double().train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn_like(X) * 2 + 1)
    return model.eval()


@pytest.mark.parametrize(
    "inputs",
    [X, (X, torch.tensor(2.0)), {"pixels": X}, {"pixels": X, "scale": torch.tensor(2.0)}],
    ids=["tensor", "tuple", "dict", "dict of two"],
)
def test_a_run_shows_what_a_trace_cannot(inputs: Any) -> None:
    model = trained(Net())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match="torch.fx cannot trace"):
        fold(model)
    folded = fold(model, inputs=inputs)
    assert dict(folded.folded) == {
        "first.norm": "first.conv", "second.norm": "second.conv", "bn": "head",
    }  # fmt: skip
    assert folded.left == ()
    torch.testing.assert_close(folded.model(X)["logits"], model(X)["logits"], rtol=1e-9, atol=1e-9)
    assert folded.verify(inputs).difference < 1e-12
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not any(m._forward_hooks or "forward" in vars(m) for m in folded.model.modules())


class SeenElsewhere(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return self.norm(y) + 0.1 * y if float(y.detach().max()) > 0 else y


class InPlace(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return self.norm(y.relu_()) if float(y.detach().max()) > 0 else y


class Returned(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return (self.norm(y), y) if float(y.detach().max()) > 0 else y


class Twice(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.conv(x))
        return self.norm(self.conv(x.flip(0))) + y if float(y.detach().max()) > 0 else y


class ByItself(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.conv(x))
        return y * self.conv.weight.mean() if float(y.detach().max()) > 0 else y


class Between(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(2 * self.conv(x))
        return F.relu(y) if float(y.detach().max()) > 0 else y


class Swapped(Block):
    """A keyword, so what it takes is not its input alone."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(input=self.conv(x))
        return F.relu(y) if float(y.detach().max()) > 0 else y


class Unused(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(y) if float(y.detach().max()) > 0 else self.norm(y)


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (SeenElsewhere, "used elsewhere too"),
        (InPlace, "used elsewhere too"),
        (Twice, "runs 2 times"),
        (ByItself, "uses a tensor of 'second.conv' by itself"),
        (Between, "no linear layer is there"),
        (Swapped, "called with more than its input"),
        (Unused, "does not run it on these inputs"),
    ],
)
def test_a_norm_stays_where_something_else_sees_what_lies_between(
    block: Callable[[int, int], nn.Module], why: str
) -> None:
    model = trained(Net(block(5, 4)))
    folded = fold(model, inputs=X)
    assert set(dict(folded.folded)) == {"first.norm", "bn"}
    assert why in dict(folded.left)["second.norm"]
    torch.testing.assert_close(folded.model(X)["logits"], model(X)["logits"], rtol=1e-9, atol=1e-9)


def test_what_the_model_returns_is_seen() -> None:
    class Two(Net):
        def forward(self, pixels: Tensor, scale: Tensor | None = None) -> Any:
            y, raw = self.second(self.first(pixels))
            return self.head(self.bn(y.mean((2, 3)))), raw

    folded = fold(trained(Two(Returned(5, 4))), inputs=X)
    assert "used elsewhere too" in dict(folded.left)["second.norm"]


def test_a_hook_between_and_shared_weights_are_seen() -> None:
    model = trained(Net())
    model.first.conv.register_forward_hook(lambda module, args, output: output + 1)
    model.second.conv.weight = nn.Parameter(torch.randn(4, 5, 3, 3).double())
    model.other = nn.Conv2d(5, 4, 3).double()
    model.other.weight = model.second.conv.weight
    left = dict(fold(model, inputs=X).left)
    assert "has a hook" in left["first.norm"]
    assert "shares a parameter" in left["second.norm"]


def test_parts_that_can_be_traced_are_traced() -> None:
    inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    model = trained(nn.Sequential(Block(3, 4), inner))
    assert dict(fold(model).left).keys() == {"0.norm"}
    assert dict(fold(model, inputs=X).folded) == {"0.norm": "0.conv", "1.1": "1.0"}


def test_inputs_on_which_it_fails_are_named() -> None:
    with pytest.raises(ModelError, match="Net fails on these inputs: ValueError: give pixels"):
        fold(trained(Net()), inputs=X[:, :2])
    done = normscope.fold(trained(Net()), "affine", inputs=X)
    assert not done.left
