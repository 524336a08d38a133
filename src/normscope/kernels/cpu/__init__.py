"""The grouped operator on a CPU, compiled by Numba, on torch's own threads.

The four verbs of `reference`, and two that go further: `forward` and `backward` take a channel
through sums, statistics and map while its values are in the cache.
"""

from array import array
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from normscope.kernels.cpu import call, pages
from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.entries import LIKE
from normscope.kernels.cpu.plan import Floats, Plan, plan
from normscope.moments import Moments

NAMES = {getattr(torch, name.removeprefix("torch.")): name for name in LIKE}
CODES = {dtype: at.CODES[name] for dtype, name in NAMES.items()}


class Kept(NamedTuple):
    """What the fused backward needs of the fused forward, besides tensors.

    Attributes:
        plan: how the call is cut into work.
        filled: (K,) values per channel and group, pseudo-values included, at least 1.
    """

    plan: Plan
    filled: Floats

    def statistics(self, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mean and rstd (K, C), and (K, 1) 1 over the values that they are functions of."""
        return table[0], table[1], torch.from_numpy(1 / self.filled).unsqueeze(1)


def unsupported(x: Tensor) -> str | None:
    """Why these loops cannot take x, as a phrase; None where they can."""
    if x.device.type != "cpu":
        return f"x is on {x.device.type}"
    if x.dtype not in NAMES:
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
    groups: Tensor | None,
    num_groups: int,
    mask: Tensor | None,
    eps: float,
    running: tuple[Tensor, Tensor] | None,
    share: Floats | None,
    min_count: int,
    tracked: Tensor | None,
    on_moments: Callable[[Moments], None] | None,
) -> tuple[Tensor, Tensor, Kept]:
    """Statistics, their update and the map; see `functional.batch_norm` and `FromBatch`.

    Returns:
        y; a float64 table (4, K, C) of mean and rstd, which normalised, and of mean and m2 of the
        batch; and what `backward` needs besides.
    """
    x, by_rows = _dense(x)
    work = plan(x, by_rows, groups, num_groups, _rows(weight, bias), mask)
    filled, slots = work.count, work.template[:]
    if min_count > 1 and running is not None:
        filled = np.maximum(filled, float(min_count))
        slots[at.FILLED] = filled.ctypes.data
    elif num_groups > 1 or mask is not None:
        filled = np.maximum(filled, 1.0)
        slots[at.FILLED] = filled.ctypes.data
    y, table, number = pages.like(x), _tables(work, 4), _number(eps)
    if residual is not None:
        residual = _as(residual, by_rows)
        slots[at.RESIDUAL] = residual.data_ptr()
    slots[at.X], slots[at.OUT] = x.data_ptr(), y.data_ptr()
    slots[at.EPS] = number.buffer_info()[0]
    tables = _affine(slots, weight, bias)
    _place(slots, table, (at.MEAN, at.RSTD, at.BATCH_MEAN, at.BATCH_M2))
    if running is not None:
        mean, var = running
        slots[at.RUNNING_MEAN], slots[at.RUNNING_VAR] = mean.data_ptr(), var.data_ptr()
        slots[at.RUNNING_ROWS] = 1 if mean.dim() == 1 else mean.shape[0]
        slots[at.RUNNING_DTYPE] = CODES[mean.dtype]
        if share is not None:
            slots[at.SHARE] = share.ctypes.data
    call.forward(work, slots, NAMES[x.dtype], act, map_=True)
    del tables
    if running is not None and share is not None:
        if not running[0].is_inference():
            increment_version(running)  # the loops wrote to them
        if tracked is not None and tracked.dim() == 0:
            tracked.add_(1)
        elif tracked is not None:
            tracked.add_(torch.from_numpy((work.count > 1).astype(np.int64)))
    if on_moments is not None:
        on_moments(Moments(torch.from_numpy(work.count.copy()), table[2], table[3]))
    return y, table, Kept(work, filled)


def backward(
    dy: Tensor,
    x: Tensor,
    table: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str | None,
    kept: Kept,
    wants_x: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias and of the residual that an activation follows."""
    work = kept.plan
    x, by_rows = _dense(x)
    dy = _as(dy, by_rows)
    slots = work.template[:]
    dx = dresidual = dweight = dbias = None
    slots[at.X], slots[at.DY] = x.data_ptr(), dy.data_ptr()
    if wants_x:
        dx = pages.like(x)
        slots[at.OUT] = dx.data_ptr()
    if residual is not None:
        residual, dresidual = _as(residual, by_rows), pages.like(x)
        slots[at.RESIDUAL], slots[at.DRESIDUAL] = residual.data_ptr(), dresidual.data_ptr()
    tables, rows = _affine(slots, weight, bias), _rows(weight, bias)
    if weight is not None:
        dweight = torch.empty(_with_rows(weight, rows).shape, dtype=weight.dtype)
        slots[at.DWEIGHT] = dweight.data_ptr()
    if bias is not None:
        code = (bias if weight is None else weight).dtype
        dbias = torch.empty(_with_rows(bias, rows).shape, dtype=code)
        slots[at.DBIAS] = dbias.data_ptr()
    _place(slots, table, (at.MEAN, at.RSTD))
    sums = _tables(work, 4, work.r)  # the means over K fit in a table over R
    _place(slots, sums, (at.SUM_G, at.SUM_G_XHAT, at.MEAN_G, at.MEAN_G_XHAT))
    slots[at.FILLED] = kept.filled.ctypes.data
    call.backward(work, slots, NAMES[x.dtype], act, map_=wants_x)
    del tables
    return dx, _of(weight, dweight), _of(bias, dbias), dresidual


def moments(
    x: Tensor, groups: Tensor | None, num_groups: int, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Count (K,), mean (K, C), m2 (K, C); see `reference.moments`."""
    x, by_rows = _dense(x)
    work = plan(x, by_rows, groups, num_groups, 1, mask)
    slots, table = work.template[:], _tables(work, 2)
    slots[at.X] = x.data_ptr()
    _place(slots, table, (at.BATCH_MEAN, at.BATCH_M2))
    call.forward(work, slots, NAMES[x.dtype], None, map_=False)
    return torch.from_numpy(work.count.copy()), table[0], table[1]


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
    work = plan(x, by_rows, groups, len(mean), _rows(weight, bias), mask)
    slots, tables = _given(work, x, mean, rstd, weight, bias)
    y = pages.like(x)
    if residual is not None:
        residual = _as(residual, by_rows)
        slots[at.RESIDUAL] = residual.data_ptr()
    slots[at.OUT] = y.data_ptr()
    call.mapped(work, slots, NAMES[x.dtype], act, backward=False)
    del tables
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
    work = plan(x, by_rows, groups, len(mean), num_rows, mask)
    slots, tables = _given(work, x, mean, rstd, weight, bias)
    sums, dy = pages.table(2, num_rows, work.c), _as(dy, by_rows)
    if residual is not None:
        residual = _as(residual, by_rows)
        slots[at.RESIDUAL] = residual.data_ptr()
    slots[at.DY], slots[at.SUM_G], slots[at.SUM_G_XHAT] = (
        tensor.data_ptr() for tensor in (dy, sums[0], sums[1])
    )
    call.backward(work, slots, NAMES[x.dtype], act, map_=False)
    del tables
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
    work = plan(x, by_rows, groups, len(mean), _rows(weight, bias), mask)
    slots, tables = _given(work, x, mean, rstd, weight, bias)
    dy, dx, dresidual = _as(dy, by_rows), pages.like(x), None
    slots[at.DY], slots[at.OUT] = dy.data_ptr(), dx.data_ptr()
    if residual is not None:
        residual, dresidual = _as(residual, by_rows), pages.like(x)
        slots[at.RESIDUAL], slots[at.DRESIDUAL] = residual.data_ptr(), dresidual.data_ptr()
    if mean_g is not None and mean_g_xhat is not None:
        mean_g, mean_g_xhat = mean_g.contiguous(), mean_g_xhat.contiguous()
        slots[at.MEAN_G], slots[at.MEAN_G_XHAT] = mean_g.data_ptr(), mean_g_xhat.data_ptr()
    call.mapped(work, slots, NAMES[x.dtype], act, backward=True)
    del tables
    return dx, dresidual


def _given(
    work: Plan,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple["array[int]", Any]:
    """Slots with statistics from outside, and what must be held while they are used."""
    slots, mean, rstd = work.template[:], mean.contiguous(), rstd.contiguous()
    slots[at.X], slots[at.MEAN], slots[at.RSTD] = (t.data_ptr() for t in (x, mean, rstd))
    slots[at.TABLE_C], slots[at.TABLE_K] = 1, work.c
    return slots, (mean, rstd, _affine(slots, weight, bias))


def _affine(slots: "array[int]", weight: Tensor | None, bias: Tensor | None) -> Any:
    """Put weight and bias, (C,) or (rows, C); what comes back must be held."""
    some = weight if weight is not None else bias
    if some is None:
        return None
    rows = slots[at.AFFINE_ROWS] = _rows(weight, bias)
    slots[at.AFFINE_DTYPE] = CODES[some.dtype]
    if weight is not None:
        weight = _with_rows(weight, rows).contiguous()
        slots[at.WEIGHT] = weight.data_ptr()
    if bias is not None:
        bias = _with_rows(bias, rows).to(some.dtype).contiguous()
        slots[at.BIAS] = bias.data_ptr()
    return weight, bias


def _rows(*tables: Tensor | None) -> int:
    """The most rows that a table has; (C,) is one."""
    return max((t.shape[0] for t in tables if t is not None and t.dim() == 2), default=1)


def _with_rows(table: Tensor, rows: int) -> Tensor:
    """A table with so many rows: one row serves all."""
    return table if _rows(table) == rows else table.expand(rows, table.shape[-1])


def _of(table: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """The gradient of a table as it was given, of one made with more rows or another dtype."""
    if table is None or gradient is None:
        return None
    return gradient.sum_to_size(table.shape).to(table.dtype)


def _tables(work: Plan, count: int, groups: int = 0) -> Tensor:
    """Float64 tables (count, groups, C); by channel in memory where a thread takes a channel."""
    groups = groups or work.k
    if work.rows or work.k == 1:
        return pages.table(count, groups, work.c)
    return pages.table(count, work.c, groups).transpose(1, 2)


def _place(slots: "array[int]", table: Tensor, places: tuple[int, ...]) -> None:
    """Put the first tables of a stack, and how they lie."""
    stack, by_group, by_channel = table.stride()
    slots[at.TABLE_C], slots[at.TABLE_K] = by_channel, by_group
    address = table.data_ptr()
    for place in places:
        slots[place] = address
        address += 8 * stack


@lru_cache(64)
def _number(value: float) -> "array[float]":
    return array("d", [value])


def _dense(x: Tensor) -> tuple[Tensor, bool]:
    """x without gaps in memory, and whether its channels lie side by side."""
    if x.is_contiguous():
        return x, x.dim() == 2 or x.numel() == x.shape[0] * x.shape[1]
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
