"""What a layer does to each channel in eval mode: one affine map, one per condition or sample."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normscope.probe import Call, eps_of
from normscope.records import MapKind


@dataclass(frozen=True, eq=False)
class ChannelMap:
    """z = (x - mean) / sqrt(var + eps),  y = gamma z + beta; float64, (C,) or (N, C) per sample.

    All of it lies on the CPU.
    Where every sample has statistics of its own, mean and var are NaN.
    """

    mean: Tensor
    var: Tensor
    gamma: Tensor
    beta: Tensor
    eps: float

    @property
    def rstd(self) -> Tensor:
        """1 / sqrt(var + eps)."""
        # a checkpoint may hold a variance below zero; the layer itself takes it for zero
        return (self.var.clamp(min=0) + self.eps).rsqrt()

    @property
    def inverse_gamma(self) -> Tensor:
        """1 / gamma, by which z is made of y - beta; 0 where gamma is 0 and z is not known."""
        return torch.where(self.gamma == 0, 0.0, 1 / self.gamma)


@dataclass(frozen=True, eq=False)
class CallSlice:
    """The images of one call that are reported together.

    Attributes:
        name: the call's name; with "[condition 0]" for the images of one condition.
        rows: which images; None for all.
        used: the map that each image went through.
        shown: the one to report, (C,).
        maps: whether the images met one map per channel.
        axis: of the channels.
    """

    name: str
    rows: Tensor | None
    used: ChannelMap
    shown: ChannelMap
    maps: MapKind = "one"
    axis: int = 1


def slices(call: Call) -> Iterator[CallSlice]:
    """Yield the whole call; for a conditional layer also each condition by itself.

    Within one condition the layer is one affine map per channel and the invariance holds. Over
    all conditions together it need not: aligning the conditions is what such a layer is for. That
    slice reports the pooled statistics and the mean gamma and beta of `pooled()`.
    """
    state = _tables(call.module)
    if all(t.dim() == 1 for t in state.values()):
        own = _map(call.module, state)
        yield CallSlice(call.name, None, own, own)
        return
    if call.condition is None and isinstance(call.module.missing, int):
        own = _map(call.module, _row(state, call.module.missing))
        yield CallSlice(call.name, None, own, own)
        return
    pooled = {name: t.double().cpu() for name, t in call.module.pooled().items()}  # type: ignore[operator]
    shown = _map(call.module, pooled)
    if call.condition is None:  # missing="pooled": the layer used just that map
        yield CallSlice(call.name, None, shown, shown)
        return
    ids = call.condition.cpu()
    used = _map(call.module, _row(state, ids))
    yield CallSlice(call.name, None, used, shown, "per_condition")
    for condition in ids.unique().tolist():
        own = _map(call.module, _row(state, condition))
        yield CallSlice(f"{call.name}[condition {condition}]", ids == condition, own, own)


def _tables(module: nn.Module) -> dict[str, Tensor]:
    names = ("running_mean", "running_var", "weight", "bias")
    values = {name: getattr(module, name, None) for name in names}
    return {name: t.detach().double().cpu() for name, t in values.items() if isinstance(t, Tensor)}


def _row(state: dict[str, Tensor], condition: int | Tensor) -> dict[str, Tensor]:
    """Take the rows of one condition, or of each sample's, where a table has them."""
    return {name: t[condition] if t.dim() == 2 else t for name, t in state.items()}


def _map(module: nn.Module, state: dict[str, Tensor]) -> ChannelMap:
    mean, var = state["running_mean"], state["running_var"]
    eps = eps_of(module)
    assert eps is not None, "a layer without is not followed"
    return ChannelMap(
        mean,
        var,
        state.get("weight", torch.ones_like(mean)),
        state.get("bias", torch.zeros_like(mean)),
        eps,
    )
