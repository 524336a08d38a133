"""Loops over (N, C, S) with few values S per sample and channel, as 7 x 7 at the end of a network.

A row of S values is too short for a vector loop. So a block of neighbouring channels, whose
values of one sample lie side by side, is read as one row of C * S columns: every column has sums
and coefficients of its own, and the S columns of a channel are merged behind the last sample.
"""

from typing import Any

import numpy as np
from numba import njit

from normscope.kernels.cpu import planes, rows
from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.channel import (
    chunk,
    coefficients,
    finish,
    finish_gradients,
    merged,
    place,
    unit,
    update_running,
    values,
)
from normscope.kernels.cpu.elements import OPTIONS, bytes_of
from normscope.kernels.cpu.memory import FLOAT64, load, load_integer, store, wide, working


@njit(**OPTIONS)
def _extent(p: int, block: int) -> Any:
    """First channel, number of channels and of columns of a block."""
    size, channels = load_integer(p, at.BLOCK), load_integer(p, at.C)
    first = block * size
    count = min(size, channels - first)
    return first, count, count * load_integer(p, at.S)


@njit(**OPTIONS)
def _start(p: int, u: int, first: int, like: Any) -> Any:
    """Where a sample's values of a block begin, in bytes behind the tensor's address."""
    sample, _, _ = unit(p, u)
    row = sample * load_integer(p, at.C) + first
    return row * load_integer(p, at.S) * bytes_of(like)


@njit(**OPTIONS)
def _fetch_next(p: int, slot: int, u: int, high: int, first: int, width: int, like: Any) -> None:
    """Ask for the next sample's values of a block, which lie far from these."""
    if u + 1 < high:
        start = load_integer(p, slot) + _start(p, u + 1, first, like)
        planes.fetch_lines(start, width * bytes_of(like))


@njit(**OPTIONS)
def _channel_moments(s: int, q: int, shift: int, column: int, n: int, samples: float) -> Any:
    """Mean and m2 of one channel from the sums of its n columns, with equally many samples."""
    total = 0.0
    for i in range(column, column + n):
        mean = load(shift, i, FLOAT64) + load(s, i, FLOAT64) / samples
        store(shift, i, mean, FLOAT64)
        total += mean
    mean, m2 = total / n, 0.0
    for i in range(column, column + n):
        part, off = load(s, i, FLOAT64), load(shift, i, FLOAT64) - mean
        m2 += load(q, i, FLOAT64) - part * (part / samples) + samples * (off * off)
    return mean, m2


@njit(**OPTIONS)
def _spread(p: int, r: int, first: int, count: int, table: int, width: int, like: Any) -> None:
    """The coefficients of each column of a block, as loops over rows want them."""
    n, size = load_integer(p, at.S), width * bytes_of(wide(like))
    for c in range(count):
        m, a, b, gb, gc = coefficients(p, first + c, r)
        m_, a_, b_ = working(m, like), working(a, like), working(b, like)
        gb_, gc_ = working(gb, like), working(gc, like)
        for i in range(c * n, (c + 1) * n):
            store(table, i, m_, wide(like))
            store(table + size, i, a_, wide(like))
            store(table + 2 * size, i, b_, wide(like))
            store(table + 3 * size, i, gb_, wide(like))
            store(table + 4 * size, i, gc_, wide(like))


