"""The grouped operator in plain PyTorch: the definition, on any device and dtype.

Partition the batch into K groups, take moments per group and channel, map every value with its
group's numbers. All verbs are differentiable to any order, forward and reverse, and traceable;
the fast kernels are judged by them. All arithmetic is float64 (float32 where a device has no
float64), whatever the dtype of x.

The arguments of every verb are the records of `problem`; dy is shaped as x.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from normscope.kernels.problem import Epilogue, Problem, Statistics

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
}
LEAK = 0.01  # torch's default slope


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


def _xhat(problem: Problem, statistics: Statistics) -> Tensor:
    x, groups, _, mask = problem
    mean, rstd = (_rows(t, groups, x) for t in statistics[:2])
    return (_only(mask, x) - mean) * rstd


def moments(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Count (K,), mean (K, C) and centred sum of squares (K, C), in two passes.

    mean = (1/n) sum x;  m2 = sum (x - mean)^2, never a difference of raw sums. Without values:
    zero, zero, zero. A NaN or an infinity stays in its own group and channel.
    """
    x, mask, num_groups = problem.x, problem.mask, problem.num_groups
    groups = problem.statistics_groups
    v = _only(mask, x.to(accumulate_dtype(x)))
    ones = v.new_ones(x.shape[0], 1) if mask is None else mask.to(v.dtype)
    positions = math.prod(x.shape[2:]) if mask is None else 1
    count = (_sum_by_group(ones, groups, num_groups) * positions).squeeze(1)
    mean = _sum_by_group(v, groups, num_groups) / count.clamp(min=1).unsqueeze(1)
    centred = _only(mask, v - _rows(mean, groups, x))
    return count, mean, _sum_by_group(centred * centred, groups, num_groups)


def _linear(problem: Problem, statistics: Statistics, epilogue: Epilogue) -> Tensor:
    """Compute the input of the activation."""
    x, groups, _, mask = problem
    (weight, bias), residual, _ = epilogue
    u = _xhat(problem, statistics)
    if weight is not None:
        u = u * _rows(weight, groups, x)
    if bias is not None:
        u = u + _rows(bias, groups, x)
    return u if residual is None else u + _only(mask, residual.to(u.dtype))


def normalize(problem: Problem, statistics: Statistics, epilogue: Epilogue) -> Tensor:
    """Y = act((x - mean) * rstd * weight + bias + residual), in x's dtype; masked values are 0."""
    u = _linear(problem, statistics, epilogue)
    y = u if epilogue.act is None else ACTIVATIONS[epilogue.act](u)
    return _only(problem.mask, y).to(problem.x.dtype)


def _through(dy: Tensor, u: Tensor, act: str | None) -> Tensor:
    """Dy times the derivative of act at u; differentiable in both."""
    if act == "relu":
        return torch.where(u <= 0, 0, dy)  # so NaN passes, as in torch
    if act == "leaky_relu":
        return torch.where(u > 0, dy, dy * LEAK)
    if act == "silu":
        s = torch.sigmoid(u)
        return dy * s * (1 + u * (1 - s))
    return dy


def backward_reduce(
    dy: Tensor, problem: Problem, statistics: Statistics, epilogue: Epilogue
) -> tuple[Tensor, Tensor]:
    """Sum g and sum g * xhat per group and channel, (R, C) each.

    g = dy * act'(u), u being what the activation gets; xhat = (x - mean) * rstd. R is the larger
    of the numbers of groups with statistics and with affine rows of their own.
    """
    num_rows = max(problem.num_groups, epilogue.affine.num_rows)
    groups = problem.groups if num_rows > 1 else None
    g = dy.to(accumulate_dtype(problem.x))
    if epilogue.act is not None:
        g = _through(g, _linear(problem, statistics, epilogue), epilogue.act)
    g = _only(problem.mask, g)
    xhat = _xhat(problem, statistics)
    return _sum_by_group(g, groups, num_rows), _sum_by_group(g * xhat, groups, num_rows)


def backward_input(
    dy: Tensor, problem: Problem, statistics: Statistics, epilogue: Epilogue
) -> tuple[Tensor, Tensor | None]:
    """Dx = rstd * (g * weight - mean_g - xhat * mean_g_xhat), and g for the residual, as x.

    g = dy * act'(u). Masked values get 0.
    """
    x, groups, _, mask = problem
    _, rstd, mean_g, mean_g_xhat = statistics
    (weight, _), residual, act = epilogue
    g = dy.to(accumulate_dtype(x))
    if act is not None:
        g = _through(g, _linear(problem, statistics, epilogue), act)
    d = g if weight is None else g * _rows(weight, groups, x)
    if mean_g is not None and mean_g_xhat is not None:
        d = (
            d
            - _rows(mean_g, groups, x)
            - _xhat(problem, statistics) * _rows(mean_g_xhat, groups, x)
        )
    dx = _only(mask, d * _rows(rstd, groups, x)).to(x.dtype)
    return dx, None if residual is None else _only(mask, g).to(x.dtype)
