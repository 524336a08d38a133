"""New memory: a large piece asks for huge pages, which cost 500 times fewer page faults."""

import ctypes
import mmap
import sys

import torch
from torch import Tensor

LARGE = 4 << 20  # bytes


def _advise() -> "ctypes._NamedFuncPointer | None":
    if sys.platform != "linux" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return madvise  # a refusal changes nothing but speed


_madvise = _advise()


def like(x: Tensor) -> Tensor:
    """Memory for a tensor as x."""
    return _advised(torch.empty_like(x))


def table(*shape: int) -> Tensor:
    """Memory for float64 numbers."""
    return _advised(torch.empty(shape, dtype=torch.float64))


def _advised(y: Tensor) -> Tensor:
    if y.nbytes >= LARGE and _madvise is not None:
        start = -(-y.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        _madvise(start, y.data_ptr() + y.nbytes - start, mmap.MADV_HUGEPAGE)
    return y