@njit(**OPTIONS)
def map_(p: int, block: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """The map of a block of channels."""
    first, count, width = _extent(p, block)
    x, y = load_integer(p, at.X), load_integer(p, at.OUT)
    coefficients_ = np.empty(5 * width, np.float64)
    table, known = coefficients_.ctypes.data, -1
    for i in range(load_integer(p, at.NUM_CHUNKS)):
        r, low, high = chunk(p, i)
        if r != known:
            _spread(p, r, first, count, table, width, like)
            known = r
        for u in range(low, high):
            start = _start(p, u, first, like)
            beside = None if residual is None else residual + start
            _fetch_next(p, at.OUT, u, high, first, width, like)
            rows._map(x + start, beside, y + start, width, table, width, act, like)


@njit(**OPTIONS)
def forward(p: int, block: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """A whole block of channels: sums, statistics, running statistics, map."""
    first, count, width = _extent(p, block)
    n, x = load_integer(p, at.S), load_integer(p, at.X)
    scratch = np.empty(3 * width + 3 * count, np.float64)
    s = scratch.ctypes.data
    q, shift = s + 8 * width, s + 16 * width
    means = s + 24 * width
    m2s = means + 8 * count
    i, chunks, groups = 0, load_integer(p, at.NUM_CHUNKS), load_integer(p, at.K)
    for k in range(groups):
        total = 0.0
        for c in range(2 * count):
            store(means, c, 0.0, FLOAT64)
        while i < chunks and (groups == 1 or chunk(p, i)[0] == k):
            _, low, high = chunk(p, i)
            for u in range(low, high):
                here = x + _start(p, u, first, like)
                _fetch_next(p, at.X, u, high, first, width, like)
                if u == low:
                    rows._begin(here, s, q, shift, width, like)
                rows._add(here, s, q, shift, width, like)
            more = values(p, i)
            for c in range(count):
                other, other_m2 = _channel_moments(s, q, shift, c * n, n, float(high - low))
                mean, m2 = load(means, c, FLOAT64), load(m2s, c, FLOAT64)
                _, mean, m2 = merged(total, mean, m2, more, other, other_m2)
                store(means, c, mean, FLOAT64)
                store(m2s, c, m2, FLOAT64)
            total += more
            i += 1
        for c in range(count):
            finish(p, first + c, k, load(means, c, FLOAT64), load(m2s, c, FLOAT64))
    for c in range(count):
        update_running(p, first + c)
    if load_integer(p, at.OUT) != 0:
        map_(p, block, residual, mask, act, like)


@njit(**OPTIONS)
def backward(p: int, block: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """A whole block: sums of the gradient, gradients of the tables, gradient of x."""
    first, count, width = _extent(p, block)
    n, x, dy = load_integer(p, at.S), load_integer(p, at.X), load_integer(p, at.DY)
    sums_g, sums_xhat = load_integer(p, at.SUM_G), load_integer(p, at.SUM_G_XHAT)
    scratch, coefficients_ = np.empty(2 * width, np.float64), np.empty(5 * width, np.float64)
    s, table = scratch.ctypes.data, coefficients_.ctypes.data
    q = s + 8 * width
    for r in range(load_integer(p, at.R)):
        for c in range(count):
            store(sums_g, place(p, first + c, r), 0.0, FLOAT64)
            store(sums_xhat, place(p, first + c, r), 0.0, FLOAT64)
    chunks, known = load_integer(p, at.NUM_CHUNKS), -1
    for i in range(chunks):
        r, low, high = chunk(p, i)
        if r != known:
            _spread(p, r, first, count, table, width, like)
            known = r
        for c in range(2 * width):
            store(s, c, 0.0, FLOAT64)
        for u in range(low, high):
            start = _start(p, u, first, like)
            beside = None if residual is None else residual + start
            _fetch_next(p, at.X, u, high, first, width, like)
            _fetch_next(p, at.DY, u, high, first, width, like)
            rows._add_gradient(x + start, dy + start, beside, s, q, width, table, width, act, like)
        for c in range(count):
            total = total_d = 0.0
            for column in range(c * n, (c + 1) * n):
                total += load(s, column, FLOAT64)
                total_d += load(q, column, FLOAT64)
            _collect(p, first + c, r, total, total_d)
    for c in range(count):
        finish_gradients(p, first + c)
    dx = load_integer(p, at.OUT)
    if dx == 0:
        return
    known = -1
    for i in range(chunks):
        r, low, high = chunk(p, i)
        if r != known:
            _spread(p, r, first, count, table, width, like)
            known = r
        for u in range(low, high):
            start = _start(p, u, first, like)
            beside = None if residual is None else residual + start
            aside = None if residual is None else load_integer(p, at.DRESIDUAL) + start
            _fetch_next(p, at.OUT, u, high, first, width, like)
            rows._gradient_map(
                x + start, dy + start, beside, dx + start, aside, width, table, width, act, like
            )


@njit(**OPTIONS)
def _collect(p: int, c: int, r: int, total: float, total_d: float) -> None:
    """Add a chunk's sums of g and g (x - m) of a channel to its tables."""
    m, _, _, _, _ = coefficients(p, c, r)
    k = r if load_integer(p, at.K) > 1 else 0
    mean = load(load_integer(p, at.MEAN), place(p, c, k), FLOAT64)
    rstd = load(load_integer(p, at.RSTD), place(p, c, k), FLOAT64)
    sums_g, sums_xhat = load_integer(p, at.SUM_G), load_integer(p, at.SUM_G_XHAT)
    here = place(p, c, r)
    store(sums_g, here, load(sums_g, here, FLOAT64) + total, FLOAT64)
    xhat = (total_d + (m - mean) * total) * rstd
    store(sums_xhat, here, load(sums_xhat, here, FLOAT64) + xhat, FLOAT64)
