"""How the threads of a team share the items of a loop."""

from typing import Any

from numba import njit

from normscope.kernels.cpu.elements import OPTIONS
from normscope.kernels.cpu.memory import ask, fetch_add, load_integer


@njit(**OPTIONS)
def claim(counters: int, threads: int, number: int, items: int, step: int) -> Any:
    """The next `step` items for this thread, from the first up to the end; below 0: none is left.

    Its own share comes first, which lies in this core's cache if the operation before cut its work
    likewise, and then what others have not begun.

    Args:
        counters: address of an int64 for each thread, 0 at the start: how many steps are taken of
            its share.
        threads: how many there are.
        number: address of the function that tells a thread's number; 0: there is only one.
        items: of the loop.
        step: how many are taken at a time.
    """
    who, steps = (0 if number == 0 else ask(number)), -(-items // step)
    for turn in range(threads):
        owner = (who + turn) % threads
        low, high = owner * steps // threads, (owner + 1) * steps // threads
        if load_integer(counters, owner) < high - low:
            taken = fetch_add(counters + 8 * owner, 1)
            if taken < high - low:
                first = (low + taken) * step
                return first, min(first + step, items)
    return -1, -1
