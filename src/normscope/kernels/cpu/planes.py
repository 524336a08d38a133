"""Loops over (N, C, S): the values of a channel in a sample lie side by side, as in NCHW.

Where there are channels enough, one thread takes a whole channel through sums, statistics and
map, so that the second reading comes from its cache; few channels are cut into chunks instead.
"""

from typing import Any

import numpy as np
from numba import njit

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
from normscope.kernels.cpu.elements import OPTIONS, activate, bytes_of, through
from normscope.kernels.cpu.memory import (
    FLOAT64,
    fetch,
    load,
    load_flag,
    load_integer,
    store,
    working,
)

SHORT = 1536  # bytes: rows up to this length are fetched
AHEAD = 4096  # bytes
LINE = 64  # bytes of the cache


@njit(**OPTIONS)
def _row(p: int, sample: int, first: int, c: int) -> Any:
    """Where the values of a unit in a channel begin, counted in values."""
    channels, s = load_integer(p, at.C), load_integer(p, at.S)
    return (sample * channels + c) * s + first


@njit(**OPTIONS)
def rows_ahead(p: int, like: Any) -> Any:
    """How many rows ahead of the one in work are asked for, 0 for none.

    A channel's rows lie far apart, and where they are short the processor does not see in time
    which comes next.
    """
    row = load_integer(p, at.S) * bytes_of(like)
    return AHEAD // row if row <= SHORT else 0


@njit(**OPTIONS)
def fetch_row(p: int, slot: int, sample: int, first: int, n: int, c: int, like: Any) -> None:
    """Ask for n values of a sample and channel, to be read or written."""
    start = load_integer(p, slot) + _row(p, sample, first, c) * bytes_of(like)
    fetch_lines(start, n * bytes_of(like))


@njit(**OPTIONS)
def fetch_lines(start: int, size: int) -> None:
    """Ask for so many bytes from an address on."""
    for line in range(start, start + size, LINE):
        fetch(line)


@njit(**OPTIONS)
def _fetch_ahead(p: int, slot: int, u: int, high: int, c: int, like: Any) -> None:
    """Ask for the row that comes some units after unit u."""
    ahead = rows_ahead(p, like)
    if ahead > 0 and u + ahead < high:
        sample, first, n = unit(p, u + ahead)
        fetch_row(p, slot, sample, first, n, c, like)


@njit(**OPTIONS)
def _sums(x: int, mask: Any, n: int, shift: Any, like: Any) -> Any:
    """Sum of (x - shift) and of its square."""
    s = q = 0.0
    for i in range(n):
        d: Any = np.float64(load(x, i, like)) - shift
        if mask is not None:
            d = d if load_flag(mask, i) else 0.0
        s += d
        q += d * d
    return s, q


@njit(**OPTIONS)
def _shift(p: int, low: int, high: int, c: int, mask: Any, like: Any) -> float:
    """The first value that counts: being one of them, it bounds what cancels by count * eps."""
    x = load_integer(p, at.X)
    for u in range(low, high):
        sample, first, n = unit(p, u)
        row = _row(p, sample, first, c)
        for i in range(n):
            if mask is not None and not load_flag(mask, sample * load_integer(p, at.S) + first + i):
                continue
            value = np.float64(load(x, row + i, like))
            return value if np.isfinite(value) else 0.0
    return 0.0


@njit(**OPTIONS)
def _chunk_moments(p: int, i: int, c: int, mask: Any, like: Any) -> Any:
    """Mean and m2 of a chunk in a channel."""
    _, low, high = chunk(p, i)
    shift = _shift(p, low, high, c, mask, like)
    x, size = load_integer(p, at.X), bytes_of(like)
    s = q = 0.0
    for u in range(low, high):
        sample, first, n = unit(p, u)
        here = None if mask is None else mask + sample * load_integer(p, at.S) + first
        _fetch_ahead(p, at.X, u, high, c, like)
        part, square = _sums(x + _row(p, sample, first, c) * size, here, n, shift, like)
        s += part
        q += square
    count = values(p, i)
    if count == 0:
        return 0.0, 0.0
    return shift + s / count, q - s * (s / count)


@njit(**OPTIONS)
def _map(
    x: int, residual: Any, y: int, mask: Any, n: int, m: Any, a: Any, b: Any, act: Any, like: Any
) -> None:
    """y = act((x - m) a + b + residual)."""
    for i in range(n):
        u = (load(x, i, like) - m) * a + b
        if residual is not None:
            u += load(residual, i, like)
        v = activate(u, act)
        if mask is not None:
            v = v if load_flag(mask, i) else working(0.0, like)
        store(y, i, v, like)


