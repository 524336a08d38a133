"""How a call is cut into programs: layout, tiles, chunks of one group each. Nothing waits.

Sizes depend on shapes alone, so neither the device nor what else it does changes a result; groups
are sorted on the device, and as many chunks are launched as there can be at most.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 2048  # values that a program holds at a time
WIDEST = 64  # channels of a tile where they lie side by side
PROGRAMS = 1024  # about as many as a large device runs at once; chunks are cut for so many
LONGEST = 1 << 29  # points of a chunk: with the place in a sample they are counted in int32


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """One call's work. A point is a sample's position, with a value in every channel.

    Attributes:
        n, c, s: samples, channels, positions per sample; rows of one group are samples themselves.
        strides: of sample, channel and position, in values.
        block_c, block_p: channels and points of a tile.
        groups: (N,) int64; None: one group.
        r: how many groups there are.
        mask: (N, S) uint8, contiguous, or None.
    """

    n: int
    c: int
    s: int
    strides: tuple[int, int, int]
    block_c: int
    block_p: int
    groups: Tensor | None
    r: int
    mask: Tensor | None

    @property
    def points(self) -> int:
        """How many points there are."""
        return self.n * self.s

    @property
    def channel_blocks(self) -> int:
        """Tiles that lie side by side over all channels."""
        return -(-self.c // self.block_c)

    @property
    def chunk(self) -> int:
        """Points of a chunk: whole tiles."""
        tiles = -(-self.points // self.block_p)
        share = -(-tiles // max(1, PROGRAMS // self.channel_blocks))
        return min(share * self.block_p, LONGEST)


@dataclass(frozen=True, eq=False, slots=True)
class Chunks:
    """Points by group, in pieces.

    Attributes:
        count: pieces; with groups, as many as there can be at most.
        order: (N,) int64 samples by group; None: one group.
        table: (count, 4) int64 group, first place in order, first position there, points.
        ends: (R + 1,) int64, the first chunk of each group and the end of the last.
    """

    count: int
    order: Tensor | None = None
    table: Tensor | None = None
    ends: Tensor | None = None


def plan(x: Tensor, by_rows: bool, groups: Tensor | None, r: int, mask: Tensor | None) -> Plan:
    """Cut a call.

    Args:
        x: (N, C, *S), dense.
        by_rows: whether its channels lie side by side.
        groups: (N,) int64, or None.
        r: groups that are told apart; 1 leaves `groups` aside.
        mask: (N, 1, *S) bool, or None.
    """
    n, c = x.shape[:2]
    s = x.numel() // (n * c)
    groups = groups if r > 1 else None
    flags = None if mask is None else mask.reshape(n, s).contiguous().view(torch.uint8)
    if by_rows and groups is None:
        n, s = n * s, 1
    strides = (s * c, 1, c) if by_rows else (s * c, s, 1)
    most = _power(n * s)
    if by_rows:
        block_c = min(WIDEST, _power(c), TILE)
        block_p = min(most, TILE // block_c)
    else:
        block_p = min(most, TILE)
        block_c = min(_power(c), TILE // block_p)
    return Plan(n, c, s, strides, block_c, block_p, groups, r, flags)


def cut(work: Plan) -> Chunks:
    """The points by group, in chunks of at most `work.chunk`."""
    if work.groups is None:
        return Chunks(-(-work.points // work.chunk))
    size, r = work.chunk, work.r
    values, order = torch.sort(work.groups, stable=True)
    starts = torch.searchsorted(values, torch.arange(r + 1, device=values.device))
    points = starts.diff() * work.s
    ends = F.pad(((points + size - 1) // size).cumsum(0), (1, 0))
    count = work.points // size + min(r, work.n)  # each group may begin one more
    i = torch.arange(count, device=values.device)
    group = (torch.searchsorted(ends, i, right=True) - 1).clamp(max=r - 1)
    first = (i - ends[group]) * size
    length = torch.where(i < ends[-1], (points[group] - first).clamp(max=size), 0)
    table = torch.stack([group, starts[group] + first // work.s, first % work.s, length], 1)
    return Chunks(count, order, table, ends)


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """x without gaps in memory, and whether its channels lie side by side."""
    if x.is_contiguous():
        return x, x.dim() == 2 or x.numel() == x.shape[0] * x.shape[1]
    by_rows = x.movedim(1, -1)
    if by_rows.is_contiguous():
        return x, True
    if x.dim() > 2 and x.stride(1) == 1:
        return by_rows.contiguous().movedim(-1, 1), True
    return x.contiguous(), x.numel() == x.shape[0] * x.shape[1]


def alike(tensor: Tensor, by_rows: bool) -> Tensor:
    """A tensor of x's shape in x's order in memory, without gaps."""
    if by_rows and tensor.dim() > 2:
        return tensor.movedim(1, -1).contiguous()
    return tensor.contiguous()


def _power(value: int) -> int:
    """The smallest power of two that is not below value."""
    return 1 << (value - 1).bit_length()
