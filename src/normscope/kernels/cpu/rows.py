"""Loops over (N, S, C): the channels of a value lie side by side, as in NHWC and in (N, C).

Each chunk of rows gives its sums for all channels, the chunks are merged, and a second pass maps.
"""

from typing import Any

import numpy as np
from numba import njit

from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.channel import chunk, place, unit, values
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
def _unfold(s: int, q: int, shift: int, channels: int, fold: int, count: float) -> None:
    """From sums, with the rows of a fold apart, to mean and m2 of each channel, in s and q.

    All are centred by the same row, so their sums add up.
    """
    for f in range(1, fold):
        for c in range(channels):
            store(s, c, load(s, c, FLOAT64) + load(s, f * channels + c, FLOAT64), FLOAT64)
            store(q, c, load(q, c, FLOAT64) + load(q, f * channels + c, FLOAT64), FLOAT64)
    for c in range(channels):
        part = load(s, c, FLOAT64)
        store(q, c, load(q, c, FLOAT64) - part * (part / count), FLOAT64)
        store(s, c, load(shift, c, FLOAT64) + part / count, FLOAT64)


@njit(**OPTIONS)
def sums(p: int, i: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """The moments of a chunk in every channel, into PARTIAL."""
    _, low, high = chunk(p, i)
    channels, fold = load_integer(p, at.C), load_integer(p, at.FOLD)
    width = load_integer(p, at.WIDTH)
    length, stride = load_integer(p, at.S), channels * bytes_of(like)
    s = load_integer(p, at.PARTIAL) + 24 * i * width
    q, shift = s + 8 * width, s + 16 * width
    begun = False
    for u in range(low, high):
        sample, first, n = unit(p, u)
        row, end = sample * length + first, sample * length + first + n
        while row < end:
            rows = min(fold, end - row)
            if mask is None or load_flag(mask, row):
                here = load_integer(p, at.X) + row * stride
                if not begun:
                    for f in range(fold):
                        skip = 8 * f * channels
                        _begin(here, s + skip, q + skip, shift + skip, channels, like)
                    begun = True
                _add(here, s, q, shift, rows * channels, like)
            row += rows
    if begun:
        _unfold(s, q, shift, channels, fold, values(p, i))
    else:
        _clear(s, channels, FLOAT64)
        _clear(q, channels, FLOAT64)


@njit(**OPTIONS)
def _centred(x: int, table: int, width: int, c: int, like: Any) -> Any:
    """x - m, and u = (x - m) a + b."""
    d = load(x, c, like) - load(table, c, wide(like))
    a = load(table, width + c, wide(like))
    return d, d * a + load(table, 2 * width + c, wide(like))


@njit(**OPTIONS)
def _map(
    x: int, residual: Any, y: int, n: int, table: int, width: int, act: Any, like: Any
) -> None:
    """y = act((x - m) a + b + residual) of n values of a row."""
    for c in range(n):
        _, u = _centred(x, table, width, c, like)
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
    channels, fold = load_integer(p, at.C), load_integer(p, at.FOLD)
    width = load_integer(p, at.WIDTH)
    length, stride = load_integer(p, at.S), channels * bytes_of(like)
    table = load_integer(p, at.COEFFICIENTS) + 5 * r * width * bytes_of(wide(like))
    x, y = load_integer(p, at.X), load_integer(p, at.OUT)
    for u in range(low, high):
        sample, first, n = unit(p, u)
        row, end = sample * length + first, sample * length + first + n
        while row < end:
            rows, offset = min(fold, end - row), row * stride
            if mask is None or load_flag(mask, row):
                beside = None if residual is None else residual + offset
                _map(x + offset, beside, y + offset, rows * channels, table, width, act, like)
            else:
                _clear(y + offset, channels, like)
            row += rows


@njit(**OPTIONS)
def _gradient(
    x: int, dy: int, residual: Any, table: int, width: int, c: int, act: Any, like: Any
) -> Any:
    """g = dy act'(u) and x - m of one value."""
    d, u = _centred(x, table, width, c, like)
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
    n: int,
    table: int,
    width: int,
    act: Any,
    like: Any,
) -> None:
    """Add g and g (x - m) of n values of a row."""
    for c in range(n):
        g, d = _gradient(x, dy, residual, table, width, c, act, like)
        store(s, c, load(s, c, FLOAT64) + np.float64(g), FLOAT64)
        store(q, c, load(q, c, FLOAT64) + np.float64(g) * np.float64(d), FLOAT64)


