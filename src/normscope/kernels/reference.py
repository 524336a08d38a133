"""The grouped operator in plain PyTorch: the definition, on any device and dtype.

Partition the batch into K groups, take moments per group and channel, map every value with its
group's numbers. All verbs are differentiable to any order, forward and reverse, and traceable;
the fast kernels are judged by them. All arithmetic is float64 (float32 where a device has no
float64), whatever the dtype of x.

Shapes used by every verb:
    x, dy: (N, C, *S).   groups: (N,) int64 in 0..K-1, or None for one group.
    mask: (N, 1, *S) bool, True where a value counts, or None.
    mean, rstd, mean_g, mean_g_xhat: (1, C) or (K, C).   weight, bias: the same, or None.
"""

import math

import torch
from torch import Tensor


def accumulate_dtype(x: Tensor) -> torch.dtype:
    """float64, or float32 on devices without it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _rows(table: Tensor, groups: Tensor | None, x: Tensor) -> Tensor:
    """Each sample's row of a (1 or K, C) table, shaped to broadcast against x."""
    if groups is not None and table.shape[0] > 1:
        table = table.index_select(0, groups)
    return table.to(accumulate_dtype(x)).reshape(*table.shape, *[1] * (x.dim() - 2))


def _sum_by_group(values: Tensor, groups: Tensor | None, num_groups: int) -> Tensor:
    """(N, C, *S) to (K, C): a group without samples gets zero."""
    positions = tuple(range(2, values.dim()))
    if groups is None:
        return values.sum((0, *positions)).unsqueeze(0)
    per_sample = values.sum(positions) if positions else values
    empty = per_sample.new_zeros(num_groups, per_sample.shape[1])
    return empty.index_add(0, groups, per_sample)


def _only(mask: Tensor | None, values: Tensor) -> Tensor:
    # where, not a product, and on x itself: what is masked may be NaN and must not leak, also
    # not into a gradient, where it would meet a zero
    return values if mask is None else torch.where(mask, values, 0)


def _xhat(
    x: Tensor, mean: Tensor, rstd: Tensor, groups: Tensor | None, mask: Tensor | None
) -> Tensor:
    return (_only(mask, x) - _rows(mean, groups, x)) * _rows(rstd, groups, x)


def moments(
    x: Tensor, groups: Tensor | None, num_groups: int, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Count (K,), mean (K, C) and centred sum of squares (K, C), in two passes.

    mean = (1/n) sum x;  m2 = sum (x - mean)^2, never a difference of raw sums. Without values:
    zero, zero, zero. A NaN or an infinity stays in its own group and channel.
    """
    v = _only(mask, x.to(accumulate_dtype(x)))
    ones = v.new_ones(x.shape[0], 1) if mask is None else mask.to(v.dtype)
    positions = math.prod(x.shape[2:]) if mask is None else 1
    count = (_sum_by_group(ones, groups, num_groups) * positions).squeeze(1)
    mean = _sum_by_group(v, groups, num_groups) / count.clamp(min=1).unsqueeze(1)
    centred = _only(mask, v - _rows(mean, groups, x))
    return count, mean, _sum_by_group(centred * centred, groups, num_groups)


def normalize(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """Y = (x - mean) * rstd * weight + bias, in x's dtype; masked values become zero."""
    y = _xhat(x, mean, rstd, groups, mask)
    if weight is not None:
        y = y * _rows(weight, groups, x)
    if bias is not None:
        y = y + _rows(bias, groups, x)
    return _only(mask, y).to(x.dtype)


def backward_reduce(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: Tensor | None,
    num_groups: int,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Sum dy and sum dy * xhat per group and channel, (K, C) each, xhat = (x - mean) * rstd."""
    g = _only(mask, dy.to(accumulate_dtype(x)))
    xhat = _xhat(x, mean, rstd, groups, mask)
    return (
        _sum_by_group(g, groups, num_groups),
        _sum_by_group(g * xhat, groups, num_groups),
    )


def backward_input(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    mean_g: Tensor | None,
    mean_g_xhat: Tensor | None,
    groups: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """Dx = rstd * (g - mean_g - xhat * mean_g_xhat) with g = dy * weight, in x's dtype.

    mean_g and mean_g_xhat are the group means of g and g * xhat; None (both) where the statistics
    did not come from x, and then dx = rstd * g. Masked values get zero.
    """
    g = dy.to(accumulate_dtype(x))
    if weight is not None:
        g = g * _rows(weight, groups, x)
    if mean_g is not None and mean_g_xhat is not None:
        xhat = _xhat(x, mean, rstd, groups, mask)
        g = g - _rows(mean_g, groups, x) - xhat * _rows(mean_g_xhat, groups, x)
    return _only(mask, g * _rows(rstd, groups, x)).to(x.dtype)
