"""How a call is cut into work: layout, groups in order, chunks, and how many values each has."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit
from torch import Tensor

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Values per channel in a chunk of planes: one shift per chunk, so what cancels stays below
# CHUNK * 2**-52; and it does not depend on the number of threads, so neither do results.
CHUNK = 16_384
ROW_VALUES = 65_536  # values of all channels in a chunk of rows: 256 KB of float32 stay in cache
FEWEST_ROWS = 32  # below this, merging chunks costs as much as summing them


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """One call's work.

    Attributes:
        rows: whether channels lie side by side (N, S, C), or values do (N, C, S).
        n, c, s: samples, channels, values per sample and channel.
        pieces, piece: a sample is cut into so many units of so many values.
        chunk, num_chunks: units per chunk (without a table), and chunks.
        k: groups with statistics of their own.
        r: groups that chunks tell apart.
        order: samples by group, or None.
        chunks: (num_chunks, 4) group, first unit, end, values; or None.
        count: (k,) values per channel.
        mask: (N, S) bool, contiguous, or None.
    """

    rows: bool
    n: int
    c: int
    s: int
    pieces: int
    piece: int
    chunk: int
    num_chunks: int
    k: int
    r: int
    order: Integers | None
    chunks: Integers | None
    count: Floats
    mask: Tensor | None


def plan(
    x: Tensor, rows: bool, groups: Tensor | None, k: int, affine_rows: int, mask: Tensor | None
) -> Plan:
    """Cut a call into work.

    Args:
        x: (N, C, *S).
        rows: how it lies in memory.
        groups: (N,) int64; None: one group.
        k: groups with statistics of their own.
        affine_rows: rows of weight and bias.
        mask: (N, 1, *S) bool, or None.
    """
    n, c, r = x.shape[0], x.shape[1], max(k, affine_rows)
    groups = groups if r > 1 else None
    s = x.numel() // (n * c)
    most = max(FEWEST_ROWS, ROW_VALUES // c) if rows else CHUNK
    pieces = -(-s // most)
    piece = -(-s // pieces)
    pieces = -(-s // piece)
    units = max(1, most // piece)
    if groups is None and mask is None:
        num_chunks = -(-n * pieces // units)
        count = np.array([float(n * s)])
        return Plan(rows, n, c, s, pieces, piece, units, num_chunks, 1, 1, None, None, count, None)
    flat = None if mask is None else mask.reshape(n, s).contiguous()
    ids = np.zeros(n, np.int64) if groups is None else groups.contiguous().numpy()
    flags = np.ones((0, 0), np.bool_) if flat is None else flat.numpy()
    order, chunks, counts = _by_group(ids, r, pieces, piece, s, units, flags)
    count = counts if k == r else counts.sum(keepdims=True)
    return Plan(rows, n, c, s, pieces, piece, units, len(chunks), k, r, order, chunks, count, flat)


@njit(nogil=True, cache=True)
def _by_group(groups: Any, r: int, pieces: int, piece: int, s: int, units: int, flags: Any) -> Any:
    """Samples sorted by group (stable), chunks of at most so many units, values per group."""
    n = len(groups)
    starts = np.zeros(r + 1, np.int64)
    for i in range(n):
        starts[groups[i] + 1] += 1
    total = 0
    for k in range(r):
        total += -(-starts[k + 1] * pieces // units)
        starts[k + 1] += starts[k]
    order, ends = np.empty(n, np.int64), starts[:-1].copy()
    for i in range(n):
        order[ends[groups[i]]] = i
        ends[groups[i]] += 1
    chunks, counts = np.empty((total, 4), np.int64), np.zeros(r, np.float64)
    row = 0
    for k in range(r):
        for low in range(starts[k] * pieces, starts[k + 1] * pieces, units):
            high = min(low + units, starts[k + 1] * pieces)
            count = 0
            for u in range(low, high):
                first = (u % pieces) * piece
                size = min(piece, s - first)
                if flags.size:
                    sample = order[u // pieces]
                    for j in range(first, first + size):
                        count += flags[sample, j]
                else:
                    count += size
            chunks[row, 0], chunks[row, 1], chunks[row, 2], chunks[row, 3] = k, low, high, count
            counts[k] += count
            row += 1
    return order, chunks, counts
