"""The arguments of the operator as named records, the same on every device."""

from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """Values and the partition over which they are standardised.

    Attributes:
        x: (N, C, *S).
        groups: (N,) int64 in 0..K-1; None: all samples are one group. They choose the rows of
            every (K, C) table.
        num_groups: K, groups with statistics of their own; 1 leaves `groups` to the affine rows.
        mask: (N, 1, *S) bool, True where a value counts; None: every value does.
    """

    x: Tensor
    groups: Tensor | None = None
    num_groups: int = 1
    mask: Tensor | None = None

    @property
    def statistics_groups(self) -> Tensor | None:
        """The groups, where each has statistics of its own."""
        return self.groups if self.num_groups > 1 else None


class Affine(NamedTuple):
    """Scale and shift, (C,), (1, C) or (R, C), one row per group."""

    weight: Tensor | None = None
    bias: Tensor | None = None

    def as_rows(self) -> "Affine":
        """Both as (1 or R, C)."""
        return Affine(*(t.unsqueeze(0) if t is not None and t.dim() == 1 else t for t in self))

    @property
    def num_rows(self) -> int:
        """R, or 1."""
        return max([1, *(t.shape[0] for t in self if t is not None and t.dim() == 2)])


class Epilogue(NamedTuple):
    """What follows the standardised values: act(xhat * weight + bias + residual).

    Attributes:
        affine: scale and shift.
        residual: as x; None: nothing is added.
        act: a key of `reference.ACTIVATIONS`; None: no activation.
    """

    affine: Affine = Affine()
    residual: Tensor | None = None
    act: str | None = None


class Statistics(NamedTuple):
    """What standardises, and what backward needs of it.

    Attributes:
        mean, rstd: (1 or K, C) float64.
        mean_g, mean_g_xhat: means of g * weight and g * weight * xhat over each group, as mean;
            None (both) where the statistics are constants.
    """

    mean: Tensor
    rstd: Tensor
    mean_g: Tensor | None = None
    mean_g_xhat: Tensor | None = None


def laid_out(values: Tensor, x: Tensor) -> Tensor:
    """Return values in the order in memory in which torch's batch norm answers x: without gaps.

    Channels stay last in what is so in four or five dimensions; everything else becomes contiguous.
    """
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if last is None or x.is_contiguous():
        return values.contiguous()
    order = [x.stride(d) for d in (1, *range(x.dim() - 1, 1, -1), 0)]
    gapped = order[0] > 0 and order == sorted(order)  # a part of what had channels last
    is_last = x.is_contiguous(memory_format=last) or gapped
    return values.contiguous(memory_format=last if is_last else torch.contiguous_format)


def check_storage(name: str, tensor: Tensor | None) -> None:
    """Refuse a tensor whose values are no longer there; torch itself would read foreign memory."""
    if tensor is None or type(tensor) not in (Tensor, torch.nn.Parameter) or not tensor.numel():
        return
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor._is_zerotensor():
        return
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in steps)
    try:
        held = tensor.untyped_storage().nbytes()
    except NotImplementedError:  # many tensors at once, in one that has none of its own
        return
    needed = (last + 1) * tensor.element_size()
    if held < needed:
        raise RuntimeError(
            f"{name} {tuple(tensor.shape)} needs {needed:,} bytes and its storage holds {held:,}: "
            "it was freed or resized; use the tensor before that, or keep a copy"
        )
