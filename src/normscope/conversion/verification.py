"""Compare a model before and after a conversion: outputs, gradients, training steps, buffers."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from normscope.errors import InputError, ModelError
from normscope.layers.conditional import condition
from normscope.probe.compare import largest, largest_gap
from normscope.probe.load import reason
from normscope.probe.random import kept_generators
from normscope.records import Comparison

Level = Literal["always", "eval", "never"]  # where before and after compute the same
LEVELS: tuple[Level, ...] = get_args(Level)
LR = 0.01
MOST = 1e-3  # a larger difference is never put down to rounding


@dataclass(frozen=True)
class Verification:
    """All comparisons of a conversion.

    Attributes:
        comparisons: in the order in which they were made.
        dtype: of the arithmetic.
    """

    comparisons: tuple[Comparison, ...]
    dtype: str

    @property
    def ok(self) -> bool:
        """Whether all that must be equal is equal."""
        return all(comparison.ok for comparison in self.comparisons)

    def __repr__(self) -> str:
        lines = [f"{'equal' if self.ok else 'NOT equal'}, computed in {self.dtype}"]
        for found in self.comparisons:
            limit = "may differ" if found.allowed is None else f"allowed {found.allowed:.1e}"
            lines.append(f"{found.what} in {found.mode}(): {found.difference:.1e}, {limit}")
        return "\n".join(lines)


def verified(
    before: nn.Module,
    after: nn.Module,
    inputs: tuple[Any, ...],
    *,
    level: Level,
    double: bool,
    steps: int,
) -> Verification:
    """Run both models, which are used up, on the same inputs; see `Conversion.verify`."""
    if not inputs or steps < 1:
        raise InputError("verify needs a batch as the model takes it, and at least one step")
    if double:
        before, after = before.double(), after.double()
        inputs = tree_map(lambda x: x.double() if _floats(x) else x, inputs)
    dtype = next((p.dtype for p in before.parameters()), torch.float32)
    eps = torch.finfo(dtype).eps
    # how far rounding alone drives the model from itself: some amplify it step by step
    with kept_generators(0):
        moved = tree_map(partial(_nudged, eps=eps), inputs)
    nudged = _runs(copy.deepcopy(before), moved, steps)
    old, new = _runs(before, inputs, steps), _runs(after, inputs, steps)
    comparisons = []
    for mode, what in old:
        must = level == "always" or (level == "eval" and mode == "eval")
        rounding = _difference(old[mode, what], nudged[mode, what])
        allowed = min(max(1e-9 if double else 100 * eps, 100 * rounding), MOST)
        difference = _difference(old[mode, what], new[mode, what])
        comparisons.append(Comparison(what, mode, difference, allowed if must else None))
    return Verification(tuple(comparisons), str(dtype).removeprefix("torch."))


Run = dict[tuple[Literal["eval", "train"], str], Mapping[str, Tensor]]


def _runs(model: nn.Module, inputs: tuple[Any, ...], steps: int) -> Run:
    with kept_generators(0):
        model.eval()
        model.zero_grad()
        run: Run = {("eval", "outputs"): _backward(model, inputs)}
        run["eval", "gradients"] = _gradients(model)
        model.train()
        for _ in range(steps):
            model.zero_grad()
            run["train", "outputs"] = _backward(model, inputs)
            run["train", "gradients"] = _gradients(model)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad, alpha=LR)
        run["train", "parameters"] = dict(model.named_parameters())
        run["train", "buffers"] = dict(model.named_buffers())
    return run


def _backward(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Run a backward pass from random cotangents; return the outputs by place."""
    leaves = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    samples = next((x.shape[0] for x in leaves if x.dim()), 1)
    counts: list[Any] = [m.num_conditions for m in model.modules() if hasattr(m, "num_conditions")]
    ids = torch.arange(samples) % min(counts, default=1)
    try:
        with condition(ids):
            outputs = [y for y in tree_leaves(model(*inputs)) if _floats(y)]
        loss = sum((y * torch.randn_like(y)).mean() for y in outputs)
        if isinstance(loss, Tensor) and loss.requires_grad:
            loss.backward()
    except Exception as problem:
        mode = "train" if model.training else "eval"
        raise ModelError(
            f"{type(model).__name__} cannot be verified: in {mode}() it fails on these inputs, "
            f"{reason(problem)}"
        ) from problem
    return {str(place): y.detach() for place, y in enumerate(outputs)}


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return gradients by name; K rows of one layer become their sum, that of one row for all."""
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for name, layer in model.named_modules():
        for key in ("weight", "bias"):
            place = f"{name}.{key}".lstrip(".")
            if place in found and getattr(layer, "num_conditions", 1) > 1:
                found[place] = found[place].reshape(-1, found[place].shape[-1]).sum(0)
    return found


def _difference(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> float:
    """Return the largest relative difference of what both have in the same shape."""
    sizes = {n: largest(a) for n, a in old.items() if _floats(a)}
    # a gradient that is zero but for rounding is measured by its neighbours, not by itself
    least = max(1e-3 * max(sizes.values(), default=0.0), 1e-30)
    return max(
        (
            largest_gap(a, new[name], max(sizes.get(name, 1.0), least))
            for name, a in old.items()
            if name in new and a.shape == new[name].shape
        ),
        default=0.0,
    )


def _nudged(x: Any, eps: float) -> Any:
    """Move values by one unit in the last place, up or down."""
    return x * (1 + eps * torch.empty_like(x).bernoulli_().mul_(2).sub_(1)) if _floats(x) else x


def _floats(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()
