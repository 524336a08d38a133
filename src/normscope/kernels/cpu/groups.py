"""One channel in many groups: what `channel` does for one group, in loops that vectorise.

Where a thread takes a channel, its groups lie side by side in the tables.
"""

from typing import Any

import numpy as np
from numba import njit

from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.channel import (
    affine,
    centre,
    coefficients,
    finish,
    finish_gradients,
    inverse_deviation,
    merged,
    place,
    update_running,
)
from normscope.kernels.cpu.channels import copy, keep_moments
from normscope.kernels.cpu.elements import OPTIONS, table_store
from normscope.kernels.cpu.memory import FLOAT64, load, load_integer, store


@njit(**OPTIONS)
def moments(p: int, c: int, sums: int) -> None:
    """Statistics, and what follows from them, of a channel in all groups that are told apart.

    Args:
        p: slots.
        c: channel.
        sums: address of rows over the groups: of x - shift, of its square, and the shift. They
            become sums, m2 and means.
    """
    groups, count = load_integer(p, at.R), load_integer(p, at.COUNT_R)
    m2, mean = sums + 8 * groups, sums + 16 * groups
    for r in range(groups):
        part, n = load(sums, r, FLOAT64), load(count, r, FLOAT64)
        part_mean = part / (n if n > 0 else 1.0)  # an empty group has sums of zero
        store(m2, r, load(m2, r, FLOAT64) - part * part_mean, FLOAT64)
        store(sums, r, part_mean, FLOAT64)
    for r in range(groups):
        store(mean, r, load(mean, r, FLOAT64) + load(sums, r, FLOAT64), FLOAT64)
    if load_integer(p, at.K) > 1:
        _finish(p, c, mean, m2)
    else:
        n = whole = whole_m2 = 0.0
        for r in range(groups):
            other, other_m2 = load(mean, r, FLOAT64), load(m2, r, FLOAT64)
            more = load(count, r, FLOAT64)
            n, whole, whole_m2 = merged(n, whole, whole_m2, more, other, other_m2)
        finish(p, c, 0, whole, whole_m2)
    update_running(p, c)


@njit(**OPTIONS)
def _finish(p: int, c: int, mean: int, m2: int) -> None:
    """`finish` in all groups, from rows of their moments."""
    groups, skip = load_integer(p, at.K), 8 * place(p, c, 0)
    count, filled = load_integer(p, at.COUNT), load_integer(p, at.FILLED)
    keep_moments(p, skip, 0, groups, mean, m2)
    if load_integer(p, at.RSTD) == 0:
        return
    rstd, eps = load_integer(p, at.RSTD) + skip, load(load_integer(p, at.EPS), 0, FLOAT64)
    for k in range(groups):
        var = load(m2, k, FLOAT64) / load(filled, k, FLOAT64)
        store(rstd, k, inverse_deviation(var, eps), FLOAT64)
    for k in range(groups):
        if load(count, k, FLOAT64) < load(filled, k, FLOAT64):
            finish(p, c, k, load(mean, k, FLOAT64), load(m2, k, FLOAT64))


