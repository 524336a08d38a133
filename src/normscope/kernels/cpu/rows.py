"""Loops over (N, S, C): the channels of a value lie side by side, as in NHWC and in (N, C).

Each chunk of rows gives its sums for all channels, the chunks are merged, and a second pass maps.
"""

from typing import Any

import numpy as np
from numba import njit

from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.channel import chunk, coefficients, place, unit, values
from normscope.kernels.cpu.elements import OPTIONS, activate, bytes_of, through
from normscope.kernels.cpu.memory import (
    FLOAT64,
    load,
    load_flag,
    load_integer,
    store,
    wide,
    working,
)


@njit(**OPTIONS)
def _begin(x: int, s: int, q: int, shift: int, channels: int, like: Any) -> None:
    """Sums at zero, centred by the values of one row."""
    for c in range(channels):
        value = np.float64(load(x, c, like))
        store(shift, c, value if np.isfinite(value) else 0.0, FLOAT64)
        store(s, c, 0.0, FLOAT64)
        store(q, c, 0.0, FLOAT64)


@njit(**OPTIONS)
def _add(x: int, s: int, q: int, shift: int, channels: int, like: Any) -> None:
    """Add (x - shift) and its square of one row."""
    for c in range(channels):
        d = np.float64(load(x, c, like)) - load(shift, c, FLOAT64)
        store(s, c, load(s, c, FLOAT64) + d, FLOAT64)
        store(q, c, load(q, c, FLOAT64) + d * d, FLOAT64)


