"""The grouped operator on a CPU, compiled by Numba, on torch's own threads.

The four verbs of `reference`, and two that go further: `forward` and `backward` take a channel
through sums, statistics and map while its values are in the cache.
"""

import ctypes
import mmap
import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.call import Call
from normscope.kernels.cpu.entries import LIKE
from normscope.kernels.cpu.plan import Floats, Plan, plan
from normscope.moments import Moments

HUGE = 4 << 20  # bytes from which a result asks for huge pages


class Kept(NamedTuple):
    """What the fused backward needs of the fused forward, besides tensors.

    Attributes:
        plan: how the call is cut into work.
        filled: (K,) values per channel and group, pseudo-values included, at least 1.
    """

    plan: Plan
    filled: Floats

    def inverse_count(self) -> Tensor:
        """(K, 1), 1 over the values that mean and rstd are functions of."""
        return torch.from_numpy(1 / self.filled).unsqueeze(1)


class Normalized(NamedTuple):
    """What the fused forward gives.

    Attributes:
        y: shaped as x.
        mean, rstd: (K, C) float64, what normalised.
        moments: of the batch itself, without pseudo-values.
        kept: for the backward.
    """

    y: Tensor
    mean: Tensor
    rstd: Tensor
    moments: Moments
    kept: Kept


def unsupported(x: Tensor) -> str | None:
    """Why these loops cannot take x, as a phrase; None where they can."""
    if x.device.type != "cpu":
        return f"x is on {x.device.type}"
    if str(x.dtype) not in LIKE:
        return f"x is {x.dtype}"
    if type(x) not in (Tensor, nn.Parameter) or x.layout != torch.strided:
        return f"x is a {type(x).__name__} with layout {x.layout}"
    return "x is empty" if x.numel() == 0 else None


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str | None,
    eps: float,
    groups: Tensor | None,
    num_groups: int,
    mask: Tensor | None,
    running: tuple[Tensor, Tensor] | None,
    share: Floats | None,
    min_count: int,
) -> Normalized:
    """Statistics, their update and the map; see `functional.batch_norm`.

    `running` is mean and var, (rows, C) contiguous; `share` (K,) the batch's share in their
    update, None for no update; groups of fewer than `min_count` values are filled up with running
    values, 0 for none.
    """
    x, by_rows = _dense(x)
    work = plan(x, by_rows, groups, num_groups, _rows(weight, bias), mask)
    filled = np.maximum(work.count, float(max(1, min_count if running is not None else 1)))
    mean, rstd, batch_mean, batch_m2 = _tables(work, 4)
    y = _result(x)
    call = Call(work, x, act)
    call.tensor(at.RESIDUAL, None if residual is None else _as(residual, by_rows))
    call.tensor(at.OUT, y)
    call.affine(weight, bias)
    call.eps(eps)
    call.numbers(at.FILLED, filled)
    call.strides(mean)
    call.tensor(at.MEAN, mean)
    call.tensor(at.RSTD, rstd)
    call.tensor(at.BATCH_MEAN, batch_mean)
    call.tensor(at.BATCH_M2, batch_m2)
    if running is not None:
        call.running(*running, share)
    call.forward()
    batch = Moments(torch.from_numpy(work.count), batch_mean, batch_m2)
    return Normalized(y, mean, rstd, batch, Kept(work, filled))


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str | None,
    kept: Kept,
    wants_x: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias and of the residual that an activation follows."""
    x, by_rows = _dense(x)
    work = kept.plan
    dx = _result(x) if wants_x else None
    dresidual = None if residual is None else _result(x)
    dweight, dbias = _like(weight), _like(bias)
    sum_g, sum_g_xhat = _tables(work, 2, work.r)
    mean_g, mean_g_xhat = _tables(work, 2)
    call = Call(work, x, act)
    call.tensor(at.DY, _as(dy, by_rows))
    call.tensor(at.RESIDUAL, None if residual is None else _as(residual, by_rows))
    call.tensor(at.DRESIDUAL, dresidual)
    call.tensor(at.OUT, dx)
    call.affine(weight, bias)
    call.tensor(at.DWEIGHT, dweight)
    call.tensor(at.DBIAS, dbias)
    call.strides(mean)
    call.tensor(at.MEAN, mean)
    call.tensor(at.RSTD, rstd)
    call.tensor(at.SUM_G, sum_g)
    call.tensor(at.SUM_G_XHAT, sum_g_xhat)
    call.numbers(at.FILLED, kept.filled)
    call.tensor(at.MEAN_G, mean_g)
    call.tensor(at.MEAN_G_XHAT, mean_g_xhat)
    call.backward(sums_only=dx is None)
    return dx, dweight, dbias, dresidual


def moments(
    x: Tensor, groups: Tensor | None, num_groups: int, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Count (K,), mean (K, C), m2 (K, C); see `reference.moments`."""
    x, by_rows = _dense(x)
    work = plan(x, by_rows, groups, num_groups, 1, mask)
    mean, m2 = _tables(work, 2)
    call = Call(work, x, None)
    call.strides(mean)
    call.tensor(at.BATCH_MEAN, mean)
    call.tensor(at.BATCH_M2, m2)
    call.forward(moments_only=True)
    return torch.from_numpy(work.count), mean, m2