@njit(**OPTIONS)
def all_coefficients(p: int, c: int) -> Any:
    """The `coefficients` of a channel in every group that is told apart, (5, R)."""
    groups = load_integer(p, at.R)
    table = np.empty((5, groups), np.float64)
    if load_integer(p, at.AFFINE_ROWS) > 1:
        for r in range(groups):
            m, a, b, gb, gc = coefficients(p, c, r)
            table[0, r], table[1, r], table[2, r], table[3, r], table[4, r] = m, a, b, gb, gc
        return table
    weight, bias = affine(p, c, 0)
    m = table.ctypes.data
    a, b, gb, gc = m + 8 * groups, m + 16 * groups, m + 24 * groups, m + 32 * groups
    skip = 8 * place(p, c, 0)
    mean, rstd = load_integer(p, at.MEAN) + skip, load_integer(p, at.RSTD) + skip
    for k in range(groups):
        store(m, k, centre(load(mean, k, FLOAT64)), FLOAT64)
    for k in range(groups):
        store(a, k, weight * load(rstd, k, FLOAT64), FLOAT64)
    for k in range(groups):
        lost = load(m, k, FLOAT64) - load(mean, k, FLOAT64)
        store(b, k, bias + lost * load(a, k, FLOAT64), FLOAT64)
    if load_integer(p, at.MEAN_G) == 0:
        table[3:] = 0.0
        return table
    mean_g, mean_gx = load_integer(p, at.MEAN_G) + skip, load_integer(p, at.MEAN_G_XHAT) + skip
    for k in range(groups):
        root = load(rstd, k, FLOAT64)
        store(gb, k, -root * root * load(mean_gx, k, FLOAT64), FLOAT64)
    for k in range(groups):
        lost = load(m, k, FLOAT64) - load(mean, k, FLOAT64)
        store(gc, k, lost * load(gb, k, FLOAT64), FLOAT64)
    for k in range(groups):
        step = load(rstd, k, FLOAT64) * load(mean_g, k, FLOAT64)
        store(gc, k, load(gc, k, FLOAT64) - step, FLOAT64)
    return table


@njit(**OPTIONS)
def gradients(p: int, c: int, sums: int, table: int) -> None:
    """Table gradients and means of a channel, from sums over its groups.

    Args:
        p: slots.
        c: channel.
        sums: address of rows over the groups: of g and of g (x - m); the second is written to.
        table: of their coefficients, m first.
    """
    groups, about = load_integer(p, at.R), sums + 8 * load_integer(p, at.R)
    means, rstds = load_integer(p, at.MEAN), load_integer(p, at.RSTD)
    sum_g, sum_xhat = load_integer(p, at.SUM_G), load_integer(p, at.SUM_G_XHAT)
    first = place(p, c, 0)
    if load_integer(p, at.K) == 1:
        mean, rstd = load(means, first, FLOAT64), load(rstds, first, FLOAT64)
        for r in range(groups):
            lost, g = load(table, r, FLOAT64) - mean, load(sums, r, FLOAT64)
            store(sum_g, place(p, c, r), g, FLOAT64)
            xhat = (load(about, r, FLOAT64) + lost * g) * rstd
            store(sum_xhat, place(p, c, r), xhat, FLOAT64)
        finish_gradients(p, c)
        return
    skip = 8 * first
    mean, rstd = means + skip, rstds + skip
    for k in range(groups):
        lost = load(table, k, FLOAT64) - load(mean, k, FLOAT64)
        store(about, k, load(about, k, FLOAT64) + lost * load(sums, k, FLOAT64), FLOAT64)
    for k in range(groups):
        store(about, k, load(about, k, FLOAT64) * load(rstd, k, FLOAT64), FLOAT64)
    copy(sums, sum_g + skip, 0, groups)
    copy(about, sum_xhat + skip, 0, groups)
    if load_integer(p, at.AFFINE_ROWS) > 1:
        finish_gradients(p, c)
        return
    code, weight = load_integer(p, at.AFFINE_DTYPE), affine(p, c, 0)[0]
    if load_integer(p, at.DWEIGHT) != 0:
        table_store(load_integer(p, at.DWEIGHT), c, _sum(about, groups), code)
    if load_integer(p, at.DBIAS) != 0:
        table_store(load_integer(p, at.DBIAS), c, _sum(sums, groups), code)
    if load_integer(p, at.MEAN_G) != 0:
        filled = load_integer(p, at.FILLED)
        _weigh(sums, load_integer(p, at.MEAN_G) + skip, groups, weight, filled)
        _weigh(about, load_integer(p, at.MEAN_G_XHAT) + skip, groups, weight, filled)


@njit(**OPTIONS)
def _sum(row: int, groups: int) -> float:
    total = 0.0
    for k in range(groups):
        total += load(row, k, FLOAT64)
    return total


@njit(**OPTIONS)
def _weigh(row: int, into: int, groups: int, weight: float, filled: int) -> None:
    """into = weight * row / filled."""
    for k in range(groups):
        store(into, k, weight * load(row, k, FLOAT64) / load(filled, k, FLOAT64), FLOAT64)
