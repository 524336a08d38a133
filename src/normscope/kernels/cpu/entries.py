"""Compiled functions: each thread works on its share of the items, then on what others left.

A function is compiled when first needed, for one dtype, one activation, with or without residual
and mask, and kept on disk by Numba. One more, `conductor`, calls several in turn.
"""

import hashlib
import logging
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from numba import cfunc, types
from numba.core import event
from numba.extending import overload

from normscope.kernels.cpu import channel, grouped, narrow, planes, rows
from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.elements import LEAKY_RELU, LINEAR, OPTIONS, RELU, SILU
from normscope.kernels.cpu.memory import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    ask,
    fetch_add,
    invoke,
    load_integer,
    wait,
)

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
TABLES = (  # no values at all
    rows.prepare,
    channel.merge,
    channel.merge_gradients,
    channel.recall,
)
WORK = (*WHOLE, *SUMS, *TABLES)
LIKE = {
    "torch.float32": FLOAT32,
    "torch.float64": FLOAT64,
    "torch.bfloat16": BFLOAT16,
    "torch.float16": FLOAT16,
}
ACT = {None: LINEAR, "relu": RELU, "leaky_relu": LEAKY_RELU, "silu": SILU}

log = logging.getLogger("normscope")


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
def entry(work: Any, dtype: str, act: str | None, residual: bool, mask: bool) -> int:
    """Address of the function for one work, dtype and form; what it does not use is left out."""
    if work not in WHOLE and (act is not None or residual):
        return entry(work, dtype, act=None, residual=False, mask=mask)
    if work in TABLES and mask:
        return entry(work, dtype, act=None, residual=False, mask=False)
    number, like, activation = WORK.index(work), LIKE[dtype], ACT[act]
    sources = _sources()
    beside, flags = (at.RESIDUAL if residual else None), (at.MASK if mask else None)

    def loop(p: int, phase: int) -> None:
        if sources == 0:  # never; it makes the sources part of the key that Numba caches by
            return
        residual_at = None if beside is None else load_integer(p, beside)
        mask_at = None if flags is None else load_integer(p, flags)
        items, step = load_integer(phase, at.ITEMS), load_integer(phase, at.STEP)
        threads, who = load_integer(p, at.THREADS), load_integer(p, at.NUMBER)
        taken = p + 8 * load_integer(phase, at.TAKEN)
        mine, steps = (0 if who == 0 else ask(who)), -(-items // step)
        # its own share first, which lies in this core's cache if the last operation cut its work
        # likewise, and then what others have not begun
        for turn in range(threads):
            owner = (mine + turn) % threads
            low, high = owner * steps // threads, (owner + 1) * steps // threads
            while True:
                first = (low + fetch_add(taken + 8 * owner, 1)) * step
                if first >= high * step:
                    break
                for i in range(first, min(first + step, items)):
                    perform(p, i, number, residual_at, mask_at, activation, like)

    return _compiled(types.void(types.int64, types.int64), loop).address  # type: ignore[no-any-return]


class Compiled(NamedTuple):
    """A compiled function, itself as a call through ctypes, and its address."""

    function: Any  # the address is good for as long as this lives
    call: Any
    address: int


@cache
def conductor() -> Compiled:
    """The function that does the phases of a call, each when all threads are done with the last."""
    sources = _sources()

    def conduct(p: int) -> None:
        if sources == 0:
            return
        barrier = load_integer(p, at.BARRIER)
        for i in range(load_integer(p, at.PHASES)):
            if i > 0 and barrier != 0:
                wait(barrier)
            phase = p + 8 * (at.PHASE + i * at.PHASE_SLOTS)
            invoke(load_integer(phase, at.LOOP), p, phase)

    function = _compiled(types.void(types.int64), conduct)
    return Compiled(function, function.ctypes, function.address)


_kept: list[Any] = []  # an address is good for as long as its function lives


def _compiled(signature: Any, function: Any) -> Any:
    with event.install_listener("numba:compile", _Told()):
        compiled = cfunc(signature, cache=True, **OPTIONS)(function)
    _kept.append(compiled)
    return compiled


@cache
def _sources() -> int:
    """A number for the text of all these files: Numba itself looks only at the file of `loop`."""
    digest = hashlib.blake2b(digest_size=7)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest(), "big") or 1


class _Told(event.Listener):  # type: ignore[misc]
    """Says so, once per process, when something is compiled: it takes seconds."""

    told = False

    def on_start(self, event: Any) -> None:
        """A compilation begins; what is found on disk causes none."""
        if not _Told.told:
            _Told.told = True
            log.warning(
                "compiling normscope's CPU kernels for the first time (seconds; kept on disk for "
                "the next time; `normscope env --warm` does it ahead)"
            )

    def on_end(self, event: Any) -> None:
        """Nothing to say."""
