"""Memory for results: large pieces are made of huge pages and are used again.

A fresh page costs a fault and is cleared before it is written; at 50 MB that takes as long as the
loops. So a piece is put on a shelf when the last tensor on it dies, and the next result of its
size takes it. Of what lies on the shelf the system may take back the large pieces whenever it
needs memory (MADV_FREE), and pieces on the shelf and in use together are never more than were
once in use.
"""

import math
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch
from torch import Tensor

HUGE_PAGE = 2 << 20
LARGE = HUGE_PAGE  # bytes; the C library keeps smaller pieces itself
LENT_BACK = 32 << 20  # bytes from which saying so to the system costs little beside the loops
SLACK = 1.25  # a piece serves a result of which it is at most so many times the size
SHELVES = hasattr(mmap, "MADV_HUGEPAGE") and hasattr(mmap, "MADV_FREE")  # Linux


class Shelf:
    """Pieces of memory that no tensor uses at present.

    Attributes:
        used: bytes of the pieces that tensors use.
        most: the most that they used at once.
    """

    def __init__(self) -> None:
        self.used = self.most = 0
        self._pieces: list[mmap.mmap] = []  # the one that was used last is the last
        # a tensor may die in any thread, and within _take: what comes back waits here
        self._back: deque[mmap.mmap] = deque()
        self._lock = threading.Lock()

    @property
    def kept(self) -> int:
        """Bytes that wait on the shelf."""
        self._sort_in()
        return sum(map(len, self._pieces))

    def bytes(self, size: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        """Memory of at least `size` bytes, with anything in it; it comes back by itself."""
        size = -(-size // HUGE_PAGE) * HUGE_PAGE
        piece = self._take(size)
        lent = np.frombuffer(piece, np.uint8)
        weakref.finalize(lent, self._return, piece).atexit = False
        return lent

    def clear(self) -> None:
        """Give what waits on the shelf back to the system."""
        self._sort_in()
        with self._lock:
            self._pieces.clear()

    def after_fork(self) -> None:
        """A thread that held the lock is not there in the child."""
        self._lock = threading.Lock()

    def _take(self, size: int) -> mmap.mmap:
        self._sort_in()
        with self._lock:
            fitting = (p for p in reversed(self._pieces) if size <= len(p) <= SLACK * size)
            piece = next(fitting, None)
            if piece is not None:
                self._pieces.remove(piece)
            self.used += len(piece) if piece is not None else size
            self.most = max(self.most, self.used)
            while self._pieces and self.used + sum(map(len, self._pieces)) > self.most:
                self._pieces.pop(0)
        return piece if piece is not None else _mapped(size)

    def _return(self, piece: mmap.mmap) -> None:
        if len(piece) >= LENT_BACK:
            with suppress(OSError):
                piece.madvise(mmap.MADV_FREE)
        self._back.append(piece)

    def _sort_in(self) -> None:
        with self._lock, suppress(IndexError):
            while True:
                piece = self._back.popleft()
                self.used -= len(piece)
                self._pieces.append(piece)


def _mapped(size: int) -> mmap.mmap:
    piece = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system without huge pages is only slower
        piece.madvise(mmap.MADV_HUGEPAGE)
    return piece


shelf = Shelf()
_allowed = SHELVES
if SHELVES:
    os.register_at_fork(after_in_child=lambda: shelf.after_fork())


@contextmanager
def from_torch() -> Iterator[None]:
    """Inside, all memory is torch's own, whose profiler then sees it."""
    global _allowed
    before, _allowed = _allowed, False
    try:
        yield
    finally:
        _allowed = before


def _shelved(size: int) -> bool:
    # deterministic mode fills what torch allocates, so that nothing depends on old values
    return size >= LARGE and _allowed and not torch.are_deterministic_algorithms_enabled()


def like(x: Tensor) -> Tensor:
    """Memory for a tensor as x, with anything in it."""
    if not _shelved(x.nbytes):
        return torch.empty_like(x)
    return _on(shelf.bytes(x.nbytes), torch.empty_like(x, device="meta"))


def table(*shape: int) -> Tensor:
    """Memory for float64 numbers, with anything in it."""
    size = 8 * math.prod(shape)
    if not _shelved(size):
        return torch.empty(shape, dtype=torch.float64)
    return _on(shelf.bytes(size), torch.empty(shape, dtype=torch.float64, device="meta"))


def _on(memory: "np.ndarray[tuple[int], np.dtype[np.uint8]]", form: Tensor) -> Tensor:
    # set_ instead of views: autograd forbids to change a view in place that no_grad made
    storage = torch.from_numpy(memory).untyped_storage()
    return torch.empty(0, dtype=form.dtype).set_(storage, 0, form.shape, form.stride())
