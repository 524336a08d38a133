"""The grouped operator on a CPU, compiled by Numba, on torch's own threads.

The four verbs of `reference`, and two that go further: `forward` and `backward` take a channel
through sums, statistics and map while its values are in the cache.
"""

from array import array
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from normscope.kernels.cpu import call, pages
from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.plan import Floats, Plan, plan
from normscope.kernels.problem import Epilogue, Problem, Statistics
from normscope.moments import Moments

CODES = {dtype: at.CODES[name] for dtype, name in call.NAMES.items()}


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
    if x.dtype not in CODES:
        return f"x is {x.dtype}"
    if type(x) not in (Tensor, nn.Parameter) or x.layout != torch.strided:
        return f"x is a {type(x).__name__} with layout {x.layout}"
    return "x is empty" if x.numel() == 0 else None


def forward(
    problem: Problem,
    epilogue: Epilogue,
    eps: float,
    running: tuple[Tensor, Tensor] | None,
    share: "array[float] | None",
    min_count: int,
    tracked: Tensor | None,
    on_moments: Callable[[Moments], None] | None,
) -> tuple[Tensor, Tensor, Kept]:
    """Statistics, their update and the map; see `functional.batch_norm` and `FromBatch`.

    Returns:
        y; a float64 table (4, K, C) of mean and rstd, which normalised, and of mean and m2 of the
        batch; and what `backward` needs besides.
    """
    x, groups, num_groups, mask = problem
    (weight, bias), residual, act = epilogue
    x, by_rows = _dense(x)
    work = plan(x, by_rows, groups, num_groups, _rows(weight, bias), mask)
    how = call.recipe(work, "forward", x.dtype, act, residual=residual is not None)
    filled, slots = work.count, how.slots[:]
    if min_count > 1 and running is not None:
        filled = np.maximum(filled, float(min_count))
        slots[at.FILLED] = filled.ctypes.data
    elif num_groups > 1 or mask is not None:
        filled = np.maximum(filled, 1.0)
        slots[at.FILLED] = filled.ctypes.data
    y, table, number = pages.like(x), _tables(work, 4), _number(eps)
    slots[at.X], slots[at.OUT] = x.data_ptr(), y.data_ptr()
    slots[at.EPS] = number.buffer_info()[0]
    held = _affine(slots, weight, bias), _beside(slots, residual, by_rows)
    _place(slots, table, (at.MEAN, at.RSTD, at.BATCH_MEAN, at.BATCH_M2))
    if running is not None:
        _running(slots, *running)
        if share is not None:
            slots[at.SHARE] = share.buffer_info()[0]
    call.run(how, slots)
    del held
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
    problem: Problem,
    epilogue: Epilogue,
    table: Tensor,
    kept: Kept,
    wants_x: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias and of the residual that an activation follows."""
    work, (weight, bias), residual, act = kept.plan, *epilogue
    x, by_rows = _dense(problem.x)
    dy = _as(dy, by_rows)
    verb = "backward" if wants_x else "backward_tables"
    how = call.recipe(work, verb, x.dtype, act, residual=residual is not None)
    slots = how.slots[:]
    slots[at.X], slots[at.DY] = x.data_ptr(), dy.data_ptr()
    held = _affine(slots, weight, bias), _beside(slots, residual, by_rows)
    dx = dresidual = None
    if wants_x:
        dx, dresidual = _gradients(slots, x, residual)
    dweight, dbias = (None if table is None else torch.empty_like(table) for table in held[0])
    if dweight is not None:
        slots[at.DWEIGHT] = dweight.data_ptr()
    if dbias is not None:
        slots[at.DBIAS] = dbias.data_ptr()
    _place(slots, table, (at.MEAN, at.RSTD))
    if kept.filled is not work.count:  # else the plan has put it there
        slots[at.FILLED] = kept.filled.ctypes.data
    call.run(how, slots)
    del held
    return dx, _of(weight, dweight), _of(bias, dbias), dresidual


def evaluate(
    problem: Problem,
    epilogue: Epilogue,
    eps: float,
    running: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Map with the running statistics, (C,) or (K, C) contiguous.

    Returns:
        y; mean and rstd that normalised, (K, C) float64.
    """
    x, groups, _, mask = problem
    (weight, bias), residual, act = epilogue
    x, by_rows = _dense(x)
    k = _rows(running[0])
    work = plan(x, by_rows, groups, k, _rows(weight, bias), mask)
    how = call.recipe(work, "evaluate", x.dtype, act, residual=residual is not None)
    slots = how.slots[:]
    y, table, number = pages.like(x), _tables(work, 2), _number(eps)
    slots[at.X], slots[at.OUT] = x.data_ptr(), y.data_ptr()
    slots[at.EPS] = number.buffer_info()[0]
    held = _affine(slots, weight, bias), _beside(slots, residual, by_rows)
    _place(slots, table, (at.MEAN, at.RSTD))
    _running(slots, *running)
    call.run(how, slots)
    del held
    return y, table[0], table[1]


