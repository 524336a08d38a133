"""Loops over (N, C, S) for several groups: samples in the order of memory, sums apart by group.

Sorting samples by group would jump through memory; here each row is added to its group's sums.
"""

from typing import Any

import numpy as np
from numba import njit

from normscope.kernels.cpu import planes
from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.elements import OPTIONS, bytes_of
from normscope.kernels.cpu.groups import all_coefficients, gradients, moments
from normscope.kernels.cpu.memory import load, load_flag, load_integer, working


@njit(**OPTIONS)
def _first(x: int, mask: Any, n: int, like: Any) -> float:
    """The first value of a row that counts, by which its group is centred; NaN: none does."""
    for i in range(n):
        if mask is None or load_flag(mask, i):
            value = np.float64(load(x, i, like))
            return value if np.isfinite(value) else 0.0
    return np.nan


@njit(**OPTIONS)
def _fetch_ahead(p: int, slot: int, n: int, c: int, like: Any) -> None:
    """Ask for the row that comes some samples after sample n."""
    ahead = planes.rows_ahead(p, like)
    if ahead > 0 and n + ahead < load_integer(p, at.N):
        planes.fetch_row(p, slot, n + ahead, 0, load_integer(p, at.S), c, like)


@njit(**OPTIONS)
def forward(p: int, c: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """A whole channel: sums, statistics, running statistics, map."""
    groups, s, x = load_integer(p, at.GROUPS), load_integer(p, at.S), load_integer(p, at.X)
    samples, r_count, size = load_integer(p, at.N), load_integer(p, at.R), bytes_of(like)
    sums = np.zeros((4, r_count), np.float64)  # of x - shift, of its square, shift, begun
    for n in range(samples):
        r = load_integer(groups, n)
        _fetch_ahead(p, at.X, n, c, like)
        row = x + planes._row(p, n, 0, c) * size
        flags = None if mask is None else mask + n * s
        if sums[3, r] == 0.0:
            shift = _first(row, flags, s, like)
            if np.isnan(shift):
                continue
            sums[2, r], sums[3, r] = shift, 1.0
        part, square = planes._sums(row, flags, s, sums[2, r], like)
        sums[0, r] += part
        sums[1, r] += square
    moments(p, c, sums.ctypes.data)
    if load_integer(p, at.OUT) != 0:
        _map(p, c, residual, mask, act, like)


@njit(**OPTIONS)
def _map(p: int, c: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    groups, s = load_integer(p, at.GROUPS), load_integer(p, at.S)
    x, y, table = load_integer(p, at.X), load_integer(p, at.OUT), all_coefficients(p, c)
    for n in range(load_integer(p, at.N)):
        r = load_integer(groups, n)
        offset = planes._row(p, n, 0, c) * bytes_of(like)
        _fetch_ahead(p, at.OUT, n, c, like)
        planes._map(
            x + offset,
            None if residual is None else residual + offset,
            y + offset,
            None if mask is None else mask + n * s,
            s,
            working(table[0, r], like),
            working(table[1, r], like),
            working(table[2, r], like),
            act,
            like,
        )


@njit(**OPTIONS)
def backward(p: int, c: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """A whole channel: sums of the gradient, gradients of the tables, gradient of x."""
    groups, s, x = load_integer(p, at.GROUPS), load_integer(p, at.S), load_integer(p, at.X)
    dy, samples, table = load_integer(p, at.DY), load_integer(p, at.N), all_coefficients(p, c)
    sums = np.zeros((2, load_integer(p, at.R)), np.float64)
    for n in range(samples):
        r = load_integer(groups, n)
        offset = planes._row(p, n, 0, c) * bytes_of(like)
        _fetch_ahead(p, at.X, n, c, like)
        _fetch_ahead(p, at.DY, n, c, like)
        part, part_d = planes._gradient_sums(
            x + offset,
            dy + offset,
            None if residual is None else residual + offset,
            None if mask is None else mask + n * s,
            s,
            working(table[0, r], like),
            working(table[1, r], like),
            working(table[2, r], like),
            act,
            like,
        )
        sums[0, r] += part
        sums[1, r] += part_d
    gradients(p, c, sums.ctypes.data, table.ctypes.data)
    dx = load_integer(p, at.OUT)
    if dx == 0:
        return
    table = all_coefficients(p, c)
    for n in range(samples):
        r = load_integer(groups, n)
        offset = planes._row(p, n, 0, c) * bytes_of(like)
        _fetch_ahead(p, at.OUT, n, c, like)
        planes._gradient_map(
            x + offset,
            dy + offset,
            None if residual is None else residual + offset,
            dx + offset,
            None if residual is None else load_integer(p, at.DRESIDUAL) + offset,
            None if mask is None else mask + n * s,
            s,
            working(table[0, r], like),
            working(table[1, r], like),
            working(table[2, r], like),
            working(table[3, r], like),
            working(table[4, r], like),
            act,
            like,
        )
