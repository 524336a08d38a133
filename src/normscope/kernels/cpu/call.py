"""How a call is done: its loops one after the other, and the scratch memory that they share.

Whole channels at once where that is possible, else chunk by chunk with a merge in between.
"""

from array import array
from typing import Any, NamedTuple

import torch

from normscope.kernels.cpu import channel, channels, grouped, narrow, pages, planes, rows, team
from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.entries import entry
from normscope.kernels.cpu.plan import Plan

NAMES = {getattr(torch, name.removeprefix("torch.")): name for name in at.CODES}
WHOLE = {  # the loop over whole channels of a verb that has one
    "moments": "forward",
    "forward": "forward",
    "backward": "backward",
    "backward_tables": "backward",
}
SMALL = 4096  # numbers in tables: below, one thread does them all
LINE = 8  # float64 numbers in a cache line


class Recipe(NamedTuple):
    """How calls of one form are done; what differs from call to call is put into a copy.

    Attributes:
        slots: the plan's, and the phases.
        threads: on how many.
        scratch: float64 numbers that the loops need while they run.
        places: slots and the places in the scratch memory that they get, in bytes.
    """

    slots: "array[int]"
    threads: int
    scratch: int
    places: tuple[tuple[int, int], ...]


def recipe(
    work: Plan, verb: str, dtype: torch.dtype, act: str | None, *, residual: bool = False
) -> Recipe:
    """How to do `verb` with a plan, which remembers it."""
    threads = team.threads(work.size)
    key = verb, dtype, act, residual, threads
    found: Recipe | None = work.recipes.get(key)
    if found is None:
        found = work.recipes[key] = _recipe(work, verb, NAMES[dtype], act, residual, threads)
    return found


def run(how: Recipe, slots: "array[int]") -> None:
    """Do a call with a filled copy of the recipe's slots."""
    scratch = None
    if how.scratch:
        scratch = pages.table(how.scratch)
        start = scratch.data_ptr()
        for slot, place in how.places:
            slots[slot] = start + place
    team.run(slots, how.threads)
    del scratch  # not earlier


def _recipe(
    work: Plan, verb: str, dtype: str, act: str | None, residual: bool, threads: int
) -> Recipe:
    slots, masked = work.template[:], work.mask is not None
    phases = _phases(work, verb, work.rows or (threads > 1 and work.c < 4 * threads))
    slots[at.PHASES], slots[at.THREADS] = len(phases), threads
    slots.extend([0] * (len(phases) * threads))
    for i, (loop, items, least) in enumerate(phases):
        phase = at.PHASE + i * at.PHASE_SLOTS
        slots[phase + at.LOOP] = entry(loop, dtype, act, residual, masked).address
        slots[phase + at.ITEMS] = items
        slots[phase + at.STEP] = max(least, min(16, items // (8 * threads)))
        slots[phase + at.TAKEN] = at.SLOTS + i * threads
    loops = [loop for loop, _, _ in phases]
    sizes: list[tuple[int, int]] = []
    if verb in ("backward", "backward_tables"):
        tables = at.SUM_G, at.SUM_G_XHAT, at.MEAN_G, at.MEAN_G_XHAT
        sizes += [(slot, work.r * work.c) for slot in tables]  # means over K fit in one over R
    if channels.merge in loops or channels.merge_gradients in loops:
        sizes.append((at.PARTIAL, 3 * work.num_chunks * work.fold * work.c))
    if channels.prepare in loops:
        size = 5 * work.r * work.fold * work.c
        sizes.append((at.COEFFICIENTS, size if dtype == "torch.float64" else -(-size // 2)))
    scratch, places = 0, []
    for slot, size in sizes:
        places.append((slot, 8 * scratch))
        scratch += -(-size // LINE) * LINE
    return Recipe(slots, threads, scratch, tuple(places))


def _phases(work: Plan, verb: str, by_chunk: bool) -> list[tuple[Any, int, int]]:
    """The loops of a verb, in order, with their items and the fewest that a thread takes."""
    c, chunks, blocks = work.c, work.num_chunks, -(-work.c // work.block)
    if verb in WHOLE and not by_chunk:
        if work.block > 1:
            return [(getattr(narrow, WHOLE[verb]), blocks, 1)]
        loops: Any = planes if work.groups is None else grouped
        return [(getattr(loops, WHOLE[verb]), c, 1)]

    def tables(loop: Any, items: int, size: int) -> tuple[Any, int, int]:
        return loop, items, items if size < SMALL else 1

    family: Any = rows if work.rows else planes
    prepare = [tables(channels.prepare, work.r, work.r * c)] if work.rows else []
    recall = [tables(channel.recall, c, work.k * c)]
    merged = -(-c // channels.BLOCK)
    sums = [(family.sums, chunks, 1), tables(channels.merge, merged, 2 * chunks * c)]
    merge = tables(channels.merge_gradients, merged, 2 * chunks * c)
    gradient_sums = [*prepare, (family.gradient_sums, chunks, 1), merge]
    gradient_map = [*prepare, (family.gradient_map, chunks, 1)]
    map_ = [*prepare, (family.map_, chunks, 1)]
    if work.block > 1:
        map_ = [(narrow.map_, blocks, 1)]
    return {
        "moments": sums,
        "forward": sums + map_,
        "normalize": map_,
        "evaluate": recall + map_,
        "backward_reduce": gradient_sums,
        "backward_tables": gradient_sums,
        "backward": gradient_sums + gradient_map,
        "backward_input": gradient_map,
    }[verb]
