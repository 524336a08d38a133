"""How a call is cut into programs: layout, tiles, chunks of one group each. Nothing waits.

Sizes depend on shapes alone, so neither the device nor what else it does changes a result; groups
are sorted on the device, and as many chunks are launched as there can be at most.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from normscope.kernels.gpu import merging

SIZES = {  # of each program: bytes and values that a tile holds at most, and warps
    "moments": (8192, 2048, 4),
    "normalize": (8192, 4096, 4),
    "gradient_sums": (4096, 2048, 4),
    "gradient": (4096, 2048, 4),
}
PROGRAMS = 1024  # about as many as a large device runs at once; chunks are cut for so many
LONGEST = 1024  # tiles of a chunk: a lane adds up no more values than so
WIDEST = 1024  # lanes side by side, unless a group has few rows
MERGED = {"BLOCK_Q": 128, "BLOCK_C": 4}  # parts and channels of a merge at a time
MOST_PLACES = (1 << 31) - (1 << 13)  # of a row: places within it are int32
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Order(NamedTuple):
    """Samples by group, sorted on the device.

    Attributes:
        order: (N,) int32.
        starts: (K + 2,) int32, where each group starts in it; the last one holds the samples whose
            group does not exist.
        kept: (2, C) float64 running statistics as they were; None where nobody asked for them.
    """

    order: Tensor
    starts: Tensor
    kept: Tensor | None


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """Values in rows of C * S: samples, or points where channels lie side by side.

    Attributes:
        x: dense.
        by_rows: whether its channels lie side by side.
        mask: (N, positions) uint8, contiguous, or None.
        c, s: channels, positions of a channel in a row.
        rows, per_sample: how many rows, and of a sample.
    """

    x: Tensor
    by_rows: bool
    mask: Tensor | None
    c: int
    s: int
    rows: int
    per_sample: int

    @property
    def row(self) -> int:
        """Values of a row."""
        return self.c * self.s

    @property
    def wide(self) -> torch.dtype:
        """In what single values are calculated."""
        return torch.float64 if self.x.dtype == torch.float64 else torch.float32

    def table(self, *shape: int) -> Tensor:
        """Memory for sums."""
        return torch.empty(shape, dtype=torch.float64, device=self.x.device)

    def cut(self, program: str, order: Order | None, groups: int) -> "Cut":
        """How a program goes over the rows of `groups` groups."""
        size, values, warps = SIZES[program]
        tile = min(size // self.x.element_size(), values)
        tile >>= self.wide == torch.float64  # twice the registers
        tile >>= self.mask is not None and self.s > 1  # a count per lane
        share = max(1, self.rows // groups)
        width = _width(self.row, max(min(WIDEST, tile), tile // _power(share)))
        height = min(max(1, tile // width), _power(share))
        blocks = -(-self.row // width)
        tiles = -(-self.rows // height)
        chunk = min(-(-tiles // max(1, PROGRAMS // blocks)), LONGEST) * height
        chunks = -(-self.rows // chunk)
        if order is not None:  # each group may begin one more
            chunks = self.rows // chunk + min(groups + 1, self.rows // self.per_sample)
        return Cut(self, order, groups, width, height, chunk, chunks, warps)


@dataclass(frozen=True, eq=False, slots=True)
class Cut:
    """One program's tiles and chunks over `of`."""

    of: Rows
    order: Order | None
    groups: int
    width: int
    height: int
    chunk: int
    chunks: int
    warps: int

    @property
    def programs(self) -> int:
        """Programs that go over values."""
        return self.chunks * -(-self.of.row // self.width)

    @property
    def slots(self) -> int:
        """Blocks of lanes that a channel may reach into."""
        return 1 if self.width % self.of.s == 0 else -(-(self.of.s - 1) // self.width) + 1

    def parts(self, count: int) -> Tensor:
        """Memory for what the programs add up."""
        return self.of.table(count, self.chunks * self.slots, self.of.c)

    def over(self) -> dict[str, Any]:
        """Return what every program over values is given."""
        return {
            "mask": self.of.mask,
            "order": None if self.order is None else self.order.order,
            "starts": None if self.order is None else self.order.starts,
            "rows": self.of.rows,
            "chunk": self.chunk,
            "BLOCK_R": self.height,
            "BLOCK_K": self.block_k,
            **self._shape(),
            "num_warps": self.warps,
        }

    def merge(self) -> dict[str, Any]:
        """Return what the merge of their parts is given."""
        return {
            "starts": None if self.order is None else self.order.starts,
            "known": self.groups,
            "chunk": self.chunk,
            "items": self.chunks,
            "SLOTS": self.slots,
            "BLOCK_K": self.block_k,
            **self._shape(),
            **MERGED,
        }

    def merges(self, items: int) -> tuple[int]:
        """Programs of a merge of so many items."""
        return (items * -(-self.of.c // MERGED["BLOCK_C"]),)

    @property
    def block_k(self) -> int:
        """Groups looked up at a time."""
        return min(1024, _power(self.groups + 1))

    def _shape(self) -> dict[str, Any]:
        of = self.of
        wide = tl.float64 if of.wide == torch.float64 else tl.float32
        per_sample = 1 if self.order is None else of.per_sample
        return {"C": of.c, "S": of.s, "P": per_sample, "BLOCK_E": self.width, "WIDE": wide}


def rows_of(x: Tensor, mask: Tensor | None) -> Rows:
    """Lay out a call.

    Args:
        x: (N, C, *S).
        mask: (N, 1, *S) bool, or None.
    """
    x, by_rows = dense(x)
    n, c = x.shape[:2]
    s = x.numel() // (n * c)
    flags = None if mask is None else mask.reshape(n, s).contiguous().view(torch.uint8)
    return Rows(x, by_rows, flags, c, *((1, n * s, s) if by_rows else (s, n, 1)))


def arrange(groups: Tensor, known: int, running: tuple[Tensor, Tensor] | None) -> Order:
    """Sort the samples by group on the device, and copy the running statistics before they move."""
    order = torch.empty(len(groups), dtype=torch.int32, device=groups.device)
    starts = order.new_empty(known + 2)
    kept, c = None, 0
    if running is not None:
        c = running[0].numel()
        kept = torch.empty(2, c, device=groups.device, dtype=torch.float64)
    block = min(1024, _power(len(groups)))
    tables = *(running or (None, None)), kept, c
    merging.arrange[(known + 1,)](
        groups.contiguous(), order, starts, len(groups), known, *tables, BLOCK=block
    )
    return Order(order, starts, kept)


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
    """Return a tensor of x's shape in x's order in memory, without gaps."""
    if by_rows and tensor.dim() > 2:
        return tensor.movedim(1, -1).contiguous()
    return tensor.contiguous()


def _width(length: int, most: int) -> int:
    """Return the widest block of lanes that leaves at most an eighth of them idle; at least 8."""
    width = max(8, min(most, _power(length)))
    while width > 32 and -(-length // width) * width * 8 > length * 9:
        width //= 2
    return width


def _power(value: int) -> int:
    """Return the smallest power of two that is not below value."""
    return 1 << (value - 1).bit_length()