@njit(**OPTIONS)
def _map_unit(
    p: int, u: int, c: int, m: Any, a: Any, b: Any, residual: Any, mask: Any, act: Any, like: Any
) -> None:
    sample, first, n = unit(p, u)
    offset = _row(p, sample, first, c) * bytes_of(like)
    _map(
        load_integer(p, at.X) + offset,
        None if residual is None else residual + offset,
        load_integer(p, at.OUT) + offset,
        None if mask is None else mask + sample * load_integer(p, at.S) + first,
        n,
        m,
        a,
        b,
        act,
        like,
    )


@njit(**OPTIONS)
def forward(p: int, c: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """A whole channel: sums, statistics, running statistics, map."""
    i, chunks, groups = 0, load_integer(p, at.NUM_CHUNKS), load_integer(p, at.K)
    for k in range(groups):
        n = mean = m2 = 0.0
        while i < chunks and (groups == 1 or chunk(p, i)[0] == k):
            other, other_m2 = _chunk_moments(p, i, c, mask, like)
            n, mean, m2 = merged(n, mean, m2, values(p, i), other, other_m2)
            i += 1
        finish(p, c, k, mean, m2)
    update_running(p, c)
    if load_integer(p, at.OUT) == 0:
        return
    for i in range(chunks):
        r, low, high = chunk(p, i)
        m, a, b, _, _ = coefficients(p, c, r)
        m, a, b = working(m, like), working(a, like), working(b, like)
        for u in range(low, high):
            _fetch_ahead(p, at.OUT, u, high, c, like)
            _map_unit(p, u, c, m, a, b, residual, mask, act, like)


@njit(**OPTIONS)
def sums(p: int, i: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """The moments of a chunk in every channel, into PARTIAL."""
    partial, channels = load_integer(p, at.PARTIAL), load_integer(p, at.C)
    for c in range(channels):
        mean, m2 = _chunk_moments(p, i, c, mask, like)
        store(partial, 3 * i * channels + c, mean, FLOAT64)
        store(partial, (3 * i + 1) * channels + c, m2, FLOAT64)


@njit(**OPTIONS)
def map_(p: int, i: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """The map of a chunk in every channel."""
    r, low, high = chunk(p, i)
    for u in range(low, high):
        for c in range(load_integer(p, at.C)):
            m, a, b, _, _ = coefficients(p, c, r)
            m, a, b = working(m, like), working(a, like), working(b, like)
            _map_unit(p, u, c, m, a, b, residual, mask, act, like)


@njit(**OPTIONS)
def _gradient(
    x: int, dy: int, residual: Any, mask: Any, i: int, m: Any, a: Any, b: Any, act: Any, like: Any
) -> Any:
    """g = dy act'(u) and x - m at one value; zero where the mask is."""
    d = load(x, i, like) - m
    u = d * a + b
    if residual is not None:
        u += load(residual, i, like)
    g = through(load(dy, i, like), u, act)
    if mask is not None:
        here = load_flag(mask, i)
        g, d = (g if here else working(0.0, like)), (d if here else working(0.0, like))
    return g, d


@njit(**OPTIONS)
def _gradient_sums(
    x: int, dy: int, residual: Any, mask: Any, n: int, m: Any, a: Any, b: Any, act: Any, like: Any
) -> Any:
    """Sum of g and of g (x - m)."""
    s = q = 0.0
    for i in range(n):
        g, d = _gradient(x, dy, residual, mask, i, m, a, b, act, like)
        s += np.float64(g)
        q += np.float64(g) * np.float64(d)
    return s, q


@njit(**OPTIONS)
def _gradient_map(
    x: int,
    dy: int,
    residual: Any,
    dx: int,
    dresidual: Any,
    mask: Any,
    n: int,
    m: Any,
    a: Any,
    b: Any,
    gb: Any,
    gc: Any,
    act: Any,
    like: Any,
) -> None:
    """dx = g a + (x - m) gb + gc, dresidual = g."""
    for i in range(n):
        g, d = _gradient(x, dy, residual, mask, i, m, a, b, act, like)
        v = g * a + d * gb + gc
        if mask is not None:
            v = v if load_flag(mask, i) else working(0.0, like)
        store(dx, i, v, like)
        if dresidual is not None:
            store(dresidual, i, g, like)


@njit(**OPTIONS)
def _chunk_gradients(p: int, i: int, c: int, residual: Any, mask: Any, act: Any, like: Any) -> Any:
    """Sums of g and of g xhat of a chunk in a channel."""
    r, low, high = chunk(p, i)
    m, a, b, _, _ = coefficients(p, c, r)
    m_, a_, b_ = working(m, like), working(a, like), working(b, like)
    s = q = 0.0
    for u in range(low, high):
        sample, first, n = unit(p, u)
        offset = _row(p, sample, first, c) * bytes_of(like)
        _fetch_ahead(p, at.X, u, high, c, like)
        _fetch_ahead(p, at.DY, u, high, c, like)
        part, part_d = _gradient_sums(
            load_integer(p, at.X) + offset,
            load_integer(p, at.DY) + offset,
            None if residual is None else residual + offset,
            None if mask is None else mask + sample * load_integer(p, at.S) + first,
            n,
            m_,
            a_,
            b_,
            act,
            like,
        )
        s += part
        q += part_d
    k = r if load_integer(p, at.K) > 1 else 0
    here = place(p, c, k)
    mean = load(load_integer(p, at.MEAN), here, FLOAT64)
    return s, (q + (m - mean) * s) * load(load_integer(p, at.RSTD), here, FLOAT64)


@njit(**OPTIONS)
def _gradient_map_unit(
    p: int,
    u: int,
    c: int,
    m: Any,
    a: Any,
    b: Any,
    gb: Any,
    gc: Any,
    residual: Any,
    mask: Any,
    act: Any,
    like: Any,
) -> None:
    sample, first, n = unit(p, u)
    offset = _row(p, sample, first, c) * bytes_of(like)
    _gradient_map(
        load_integer(p, at.X) + offset,
        load_integer(p, at.DY) + offset,
        None if residual is None else residual + offset,
        load_integer(p, at.OUT) + offset,
        None if residual is None else load_integer(p, at.DRESIDUAL) + offset,
        None if mask is None else mask + sample * load_integer(p, at.S) + first,
        n,
        m,
        a,
        b,
        gb,
        gc,
        act,
        like,
    )


@njit(**OPTIONS)
def backward(p: int, c: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """A whole channel: sums of the gradient, gradients of the tables, gradient of x."""
    sums_g, sums_xhat = load_integer(p, at.SUM_G), load_integer(p, at.SUM_G_XHAT)
    for r in range(load_integer(p, at.R)):
        store(sums_g, place(p, c, r), 0.0, FLOAT64)
        store(sums_xhat, place(p, c, r), 0.0, FLOAT64)
    chunks = load_integer(p, at.NUM_CHUNKS)
    for i in range(chunks):
        s, q = _chunk_gradients(p, i, c, residual, mask, act, like)
        here = place(p, c, chunk(p, i)[0])
        store(sums_g, here, load(sums_g, here, FLOAT64) + s, FLOAT64)
        store(sums_xhat, here, load(sums_xhat, here, FLOAT64) + q, FLOAT64)
    finish_gradients(p, c)
    if load_integer(p, at.OUT) == 0:
        return
    for i in range(chunks):
        r, low, high = chunk(p, i)
        m, a, b, gb, gc = coefficients(p, c, r)
        m, a, b = working(m, like), working(a, like), working(b, like)
        gb, gc = working(gb, like), working(gc, like)
        for u in range(low, high):
            _fetch_ahead(p, at.OUT, u, high, c, like)
            _gradient_map_unit(p, u, c, m, a, b, gb, gc, residual, mask, act, like)


@njit(**OPTIONS)
def gradient_sums(p: int, i: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """The sums of a chunk in every channel, into PARTIAL."""
    partial, channels = load_integer(p, at.PARTIAL), load_integer(p, at.C)
    for c in range(channels):
        s, q = _chunk_gradients(p, i, c, residual, mask, act, like)
        store(partial, 3 * i * channels + c, s, FLOAT64)
        store(partial, (3 * i + 1) * channels + c, q, FLOAT64)


@njit(**OPTIONS)
def gradient_map(p: int, i: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """The gradient of x of a chunk in every channel."""
    r, low, high = chunk(p, i)
    for u in range(low, high):
        for c in range(load_integer(p, at.C)):
            m, a, b, gb, gc = coefficients(p, c, r)
            m, a, b = working(m, like), working(a, like), working(b, like)
            gb, gc = working(gb, like), working(gc, like)
            _gradient_map_unit(p, u, c, m, a, b, gb, gc, residual, mask, act, like)
