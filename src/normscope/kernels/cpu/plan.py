"""How a call is cut into work: layout, groups in order, chunks, and how many values each has."""

from array import array
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from torch import Tensor

from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.compiled import called

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Values per channel in a chunk of planes: one shift per chunk, so what cancels stays below
# CHUNK * 2**-52; and it does not depend on the number of threads, so neither do results.
CHUNK = 16_384
ROW_VALUES = 65_536  # values of all channels in a chunk of rows: 256 KB of float32 stay in cache
LONG_ROW = 512  # values: rows of fewer channels are read several at a time
NARROW = 128  # fewer values per sample and channel than this are read a block of channels at once
BLOCK_VALUES = 1024  # values of a sample in such a block
FEWEST_SAMPLES = 4  # per group; with fewer, merging the columns costs more than it saves
FEWEST_ROWS = 32  # below this, merging chunks costs as much as summing them


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """One call's work.

    Attributes:
        rows: whether channels lie side by side (N, S, C), or values do (N, C, S).
        n, c, s: samples, channels, values per sample and channel; rows without groups and mask
            are one sample.
        block: channels that are read as one row where s is small; 1: none.
        fold: rows that are read as one, so that loops over few channels are long enough.
        pieces, piece: a sample is cut into so many units of so many values.
        chunk, num_chunks: units per chunk (without a table), and chunks.
        k: groups with statistics of their own.
        r: groups that chunks tell apart.
        order: samples by group, or None.
        groups: (n,) the group of each sample, or None.
        chunks: (num_chunks, 4) group, first unit, end, values; or None.
        count: (k,) values per channel.
        count_r: (r,) the same of the groups that are told apart.
        mask: (N, S) bool, contiguous, or None.
        template: slots that hold all of this.
        recipes: how calls with this plan are done; see `call`.
    """

    rows: bool
    n: int
    c: int
    s: int
    block: int
    fold: int
    pieces: int
    piece: int
    chunk: int
    num_chunks: int
    k: int
    r: int
    groups: Integers | None
    order: Integers | None
    chunks: Integers | None
    count: Floats
    count_r: Floats
    mask: Tensor | None
    template: "array[int]"
    recipes: dict[Any, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many values there are."""
        return self.n * self.c * self.s

    @property
    def by_channel(self) -> bool:
        """Whether tables hold a channel's groups side by side: where a thread takes a channel."""
        return self.k > 1 and not self.rows

    def __post_init__(self) -> None:
        """Fill the template; the arrays that it points to live as long as the plan."""
        slots = self.template
        slots[at.N], slots[at.C], slots[at.S] = self.n, self.c, self.s
        slots[at.FOLD], slots[at.WIDTH] = self.fold, self.fold * self.c
        slots[at.BLOCK] = self.block
        slots[at.PIECES], slots[at.PIECE] = self.pieces, self.piece
        slots[at.CHUNK], slots[at.NUM_CHUNKS] = self.chunk, self.num_chunks
        slots[at.K], slots[at.R], slots[at.AFFINE_ROWS] = self.k, self.r, 1
        strides = (self.k, 1) if self.by_channel else (1, self.c)
        slots[at.TABLE_C], slots[at.TABLE_K] = strides
        slots[at.COUNT] = slots[at.FILLED] = self.count.ctypes.data
        if self.order is not None and self.chunks is not None:
            slots[at.ORDER], slots[at.CHUNKS] = self.order.ctypes.data, self.chunks.ctypes.data
        if self.groups is not None:
            slots[at.GROUPS], slots[at.COUNT_R] = self.groups.ctypes.data, self.count_r.ctypes.data
        if self.mask is not None:
            slots[at.MASK] = self.mask.data_ptr()


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
    if r == 1:
        groups = None
    s = x.numel() // (n * c)
    if groups is None and mask is None:
        return _whole(rows, n, c, s)
    fold, pieces, piece, units = _cut(rows, c, s, mask is None)
    block = 1 if rows or mask is not None else _block(c, s, n // r)
    flat = None if mask is None else mask.reshape(n, s).contiguous()
    ids = np.zeros(n, np.int64) if groups is None else groups.contiguous().numpy()
    flags = np.ones((0, 0), np.bool_) if flat is None else flat.numpy()
    order, chunks, counts = _sorting()(ids, r, pieces, piece, s, units, flags)
    count = counts if k == r else counts.sum(keepdims=True)
    sizes = (rows, n, c, s, block, fold, pieces, piece, units, len(chunks), k, r)
    own = None if groups is None else ids
    return Plan(*sizes, own, order, chunks, count, counts, flat, _empty())


@lru_cache(1024)
def _whole(rows: bool, n: int, c: int, s: int) -> Plan:
    """All samples as one group, without a mask."""
    count = np.array([float(n * s)])
    if rows:
        n, s = 1, n * s
    fold, pieces, piece, units = _cut(rows, c, s, may_fold=True)
    block = 1 if rows else _block(c, s, n)
    sizes = (rows, n, c, s, block, fold, pieces, piece, units, -(-n * pieces // units), 1, 1)
    return Plan(*sizes, None, None, None, count, count, None, _empty())


def _cut(rows: bool, c: int, s: int, may_fold: bool) -> tuple[int, int, int, int]:
    """Rows read as one, units of a sample, values of a unit, units of a chunk."""
    most = max(FEWEST_ROWS, ROW_VALUES // c) if rows else CHUNK
    piece = -(-s // -(-s // most))
    fold = max(1, min(LONG_ROW // c, s)) if rows and may_fold else 1
    return fold, -(-s // piece), piece, max(1, most // piece)


def _block(c: int, s: int, samples: int) -> int:
    """Channels that are read as one row."""
    return min(c, BLOCK_VALUES // s) if s < NARROW and samples >= FEWEST_SAMPLES else 1


def _empty() -> "array[int]":
    return array("q", bytes(8 * at.SLOTS))


@cache
def _sorting() -> Any:
    number = types.int64
    given = (number[::1], *[number] * 5, types.boolean[:, ::1])
    return called(given, _by_group)


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
