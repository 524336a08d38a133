"""One call of compiled loops: their arguments, what must stay alive meanwhile, and the running."""

from array import array
from typing import Any

import torch
from torch import Tensor

from normscope.kernels.cpu import channel, planes, rows, team
from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.entries import entry
from normscope.kernels.cpu.plan import Floats, Integers, Plan

_EMPTY = array("q", bytes(8 * at.SLOTS))


class Call:
    """The slots of a call, filled step by step."""

    def __init__(self, work: Plan, x: Tensor, act: str | None) -> None:
        self.work = work
        self._dtype, self._act = str(x.dtype), act
        self._kept: list[Any] = [x]
        self._slots = slots = _EMPTY[:]
        slots[at.X] = x.data_ptr()
        slots[at.N], slots[at.C], slots[at.S] = work.n, work.c, work.s
        slots[at.PIECES], slots[at.PIECE] = work.pieces, work.piece
        slots[at.CHUNK], slots[at.NUM_CHUNKS] = work.chunk, work.num_chunks
        slots[at.K], slots[at.R], slots[at.AFFINE_ROWS] = work.k, work.r, 1
        self.numbers(at.COUNT, work.count)
        if work.order is not None and work.chunks is not None:
            self.numbers(at.ORDER, work.order)
            self.numbers(at.CHUNKS, work.chunks)
        self.tensor(at.MASK, work.mask)

    def tensor(self, slot: int, tensor: Tensor | None) -> None:
        """Put the address of a tensor's values; None leaves 0."""
        if tensor is not None:
            self._slots[slot] = tensor.data_ptr()
            self._kept.append(tensor)

    def numbers(self, slot: int, values: Floats | Integers) -> None:
        """Put the address of a NumPy array's values."""
        self._slots[slot] = values.ctypes.data
        self._kept.append(values)

    def eps(self, eps: float) -> None:
        """Put the number that is added to variances."""
        number = array("d", [eps])
        self._slots[at.EPS] = number.buffer_info()[0]
        self._kept.append(number)

    def affine(self, weight: Tensor | None, bias: Tensor | None) -> None:
        """Put weight and bias, (rows, C)."""
        some = weight if weight is not None else bias
        if some is None:
            return
        self._slots[at.AFFINE_ROWS] = some.shape[0]
        self._slots[at.AFFINE_DTYPE] = at.CODES[str(some.dtype)]
        for slot, table in ((at.WEIGHT, weight), (at.BIAS, bias)):
            if table is not None:
                self.tensor(slot, table.contiguous())

    def running(self, mean: Tensor, var: Tensor, share: Floats | None) -> None:
        """Put running statistics, (rows, C), with the batch's share in their update."""
        slots = self._slots
        slots[at.RUNNING_ROWS] = mean.shape[0]
        slots[at.RUNNING_DTYPE] = at.CODES[str(mean.dtype)]
        self.tensor(at.RUNNING_MEAN, mean)
        self.tensor(at.RUNNING_VAR, var)
        if share is not None:
            self.numbers(at.SHARE, share)

    def strides(self, table: Tensor) -> None:
        """Say how all tables of statistics lie, after one of them."""
        by_groups = table.stride(1) == 1 or table.shape[0] == 1
        self._slots[at.TABLE_C] = 1 if by_groups else table.stride(1)
        self._slots[at.TABLE_K] = self.work.c if by_groups else 1

    def run(self, work: Any, items: int, values: int) -> None:
        """Do `work` on so many items, on as many threads as so many values deserve."""
        slots = self._slots
        compiled = entry(work, self._dtype, self._act, slots[at.RESIDUAL] != 0, slots[at.MASK] != 0)
        slots[at.ITEMS], slots[at.NEXT] = items, 0
        team.run(compiled.call, compiled.address, slots, values)

    def in_chunks(self, sums: Any, merge: Any, map_: Any) -> None:
        """Sums of every chunk, merged per channel, and the map; each where it is given."""
        work = self.work
        total = work.n * work.c * work.s
        if sums is not None:
            if sums is rows.gradient_sums:
                self._prepare()
            partial = torch.empty(3 * work.num_chunks * work.c, dtype=torch.float64)
            self.tensor(at.PARTIAL, partial)
            self.run(sums, work.num_chunks, total)
            self.run(merge, work.c, partial.numel())
        if map_ is not None:
            if work.rows:
                self._prepare()
            self.run(map_, work.num_chunks, total)

    def _prepare(self) -> None:
        work = self.work
        size = 5 * work.r * work.c
        self.tensor(at.COEFFICIENTS, torch.empty(size, dtype=torch.float64))
        self.run(rows.prepare, work.r, size)

    def forward(self, *, moments_only: bool = False) -> None:
        """Moments, what follows from them, and the map where OUT is given."""
        work = self.work
        if self._whole_channels():
            self.run(planes.forward, work.c, work.n * work.c * work.s)
            return
        family: Any = rows if work.rows else planes
        self.in_chunks(family.sums, channel.merge, None if moments_only else family.map_)

    def backward(self, *, sums_only: bool = False) -> None:
        """Sums of the gradient, gradients of tables, and that of x where OUT is given."""
        work = self.work
        if self._whole_channels():
            self.run(planes.backward, work.c, work.n * work.c * work.s)
            return
        family: Any = rows if work.rows else planes
        self.in_chunks(
            family.gradient_sums,
            channel.merge_gradients,
            None if sums_only else family.gradient_map,
        )

    def map_(self, backward: bool) -> None:
        """Only the map, with the tables that are given."""
        family: Any = rows if self.work.rows else planes
        self.in_chunks(None, None, family.gradient_map if backward else family.map_)

    def _whole_channels(self) -> bool:
        """Whether there are channels enough to give each thread whole ones."""
        work = self.work
        if work.rows:
            return False
        threads = team.threads(work.n * work.c * work.s)
        return threads == 1 or work.c >= 4 * threads
