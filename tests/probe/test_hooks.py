"""Hooks around forwards: what they are called with, what they pass over, and that they go."""

from typing import Any

import torch
from torch import Tensor, nn

from normscope.probe.hooks import attach

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Picks(nn.Module):
    """Returns what it is told to."""

    def forward(self, x: Any = None, other: Any = None) -> Any:
        return other if other is not None else x


def test_inputs_and_outputs_are_told_by_name_and_detached() -> None:
    layers: Any = {"a": nn.Linear(3, 2), "b": nn.Linear(2, 2)}
    seen: list[tuple[Any, ...]] = []
    hooks = attach(
        layers,
        lambda name, module, x: seen.append((name, module, x)),
        lambda name, y: seen.append((name, y)),
    )
    y = layers["b"](layers["a"](X))
    assert [entry[0] for entry in seen] == ["a", "a", "b", "b"]
    assert seen[0][1] is layers["a"]
    assert seen[0][2].data_ptr() == X.data_ptr(), "a view, no copy"
    assert torch.equal(seen[1][1], seen[2][2])
    assert torch.equal(seen[3][1], y)
    assert y.requires_grad
    assert not any(entry[-1].requires_grad for entry in seen)
    hooks.close()
    layers["a"](X)
    assert len(seen) == 4
    for module in layers.values():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_what_is_no_table_of_numbers_is_passed_over() -> None:
    seen: list[str] = []

    def told(layers: dict[str, nn.Module], which: str) -> list[str]:
        seen.clear()
        with attach(
            layers,
            (lambda name, module, x: seen.append("in")) if which != "after" else None,
            (lambda name, y: seen.append("out")) if which != "before" else None,
        ):
            module = layers["m"]
            module(X)
            module(X[0])
            module(X, other="text")
            module("text", other=X)
            module(x=X)
            module()
            module(X, other=torch.tensor(1.0))
        return list(seen)

    layers: dict[str, nn.Module] = {"m": Picks()}
    assert told(layers, "both") == ["in", "out", "in", "out", "out", "in"]
    assert told(layers, "before") == ["in"] * 3
    assert told(layers, "after") == ["out"] * 3
    assert not layers["m"]._forward_hooks
    assert not layers["m"]._forward_pre_hooks


def test_one_side_alone_leaves_no_hook_on_the_other() -> None:
    layer = nn.Linear(3, 2)

    def ignore(*args: Tensor) -> None:
        return None

    with attach({"m": layer}, None, ignore):
        assert (len(layer._forward_pre_hooks), len(layer._forward_hooks)) == (0, 1)
    with attach({"m": layer}, ignore, None):
        assert (len(layer._forward_pre_hooks), len(layer._forward_hooks)) == (1, 0)