def moments(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Count (K,), mean (K, C), m2 (K, C); see `reference.moments`."""
    x, by_rows = _dense(problem.x)
    groups = problem.statistics_groups
    work = plan(x, by_rows, groups, problem.num_groups, 1, problem.mask)
    how = call.recipe(work, "moments", x.dtype, None)
    slots, table = how.slots[:], _tables(work, 2)
    slots[at.X] = x.data_ptr()
    _place(slots, table, (at.BATCH_MEAN, at.BATCH_M2))
    call.run(how, slots)
    return torch.from_numpy(work.count.copy()), table[0], table[1]


def normalize(problem: Problem, statistics: Statistics, epilogue: Epilogue) -> Tensor:
    """y = act((x - mean) * rstd * weight + bias + residual); see `reference.normalize`."""
    x, groups, _, mask = problem
    mean, rstd = statistics[:2]
    (weight, bias), residual, act = epilogue
    x, by_rows = _dense(x)
    work = plan(x, by_rows, groups, len(mean), _rows(weight, bias), mask)
    how = call.recipe(work, "normalize", x.dtype, act, residual=residual is not None)
    slots, y = how.slots[:], pages.like(x)
    slots[at.X], slots[at.OUT] = x.data_ptr(), y.data_ptr()
    held = _given(slots, mean, rstd), _affine(slots, weight, bias)
    beside = _beside(slots, residual, by_rows)
    call.run(how, slots)
    del held, beside
    return y


def backward_reduce(
    dy: Tensor, problem: Problem, statistics: Statistics, epilogue: Epilogue
) -> tuple[Tensor, Tensor]:
    """Sums of g and g * xhat, (R, C) each; see `reference.backward_reduce`."""
    x, groups, _, mask = problem
    mean, rstd = statistics[:2]
    (weight, bias), residual, act = epilogue
    num_rows = max(problem.num_groups, epilogue.affine.num_rows)
    x, by_rows = _dense(x)
    dy, sums = _as(dy, by_rows), pages.table(2, num_rows, x.shape[1])
    work = plan(x, by_rows, groups, len(mean), num_rows, mask)
    how = call.recipe(work, "backward_reduce", x.dtype, act, residual=residual is not None)
    slots = how.slots[:]
    slots[at.X], slots[at.DY] = x.data_ptr(), dy.data_ptr()
    slots[at.SUM_G], slots[at.SUM_G_XHAT] = sums[0].data_ptr(), sums[1].data_ptr()
    held = _given(slots, mean, rstd), _affine(slots, weight, bias)
    beside = _beside(slots, residual, by_rows)
    call.run(how, slots)
    del held, beside
    return sums[0], sums[1]


def backward_input(
    dy: Tensor, problem: Problem, statistics: Statistics, epilogue: Epilogue
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and of residual; see `reference.backward_input`."""
    x, groups, _, mask = problem
    mean, rstd, mean_g, mean_g_xhat = statistics
    (weight, bias), residual, act = epilogue
    x, by_rows = _dense(x)
    dy = _as(dy, by_rows)
    work = plan(x, by_rows, groups, len(mean), _rows(weight, bias), mask)
    how = call.recipe(work, "backward_input", x.dtype, act, residual=residual is not None)
    slots = how.slots[:]
    slots[at.X], slots[at.DY] = x.data_ptr(), dy.data_ptr()
    dx, dresidual = _gradients(slots, x, residual)
    held = _given(slots, mean, rstd), _affine(slots, weight, bias)
    beside = _beside(slots, residual, by_rows)
    if mean_g is not None and mean_g_xhat is not None:
        mean_g, mean_g_xhat = mean_g.contiguous(), mean_g_xhat.contiguous()
        slots[at.MEAN_G], slots[at.MEAN_G_XHAT] = mean_g.data_ptr(), mean_g_xhat.data_ptr()
    call.run(how, slots)
    del held, beside
    return dx, dresidual


# Each of these puts addresses into slots; what it returns must be held while they are used.


def _given(slots: "array[int]", mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Statistics from outside, (1 or K, C)."""
    mean, rstd = mean.contiguous(), rstd.contiguous()
    slots[at.MEAN], slots[at.RSTD] = mean.data_ptr(), rstd.data_ptr()
    slots[at.TABLE_C], slots[at.TABLE_K] = 1, mean.shape[1]
    return mean, rstd


def _affine(
    slots: "array[int]", weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias, (C,) or (rows, C), with equally many rows and of one dtype."""
    if weight is None and bias is None:
        return None, None
    rows, dtype = _rows(weight, bias), (bias if weight is None else weight).dtype  # type: ignore[union-attr]
    slots[at.AFFINE_ROWS], slots[at.AFFINE_DTYPE] = rows, CODES[dtype]
    if weight is not None:
        weight = _table(weight, rows, dtype)
        slots[at.WEIGHT] = weight.data_ptr()
    if bias is not None:
        bias = _table(bias, rows, dtype)
        slots[at.BIAS] = bias.data_ptr()
    return weight, bias


def _table(table: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """A table without gaps, with so many rows: one serves all."""
    if rows > 1:
        table = table.expand(rows, table.shape[-1])
    return (table if table.dtype == dtype else table.to(dtype)).contiguous()


def _beside(slots: "array[int]", residual: Tensor | None, by_rows: bool) -> Tensor | None:
    """What is added before the activation."""
    if residual is not None:
        residual = _as(residual, by_rows)
        slots[at.RESIDUAL] = residual.data_ptr()
    return residual


def _gradients(
    slots: "array[int]", x: Tensor, residual: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """New memory for the gradients of x and of the residual."""
    dx, dresidual = pages.like(x), None if residual is None else pages.like(x)
    slots[at.OUT] = dx.data_ptr()
    if dresidual is not None:
        slots[at.DRESIDUAL] = dresidual.data_ptr()
    return dx, dresidual


def _running(slots: "array[int]", mean: Tensor, var: Tensor) -> None:
    """Running statistics, (C,) or (rows, C), contiguous: they are read, and written, in place."""
    slots[at.RUNNING_MEAN], slots[at.RUNNING_VAR] = mean.data_ptr(), var.data_ptr()
    slots[at.RUNNING_ROWS], slots[at.RUNNING_DTYPE] = _rows(mean), CODES[mean.dtype]


def _place(slots: "array[int]", table: Tensor, places: tuple[int, ...]) -> None:
    """The first tables of a stack that lie as the plan's do."""
    address, size = table.data_ptr(), table.nbytes // len(table)
    for place in places:
        slots[place] = address
        address += size


def _rows(*tables: Tensor | None) -> int:
    """The most rows that a table has; (C,) is one."""
    rows = 1
    for table in tables:
        if table is not None and table.dim() == 2:
            rows = max(rows, table.shape[0])
    return rows


def _of(table: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """The gradient of a table as it was given, of one made with more rows or another dtype."""
    if table is None or gradient is None:
        return None
    if gradient.shape == table.shape and gradient.dtype == table.dtype:
        return gradient
    return gradient.sum_to_size(table.shape).to(table.dtype)


def _tables(work: Plan, count: int) -> Tensor:
    """Float64 tables (count, K, C)."""
    if work.by_channel:
        return pages.table(count, work.c, work.k).transpose(1, 2)
    return pages.table(count, work.k, work.c)


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
