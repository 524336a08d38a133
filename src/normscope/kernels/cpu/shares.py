"""How the threads of a team share the items of a loop."""

from typing import Any

from numba import njit

from normscope.kernels.cpu.elements import OPTIONS
from normscope.kernels.cpu.memory import fetch_add, load_integer


@njit(**OPTIONS)
def claim(counters: int, threads: int, who: int, items: int, step: int) -> Any:
    """The first of the next `step` items for a thread, or -1 when none is left.

    Its own share comes first, which lies in this core's cache if the operation before cut its work
    likewise, and then what others have not begun.

    Args:
        counters: address of an int64 for each thread, 0 at the start: how many steps are taken of
            its share.
        threads: how many there are.
        who: the number of this thread.
        items: of the loop.
        step: how many are taken at a time.
    """
    steps = -(-items // step)
    for turn in range(threads):
        owner = (who + turn) % threads
        low, high = owner * steps // threads, (owner + 1) * steps // threads
        if load_integer(counters, owner) < high - low:
            taken = fetch_add(counters + 8 * owner, 1)
            if taken < high - low:
                return (low + taken) * step
    return -1