@njit(**OPTIONS)
def gradient_sums(p: int, i: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """The sums of g and g xhat of a chunk in every channel, into PARTIAL."""
    r, low, high = chunk(p, i)
    channels, fold = load_integer(p, at.C), load_integer(p, at.FOLD)
    width = load_integer(p, at.WIDTH)
    length, stride = load_integer(p, at.S), channels * bytes_of(like)
    table = load_integer(p, at.COEFFICIENTS) + 5 * r * width * bytes_of(wide(like))
    x, dy = load_integer(p, at.X), load_integer(p, at.DY)
    s = load_integer(p, at.PARTIAL) + 24 * i * width
    q = s + 8 * width
    _clear(s, 2 * width, FLOAT64)
    for u in range(low, high):
        sample, first, n = unit(p, u)
        row, end = sample * length + first, sample * length + first + n
        while row < end:
            rows, offset = min(fold, end - row), row * stride
            if mask is None or load_flag(mask, row):
                beside = None if residual is None else residual + offset
                _add_gradient(
                    x + offset,
                    dy + offset,
                    beside,
                    s,
                    q,
                    rows * channels,
                    table,
                    width,
                    act,
                    like,
                )
            row += rows
    for f in range(1, fold):
        for c in range(channels):
            store(s, c, load(s, c, FLOAT64) + load(s, f * channels + c, FLOAT64), FLOAT64)
            store(q, c, load(q, c, FLOAT64) + load(q, f * channels + c, FLOAT64), FLOAT64)
    skip = 8 * place(p, 0, r if load_integer(p, at.K) > 1 else 0)
    mean, rstd = load_integer(p, at.MEAN) + skip, load_integer(p, at.RSTD) + skip
    for c in range(channels):  # the sums were taken about m, which the table holds
        lost = np.float64(load(table, c, wide(like))) - load(mean, c, FLOAT64)
        about = load(q, c, FLOAT64) + lost * load(s, c, FLOAT64)
        store(q, c, about * load(rstd, c, FLOAT64), FLOAT64)


@njit(**OPTIONS)
def _gradient_map(
    x: int,
    dy: int,
    residual: Any,
    dx: int,
    dresidual: Any,
    n: int,
    table: int,
    width: int,
    act: Any,
    like: Any,
) -> None:
    """dx = g a + (x - m) gb + gc and dresidual = g of n values of a row."""
    for c in range(n):
        g, d = _gradient(x, dy, residual, table, width, c, act, like)
        a = load(table, width + c, wide(like))
        gb = load(table, 3 * width + c, wide(like))
        store(dx, c, g * a + d * gb + load(table, 4 * width + c, wide(like)), like)
        if dresidual is not None:
            store(dresidual, c, g, like)


@njit(**OPTIONS)
def gradient_map(p: int, i: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """The gradient of x of a chunk; masked rows get zero."""
    r, low, high = chunk(p, i)
    channels, fold = load_integer(p, at.C), load_integer(p, at.FOLD)
    width = load_integer(p, at.WIDTH)
    length, stride = load_integer(p, at.S), channels * bytes_of(like)
    table = load_integer(p, at.COEFFICIENTS) + 5 * r * width * bytes_of(wide(like))
    x, dy, dx = load_integer(p, at.X), load_integer(p, at.DY), load_integer(p, at.OUT)
    for u in range(low, high):
        sample, first, n = unit(p, u)
        row, end = sample * length + first, sample * length + first + n
        while row < end:
            rows, offset = min(fold, end - row), row * stride
            beside = None if residual is None else residual + offset
            aside = None if residual is None else load_integer(p, at.DRESIDUAL) + offset
            if mask is None or load_flag(mask, row):
                _gradient_map(
                    x + offset,
                    dy + offset,
                    beside,
                    dx + offset,
                    aside,
                    rows * channels,
                    table,
                    width,
                    act,
                    like,
                )
            else:
                _clear(dx + offset, channels, like)
                if aside is not None:
                    _clear(aside, channels, like)
            row += rows