def normalize(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str | None,
    groups: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """y = act((x - mean) * rstd * weight + bias + residual); see `reference.normalize`."""
    x, by_rows = _dense(x)
    call = _given(x, by_rows, mean, rstd, weight, bias, act, groups, _rows(weight, bias), mask)
    y = _result(x)
    call.tensor(at.RESIDUAL, None if residual is None else _as(residual, by_rows))
    call.tensor(at.OUT, y)
    call.map_(backward=False)
    return y


def backward_reduce(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str | None,
    groups: Tensor | None,
    num_rows: int,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Sums of g and g * xhat, (R, C) each; see `reference.backward_reduce`."""
    x, by_rows = _dense(x)
    call = _given(x, by_rows, mean, rstd, weight, bias, act, groups, num_rows, mask)
    sums = torch.empty(2, num_rows, x.shape[1], dtype=torch.float64)
    call.tensor(at.DY, _as(dy, by_rows))
    call.tensor(at.RESIDUAL, None if residual is None else _as(residual, by_rows))
    call.tensor(at.SUM_G, sums[0])
    call.tensor(at.SUM_G_XHAT, sums[1])
    call.backward(sums_only=True)
    return sums[0], sums[1]


def backward_input(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str | None,
    mean_g: Tensor | None,
    mean_g_xhat: Tensor | None,
    groups: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and of residual; see `reference.backward_input`."""
    x, by_rows = _dense(x)
    call = _given(x, by_rows, mean, rstd, weight, bias, act, groups, _rows(weight, bias), mask)
    dx = _result(x)
    dresidual = None if residual is None else _result(x)
    call.tensor(at.DY, _as(dy, by_rows))
    call.tensor(at.RESIDUAL, None if residual is None else _as(residual, by_rows))
    call.tensor(at.DRESIDUAL, dresidual)
    call.tensor(at.OUT, dx)
    if mean_g is not None and mean_g_xhat is not None:
        call.tensor(at.MEAN_G, mean_g.contiguous())
        call.tensor(at.MEAN_G_XHAT, mean_g_xhat.contiguous())
    call.map_(backward=True)
    return dx, dresidual


def _given(
    x: Tensor,
    by_rows: bool,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    act: str | None,
    groups: Tensor | None,
    num_rows: int,
    mask: Tensor | None,
) -> Call:
    """A call with statistics from outside."""
    call = Call(plan(x, by_rows, groups, len(mean), num_rows, mask), x, act)
    mean, rstd = mean.contiguous(), rstd.contiguous()
    call.affine(weight, bias)
    call.strides(mean)
    call.tensor(at.MEAN, mean)
    call.tensor(at.RSTD, rstd)
    return call


def _like(table: Tensor | None) -> Tensor | None:
    return None if table is None else torch.empty(table.shape, dtype=table.dtype)


def _rows(weight: Tensor | None, bias: Tensor | None) -> int:
    some = weight if weight is not None else bias
    return 1 if some is None else some.shape[0]


def _tables(work: Plan, count: int, groups: int = 0) -> tuple[Tensor, ...]:
    """Float64 tables (groups, C); by channel in memory where one thread has all of a channel."""
    groups = groups or work.k
    if work.rows or work.k == 1:
        return torch.empty(count, groups, work.c, dtype=torch.float64).unbind()
    return torch.empty(count, work.c, groups, dtype=torch.float64).transpose(1, 2).unbind()


def _dense(x: Tensor) -> tuple[Tensor, bool]:
    """x without gaps in memory, and whether its channels lie side by side."""
    if x.is_contiguous():
        return x, x.numel() == x.shape[0] * x.shape[1]
    by_rows = x.movedim(1, -1)
    if by_rows.is_contiguous():
        return x, True
    if x.dim() > 2 and x.stride(1) == 1:
        return by_rows.contiguous().movedim(-1, 1), True
    return x.contiguous(), x.numel() == x.shape[0] * x.shape[1]


def _as(tensor: Tensor, by_rows: bool) -> Tensor:
    """A tensor of x's shape in x's order in memory, without gaps."""
    if by_rows and tensor.dim() > 2:
        return tensor.movedim(1, -1).contiguous()
    return tensor.contiguous()


def _result(x: Tensor) -> Tensor:
    """Memory for a result; a large one asks for huge pages, which cost 500 times fewer faults."""
    y = torch.empty_like(x)
    size = y.numel() * y.element_size()
    if size >= HUGE and _madvise is not None:
        page = mmap.PAGESIZE
        start = -(-y.data_ptr() // page) * page
        _madvise(start, y.data_ptr() + size - start, mmap.MADV_HUGEPAGE)
    return y


def _advise() -> "ctypes._NamedFuncPointer | None":
    if sys.platform != "linux" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return madvise  # a refusal changes nothing but speed


_madvise = _advise()
