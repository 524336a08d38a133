"""Running a compiled loop on torch's own OpenMP threads.

torch brings its OpenMP library into the process. Asking that same library for a team means that
normscope's loops and torch's never hold threads against each other: `torch.set_num_threads`
counts, several Python threads may call at once, and nothing spins while the other works. Where it
cannot be found (macOS, Windows, another OpenMP), loops run on the calling thread.
"""

import ctypes
import os
from array import array
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from normscope.kernels.cpu import entries
from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.compiled import Compiled

ALONE = 32_768  # values below which waking a team costs more than it saves

_forked = False  # a child of fork has the library's state but not its threads: it must not ask


def _after_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)


class Library(NamedTuple):
    """Of the OpenMP library that torch uses: GOMP_parallel, and addresses of two more functions."""

    parallel: Callable[[int, int, int, int], None]
    barrier: int
    number: int  # of a thread in its team


@cache
def library() -> Library | None:
    """The OpenMP library that torch uses, or None."""
    maps = Path("/proc/self/maps")
    if "OpenMP" not in torch.__config__.parallel_info() or not maps.exists():
        return None
    lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
    found = {line.split(maxsplit=5)[-1] for line in lines if "omp" in line.rpartition("/")[2]}
    for path in sorted(found, key=lambda path: "torch" not in path):  # torch's copy first
        loaded = ctypes.CDLL(path)
        names = ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num")
        if all(hasattr(loaded, name) for name in names):
            start, *others = (getattr(loaded, name) for name in names)
            start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            start.restype = None
            barrier, number = (ctypes.cast(f, ctypes.c_void_p).value or 0 for f in others)
            return Library(start, barrier, number)
    return None


def threads(values: int) -> int:
    """How many threads a loop over so many values runs on."""
    if values < ALONE or _forked or library() is None:
        return 1
    return torch.get_num_threads()


def run(slots: "array[int]", count: int) -> None:
    """Do the phases of a call on every thread of a team.

    Args:
        slots: kept alive by the caller while this runs.
        count: of threads.
    """
    if count > 1:
        library_ = library()
        assert library_ is not None, "threads() asked"
        slots[at.BARRIER], slots[at.NUMBER] = library_.barrier, library_.number
    start(entries.conductor(), slots, count)


def start(function: Compiled, slots: "array[int]", count: int) -> None:
    """Call a function with the address of its slots on every thread of a team, without the lock.

    Args:
        function: that takes one address.
        slots: kept alive by the caller while this runs.
        count: of threads.
    """
    address = slots.buffer_info()[0]
    if count == 1:
        function.call(address)
    else:
        library_ = library()
        assert library_ is not None, "threads() asked"
        library_.parallel(function.address, address, count, 0)
