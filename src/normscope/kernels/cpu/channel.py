"""One channel between its sums and its map: merged chunks, running statistics, coefficients."""

import math
from typing import Any

import numpy as np
from numba import njit

from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.elements import OPTIONS, TO_THE_BIT, table_load, table_store
from normscope.kernels.cpu.memory import FLOAT64, load, load_integer, store


@njit(**OPTIONS)
def chunk(p: int, i: int) -> Any:
    """Group, first unit and end of chunk i."""
    table = load_integer(p, at.CHUNKS)
    if table == 0:
        size = load_integer(p, at.CHUNK)
        units = load_integer(p, at.N) * load_integer(p, at.PIECES)
        return 0, i * size, min(units, (i + 1) * size)
    row = 4 * i
    return load_integer(table, row), load_integer(table, row + 1), load_integer(table, row + 2)


@njit(**OPTIONS)
def unit(p: int, u: int) -> Any:
    """Sample, first value and number of values (per channel) of unit u."""
    pieces, order = load_integer(p, at.PIECES), load_integer(p, at.ORDER)
    first, size = 0, load_integer(p, at.S)
    if pieces > 1:
        piece = load_integer(p, at.PIECE)
        first = (u % pieces) * piece
        size = min(piece, size - first)
        u //= pieces
    return (u if order == 0 else load_integer(order, u)), first, size


@njit(**OPTIONS)
def values(p: int, i: int) -> float:
    """How many values per channel chunk i has."""
    table = load_integer(p, at.CHUNKS)
    if table != 0:
        return float(load_integer(table, 4 * i + 3))
    _, low, high = chunk(p, i)
    if load_integer(p, at.PIECES) == 1:
        return float((high - low) * load_integer(p, at.S))
    total = 0
    for u in range(low, high):
        total += unit(p, u)[2]
    return float(total)


@njit(**OPTIONS)
def place(p: int, c: int, k: int) -> Any:
    """Where a table holds channel c and group k."""
    return c * load_integer(p, at.TABLE_C) + k * load_integer(p, at.TABLE_K)


@njit(**TO_THE_BIT)
def merged(n: float, mean: float, m2: float, more: float, other: float, other_m2: float) -> Any:
    """The moments of two sets together (Chan, Golub, LeVeque 1979)."""
    if n == 0:
        return more, other, other_m2
    if more == 0:
        return n, mean, m2
    total, step = n + more, other - mean
    share = more / total
    return total, mean + step * share, m2 + other_m2 + step * step * share * n


@njit(**OPTIONS)
def inverse_deviation(var: float, eps: float) -> float:
    """1 / sqrt(var + eps); a variance below zero counts as none."""
    return 1 / math.sqrt((0.0 if var < 0 else var) + eps)


@njit(**OPTIONS)
def _keep(p: int, here: int, mean: float, var: float) -> None:
    """What normalises a channel and group."""
    eps = load(load_integer(p, at.EPS), 0, FLOAT64)
    store(load_integer(p, at.MEAN), here, mean, FLOAT64)
    store(load_integer(p, at.RSTD), here, inverse_deviation(var, eps), FLOAT64)


@njit(**OPTIONS)
def finish(p: int, c: int, k: int, mean: float, m2: float) -> None:
    """From the batch's moments of a channel and group to what normalises it.

    A group below min_count is filled up with pseudo-values of its running mean and variance.
    """
    here = place(p, c, k)
    store(load_integer(p, at.BATCH_MEAN), here, mean, FLOAT64)
    store(load_integer(p, at.BATCH_M2), here, m2, FLOAT64)
    if load_integer(p, at.RSTD) == 0:
        return  # only the moments were asked for
    count = load(load_integer(p, at.COUNT), k, FLOAT64)
    filled = load(load_integer(p, at.FILLED), k, FLOAT64)
    if count < filled and load_integer(p, at.RUNNING_MEAN) != 0:
        row = k if load_integer(p, at.RUNNING_ROWS) > 1 else 0
        entry, code = row * load_integer(p, at.C) + c, load_integer(p, at.RUNNING_DTYPE)
        prior = table_load(load_integer(p, at.RUNNING_MEAN), entry, code)
        spread = table_load(load_integer(p, at.RUNNING_VAR), entry, code)
        missing = filled - count
        _, mean, m2 = merged(count, mean, m2, missing, prior, spread * missing)
    _keep(p, here, mean, m2 / filled)


@njit(**OPTIONS)
def update_running(p: int, c: int) -> None:
    """running = (1 - share) * running + share * batch, unbiased variance, for one channel.

    One row of running statistics for several groups takes the batch's groups pooled.
    """
    shares = load_integer(p, at.SHARE)
    if shares == 0:
        return
    counts, k = load_integer(p, at.COUNT), load_integer(p, at.K)
    means, m2s = load_integer(p, at.BATCH_MEAN), load_integer(p, at.BATCH_M2)
    rows = load_integer(p, at.RUNNING_ROWS)
    n = mean = m2 = 0.0
    for i in range(k):
        here = place(p, c, i)
        group = load(counts, i, FLOAT64)
        now, now_m2 = load(means, here, FLOAT64), load(m2s, here, FLOAT64)
        if rows > 1:
            _move(p, c, i, load(shares, i, FLOAT64), group, now, now_m2)
        else:
            n, mean, m2 = merged(n, mean, m2, group, now, now_m2)
    if rows <= 1:
        _move(p, c, 0, load(shares, 0, FLOAT64), n, mean, m2)


