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

import torch

ALONE = 32_768  # values below which waking a team costs more than it saves

_forked = False  # a child of fork has the library's state but not its threads: it must not ask


def _after_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)


@cache
def parallel() -> Callable[[int, int, int, int], None] | None:
    """GOMP_parallel(function, argument, threads, flags) of the library torch uses, or None."""
    maps = Path("/proc/self/maps")
    if "OpenMP" not in torch.__config__.parallel_info() or not maps.exists():
        return None
    lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
    found = {line.split(maxsplit=5)[-1] for line in lines if "omp" in line.rpartition("/")[2]}
    for path in sorted(found, key=lambda path: "torch" not in path):  # torch's copy first
        start = getattr(ctypes.CDLL(path), "GOMP_parallel", None)
        if start is not None:
            start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            start.restype = None
            return start  # type: ignore[no-any-return]
    return None


def threads(values: int) -> int:
    """How many threads a loop over so many values runs on."""
    if values < ALONE or _forked or parallel() is None:
        return 1
    return torch.get_num_threads()


def run(function: Callable[[int], None], entry: int, slots: "array[int]", count: int) -> None:
    """Call a compiled function with the address of its arguments, on every thread of a team.

    Args:
        function: the compiled function, callable through ctypes; the interpreter lock is released.
        entry: its address.
        slots: int64 arguments; kept alive by the caller while this runs.
        count: of threads.
    """
    address = slots.buffer_info()[0]
    if count == 1:
        function(address)
    else:
        start = parallel()
        assert start is not None, "threads() asked"
        start(entry, address, count, 0)
