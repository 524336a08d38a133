"""Compiled functions that do a loop with all threads of a team.

A function is compiled when first needed, for one dtype, one activation, with or without residual
and mask. One more, `conductor`, calls several in turn.
"""

from functools import cache
from typing import Any

from numba import types
from numba.extending import overload

from normscope.kernels.cpu import channel, channels, grouped, narrow, planes, rows
from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.compiled import Compiled, compiled
from normscope.kernels.cpu.elements import LEAKY_RELU, LINEAR, RELU, SILU
from normscope.kernels.cpu.memory import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    invoke,
    load_integer,
    wait,
)
from normscope.kernels.cpu.shares import claim

WHOLE = (  # these read values: they need all forms
    planes.forward,
    planes.map_,
    planes.backward,
    planes.gradient_sums,
    planes.gradient_map,
    grouped.forward,
    grouped.backward,
    narrow.forward,
    narrow.backward,
    narrow.map_,
    rows.map_,
    rows.gradient_sums,
    rows.gradient_map,
)
SUMS = (planes.sums, rows.sums)  # before any activation
PREPARED = (channels.prepare,)  # no values at all
TABLES = (channels.merge, channels.merge_gradients, channel.recall)  # nothing in x's dtype either
WORK = (*WHOLE, *SUMS, *PREPARED, *TABLES)
LIKE = {
    "torch.float32": FLOAT32,
    "torch.float64": FLOAT64,
    "torch.bfloat16": BFLOAT16,
    "torch.float16": FLOAT16,
}
ACT = {None: LINEAR, "relu": RELU, "leaky_relu": LEAKY_RELU, "silu": SILU}


def perform(p: int, i: int, work: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """Do WORK[work] on item i."""
    raise NotImplementedError("compiled only")


@overload(perform, prefer_literal=True, strict=False)
def _perform(p: Any, i: Any, work: Any, residual: Any, mask: Any, act: Any, like: Any) -> Any:
    if not isinstance(work, types.Literal):
        return None
    function = WORK[work.literal_value]
    return lambda p, i, work, residual, mask, act, like: function(p, i, residual, mask, act, like)


@cache
def entry(work: Any, dtype: str, act: str | None, residual: bool, mask: bool) -> Compiled:
    """The function for one work, dtype and form; what it does not use is left out."""
    if work not in WHOLE and (act is not None or residual):
        return entry(work, dtype, act=None, residual=False, mask=mask)
    if work in PREPARED and mask:
        return entry(work, dtype, act=None, residual=False, mask=False)
    if work in TABLES and (mask or dtype != "torch.float64"):
        return entry(work, "torch.float64", act=None, residual=False, mask=False)
    number, like, activation = WORK.index(work), LIKE[dtype], ACT[act]
    beside, flags = (at.RESIDUAL if residual else None), (at.MASK if mask else None)

    def loop(p: int, phase: int) -> None:
        residual_at = None if beside is None else load_integer(p, beside)
        mask_at = None if flags is None else load_integer(p, flags)
        items, step = load_integer(phase, at.ITEMS), load_integer(phase, at.STEP)
        threads, who = load_integer(p, at.THREADS), load_integer(p, at.NUMBER)
        counters = p + 8 * load_integer(phase, at.TAKEN)
        first, end = claim(counters, threads, who, items, step)
        while first >= 0:
            for i in range(first, end):
                perform(p, i, number, residual_at, mask_at, activation, like)
            first, end = claim(counters, threads, who, items, step)

    form = number, dtype, act, residual, mask
    return compiled(types.void(types.int64, types.int64), loop, *form)


@cache
def conductor() -> Compiled:
    """The function that does the phases of a call, each when all threads are done with the last."""

    def conduct(p: int) -> None:
        barrier = load_integer(p, at.BARRIER)
        for i in range(load_integer(p, at.PHASES)):
            if i > 0 and barrier != 0:
                wait(barrier)
            phase = p + 8 * (at.PHASE + i * at.PHASE_SLOTS)
            invoke(load_integer(phase, at.LOOP), p, phase)

    return compiled(types.void(types.int64), conduct)