@njit(**OPTIONS)
def sums(p: int, i: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """The moments of a chunk in every channel, into PARTIAL."""
    _, low, high = chunk(p, i)
    channels, x = load_integer(p, at.C), load_integer(p, at.X)
    length, stride = load_integer(p, at.S), channels * bytes_of(like)
    s = load_integer(p, at.PARTIAL) + 24 * i * channels
    q, shift = s + 8 * channels, s + 16 * channels
    begun = False
    for u in range(low, high):
        sample, first, n = unit(p, u)
        start = sample * length + first
        for row in range(start, start + n):
            if mask is not None and not load_flag(mask, row):
                continue
            here = x + row * stride
            if not begun:
                _begin(here, s, q, shift, channels, like)
                begun = True
            _add(here, s, q, shift, channels, like)
    if not begun:
        for c in range(2 * channels):
            store(s, c, 0.0, FLOAT64)
        return
    count = values(p, i)
    for c in range(channels):
        part = load(s, c, FLOAT64)
        store(q, c, load(q, c, FLOAT64) - part * (part / count), FLOAT64)
        store(s, c, load(shift, c, FLOAT64) + part / count, FLOAT64)


@njit(**OPTIONS)
def prepare(p: int, r: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """The coefficients of a group, side by side, for the loops over rows."""
    channels = load_integer(p, at.C)
    size = channels * bytes_of(wide(like))
    table = load_integer(p, at.COEFFICIENTS) + 5 * r * size
    for c in range(channels):
        m, a, b, gb, gc = coefficients(p, c, r)
        store(table, c, working(m, like), wide(like))
        store(table + size, c, working(a, like), wide(like))
        store(table + 2 * size, c, working(b, like), wide(like))
        store(table + 3 * size, c, working(gb, like), wide(like))
        store(table + 4 * size, c, working(gc, like), wide(like))


@njit(**OPTIONS)
def _centred(x: int, table: int, channels: int, c: int, like: Any) -> Any:
    """x - m, and u = (x - m) a + b."""
    d = load(x, c, like) - load(table, c, wide(like))
    a = load(table, channels + c, wide(like))
    return d, d * a + load(table, 2 * channels + c, wide(like))


@njit(**OPTIONS)
def _map(x: int, residual: Any, y: int, table: int, channels: int, act: Any, like: Any) -> None:
    """y = act((x - m) a + b + residual) of one row."""
    for c in range(channels):
        _, u = _centred(x, table, channels, c, like)
        if residual is not None:
            u += load(residual, c, like)
        store(y, c, activate(u, act), like)


@njit(**OPTIONS)
def _clear(y: int, channels: int, like: Any) -> None:
    for c in range(channels):
        store(y, c, working(0.0, like), like)


@njit(**OPTIONS)
def map_(p: int, i: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """The map of a chunk; masked rows become zero."""
    r, low, high = chunk(p, i)
    channels, length = load_integer(p, at.C), load_integer(p, at.S)
    stride = channels * bytes_of(like)
    table = load_integer(p, at.COEFFICIENTS) + 5 * r * channels * bytes_of(wide(like))
    x, y = load_integer(p, at.X), load_integer(p, at.OUT)
    for u in range(low, high):
        sample, first, n = unit(p, u)
        start = sample * length + first
        for row in range(start, start + n):
            offset = row * stride
            if mask is not None and not load_flag(mask, row):
                _clear(y + offset, channels, like)
                continue
            beside = None if residual is None else residual + offset
            _map(x + offset, beside, y + offset, table, channels, act, like)


@njit(**OPTIONS)
def _gradient(
    x: int, dy: int, residual: Any, table: int, channels: int, c: int, act: Any, like: Any
) -> Any:
    """g = dy act'(u) and x - m of one channel."""
    d, u = _centred(x, table, channels, c, like)
    if residual is not None:
        u += load(residual, c, like)
    return through(load(dy, c, like), u, act), d


@njit(**OPTIONS)
def _add_gradient(
    x: int,
    dy: int,
    residual: Any,
    s: int,
    q: int,
    table: int,
    channels: int,
    act: Any,
    like: Any,
) -> None:
    """Add g and g (x - m) of one row."""
    for c in range(channels):
        g, d = _gradient(x, dy, residual, table, channels, c, act, like)
        store(s, c, load(s, c, FLOAT64) + np.float64(g), FLOAT64)
        store(q, c, load(q, c, FLOAT64) + np.float64(g) * np.float64(d), FLOAT64)


@njit(**OPTIONS)
def gradient_sums(p: int, i: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """The sums of g and g xhat of a chunk in every channel, into PARTIAL."""
    r, low, high = chunk(p, i)
    channels, length = load_integer(p, at.C), load_integer(p, at.S)
    stride = channels * bytes_of(like)
    table = load_integer(p, at.COEFFICIENTS) + 5 * r * channels * bytes_of(wide(like))
    x, dy = load_integer(p, at.X), load_integer(p, at.DY)
    s = load_integer(p, at.PARTIAL) + 24 * i * channels
    q = s + 8 * channels
    _clear(s, 2 * channels, FLOAT64)
    for u in range(low, high):
        sample, first, n = unit(p, u)
        start = sample * length + first
        for row in range(start, start + n):
            if mask is not None and not load_flag(mask, row):
                continue
            offset = row * stride
            beside = None if residual is None else residual + offset
            _add_gradient(x + offset, dy + offset, beside, s, q, table, channels, act, like)
    k = r if load_integer(p, at.K) > 1 else 0
    for c in range(channels):
        here = place(p, c, k)
        rstd = load(load_integer(p, at.RSTD), here, FLOAT64)
        lost = np.float64(load(table, c, wide(like))) - load(
            load_integer(p, at.MEAN), here, FLOAT64
        )
        store(q, c, (load(q, c, FLOAT64) + lost * load(s, c, FLOAT64)) * rstd, FLOAT64)


@njit(**OPTIONS)
def _gradient_map(
    x: int,
    dy: int,
    residual: Any,
    dx: int,
    dresidual: Any,
    table: int,
    channels: int,
    act: Any,
    like: Any,
) -> None:
    """dx = g a + (x - m) gb + gc and dresidual = g of one row."""
    for c in range(channels):
        g, d = _gradient(x, dy, residual, table, channels, c, act, like)
        a = load(table, channels + c, wide(like))
        gb = load(table, 3 * channels + c, wide(like))
        store(dx, c, g * a + d * gb + load(table, 4 * channels + c, wide(like)), like)
        if dresidual is not None:
            store(dresidual, c, g, like)


@njit(**OPTIONS)
def gradient_map(p: int, i: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """The gradient of x of a chunk; masked rows get zero."""
    r, low, high = chunk(p, i)
    channels, length = load_integer(p, at.C), load_integer(p, at.S)
    stride = channels * bytes_of(like)
    table = load_integer(p, at.COEFFICIENTS) + 5 * r * channels * bytes_of(wide(like))
    x, dy, dx = load_integer(p, at.X), load_integer(p, at.DY), load_integer(p, at.OUT)
    for u in range(low, high):
        sample, first, n = unit(p, u)
        start = sample * length + first
        for row in range(start, start + n):
            offset = row * stride
            beside = None if residual is None else residual + offset
            aside = None if residual is None else load_integer(p, at.DRESIDUAL) + offset
            if mask is not None and not load_flag(mask, row):
                _clear(dx + offset, channels, like)
                if aside is not None:
                    _clear(aside, channels, like)
                continue
            _gradient_map(
                x + offset, dy + offset, beside, dx + offset, aside, table, channels, act, like
            )
