"""Running a call's loops: whole channels at once where that is possible, else chunk by chunk."""

from array import array
from typing import Any

from normscope.kernels.cpu import channel, grouped, narrow, pages, planes, rows, team
from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.entries import entry
from normscope.kernels.cpu.plan import Plan


def forward(work: Plan, slots: "array[int]", dtype: str, act: str | None, *, map_: bool) -> None:
    """Moments, what follows from them, and the map."""
    threads = team.threads(work.size)
    if work.rows or (threads > 1 and work.c < 4 * threads):  # too few to give each whole ones
        family: Any = rows if work.rows else planes
        _summed(work, slots, dtype, act, family.sums, channel.merge)
        if map_:
            mapped(work, slots, dtype, act, backward=False)
    elif work.block > 1:
        _run(narrow.forward, -(-work.c // work.block), threads, slots, dtype, act)
    elif work.groups is not None:
        _run(grouped.forward, work.c, threads, slots, dtype, act)
    else:
        _run(planes.forward, work.c, threads, slots, dtype, act)


def backward(work: Plan, slots: "array[int]", dtype: str, act: str | None, *, map_: bool) -> None:
    """Sums of the gradient, gradients of tables, and the gradient of x."""
    threads = team.threads(work.size)
    if work.rows or (threads > 1 and work.c < 4 * threads):
        family: Any = rows if work.rows else planes
        coefficients = _prepared(work, slots, dtype)
        _summed(work, slots, dtype, act, family.gradient_sums, channel.merge_gradients)
        del coefficients
        if map_:
            mapped(work, slots, dtype, act, backward=True)
    elif work.block > 1:
        _run(narrow.backward, -(-work.c // work.block), threads, slots, dtype, act)
    elif work.groups is not None:
        _run(grouped.backward, work.c, threads, slots, dtype, act)
    else:
        _run(planes.backward, work.c, threads, slots, dtype, act)


def mapped(work: Plan, slots: "array[int]", dtype: str, act: str | None, *, backward: bool) -> None:
    """Only the map, with the tables that are given."""
    if work.block > 1 and not backward:
        blocks = -(-work.c // work.block)
        _run(narrow.map_, blocks, team.threads(work.size), slots, dtype, act)
        return
    family: Any = rows if work.rows else planes
    coefficients = _prepared(work, slots, dtype)
    loop = family.gradient_map if backward else family.map_
    _run(loop, work.num_chunks, team.threads(work.size), slots, dtype, act)
    del coefficients


def _summed(
    work: Plan, slots: "array[int]", dtype: str, act: str | None, sums: Any, merge: Any
) -> None:
    partial = pages.table(3 * work.num_chunks * work.fold * work.c)
    slots[at.PARTIAL] = partial.data_ptr()
    _run(sums, work.num_chunks, team.threads(work.size), slots, dtype, act)
    _run(merge, work.c, team.threads(2 * work.num_chunks * work.c), slots, dtype, act)


def _prepared(work: Plan, slots: "array[int]", dtype: str) -> Any:
    """The coefficients for loops over rows; to be held until those have run."""
    if not work.rows:
        return None
    size = 5 * work.r * work.fold * work.c
    table = pages.table(size if dtype == "torch.float64" else -(-size // 2))
    slots[at.COEFFICIENTS] = table.data_ptr()
    _run(rows.prepare, work.r, team.threads(size), slots, dtype, None)
    return table


def _run(
    work: Any, items: int, threads: int, slots: "array[int]", dtype: str, act: str | None
) -> None:
    """Do `work` on so many items."""
    compiled = entry(work, dtype, act, slots[at.RESIDUAL] != 0, slots[at.MASK] != 0)
    slots[at.ITEMS], slots[at.NEXT] = items, 0
    slots[at.STEP] = min(16, max(1, items // (8 * threads)))
    team.run(compiled.call, compiled.address, slots, threads)