@njit(**OPTIONS)
def _move(p: int, c: int, row: int, share: float, n: float, mean: float, m2: float) -> None:
    if n <= 1:
        return  # no unbiased variance
    entry, code = row * load_integer(p, at.C) + c, load_integer(p, at.RUNNING_DTYPE)
    means, variances = load_integer(p, at.RUNNING_MEAN), load_integer(p, at.RUNNING_VAR)
    old, old_var = table_load(means, entry, code), table_load(variances, entry, code)
    table_store(means, entry, (1 - share) * old + share * mean, code)
    table_store(variances, entry, (1 - share) * old_var + share * (m2 / (n - 1)), code)


@njit(**OPTIONS)
def recall(p: int, c: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """From the running statistics of one channel to what normalises it.

    A checkpoint may hold a variance below zero; for every valid one the clamp changes nothing.
    """
    code = load_integer(p, at.RUNNING_DTYPE)
    for k in range(load_integer(p, at.K)):
        entry = k * load_integer(p, at.C) + c
        var = table_load(load_integer(p, at.RUNNING_VAR), entry, code)
        mean = table_load(load_integer(p, at.RUNNING_MEAN), entry, code)
        _keep(p, place(p, c, k), mean, var)


@njit(**OPTIONS)
def affine(p: int, c: int, r: int) -> Any:
    """Weight and bias of channel c in group r."""
    row = r if load_integer(p, at.AFFINE_ROWS) > 1 else 0
    entry, code = row * load_integer(p, at.C) + c, load_integer(p, at.AFFINE_DTYPE)
    weights, biases = load_integer(p, at.WEIGHT), load_integer(p, at.BIAS)
    weight = 1.0 if weights == 0 else table_load(weights, entry, code)
    bias = 0.0 if biases == 0 else table_load(biases, entry, code)
    return weight, bias


@njit(**OPTIONS)
def centre(mean: float) -> float:
    """What is subtracted from values: the nearest float32, so that x - m is exact near it."""
    m = np.float64(np.float32(mean))
    return m if np.isfinite(m) else mean


@njit(**OPTIONS)
def coefficients(p: int, c: int, r: int) -> Any:
    """m, a, b, gb, gc in float64 for y = (x - m) a + b and dx = g a + (x - m) gb + gc.

    m is `centre` of the mean; what is lost goes to b and gc. gb and gc are 0 where the statistics
    did not come from x.
    """
    k = r if load_integer(p, at.K) > 1 else 0
    here = place(p, c, k)
    mean = load(load_integer(p, at.MEAN), here, FLOAT64)
    rstd = load(load_integer(p, at.RSTD), here, FLOAT64)
    weight, bias = affine(p, c, r)
    m = centre(mean)
    a = weight * rstd
    b = bias + (m - mean) * a
    gb = gc = 0.0
    if load_integer(p, at.MEAN_G) != 0:
        gb = -rstd * rstd * load(load_integer(p, at.MEAN_G_XHAT), here, FLOAT64)
        gc = -rstd * load(load_integer(p, at.MEAN_G), here, FLOAT64) + (m - mean) * gb
    return m, a, b, gb, gc


@njit(**OPTIONS)
def finish_gradients(p: int, c: int) -> None:
    """From the sums of g and g xhat of a channel to its table gradients and means.

    dweight = sum g xhat, dbias = sum g; means of weight * g and of weight * g * xhat per group.
    """
    sums, sums_xhat = load_integer(p, at.SUM_G), load_integer(p, at.SUM_G_XHAT)
    means, means_xhat = load_integer(p, at.MEAN_G), load_integer(p, at.MEAN_G_XHAT)
    dweight, dbias = load_integer(p, at.DWEIGHT), load_integer(p, at.DBIAS)
    rows, code = load_integer(p, at.AFFINE_ROWS), load_integer(p, at.AFFINE_DTYPE)
    k, channels = load_integer(p, at.K), load_integer(p, at.C)
    total = total_xhat = mean = mean_xhat = 0.0
    for r in range(load_integer(p, at.R)):
        here = place(p, c, r)
        g, g_xhat = load(sums, here, FLOAT64), load(sums_xhat, here, FLOAT64)
        if rows > 1:
            if dweight != 0:
                table_store(dweight, r * channels + c, g_xhat, code)
            if dbias != 0:
                table_store(dbias, r * channels + c, g, code)
        total += g
        total_xhat += g_xhat
        weight, _ = affine(p, c, r)
        if k > 1 and means != 0:
            filled = load(load_integer(p, at.FILLED), r, FLOAT64)
            store(means, here, weight * g / filled, FLOAT64)
            store(means_xhat, here, weight * g_xhat / filled, FLOAT64)
        mean += weight * g
        mean_xhat += weight * g_xhat
    if rows <= 1:
        if dweight != 0:
            table_store(dweight, c, total_xhat, code)
        if dbias != 0:
            table_store(dbias, c, total, code)
    if k == 1 and means != 0:
        filled = load(load_integer(p, at.FILLED), 0, FLOAT64)
        store(means, place(p, c, 0), mean / filled, FLOAT64)
        store(means_xhat, place(p, c, 0), mean_xhat / filled, FLOAT64)
