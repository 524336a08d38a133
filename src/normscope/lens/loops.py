"""The compiled loops of the sweep, on torch's own threads; Numba keeps them on disk."""

import math
from array import array
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from normscope.kernels.cpu import team
from normscope.kernels.cpu.compiled import Compiled, compiled
from normscope.kernels.cpu.elements import OPTIONS
from normscope.kernels.cpu.memory import load_integer
from normscope.kernels.cpu.shares import claim
from normscope.moments import Moments

KINDS = {
    torch.float32: types.float32,
    torch.float64: types.float64,
    torch.int32: types.int32,
    torch.int64: types.int64,
}
VOID = types.void(types.int64)

ITEMS, STEP, THREADS, NUMBER, COUNTERS = range(5)  # slots that share out the work
GIVEN = 5  # those of the loop itself follow


@intrinsic
def _memory(typing_context: Any, address: Any, kind: Any) -> Any:
    """The numbers of a kind at an address."""
    pointer = types.CPointer(kind.dtype)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.int64, kind), generate


def sweep(
    rows: Tensor, mean: Tensor, m2: Tensor, fired: Tensor, places: Tensor, taken: Tensor
) -> None:
    """Mean, m2 and how many values are above 0 of each row of rows (..., P), into the others.

    And the values at some places of each row into `taken`.
    """
    tensors, numbers = (rows, mean, m2, fired, places, taken), (rows.shape[-1], len(places))
    _run(_sweep(rows.dtype), rows.numel(), mean.numel(), 16, *tensors, *numbers)


def count_bins(
    taken: Tensor, mean: Tensor, scale: Tensor, labels: Tensor, histogram: Tensor
) -> None:
    """Count the bins (x - mean) * scale + BINS / 2 of taken (N, C, P).

    Channels are shared out, so that a channel's counts belong to one thread.
    """
    samples, channels, positions = taken.shape
    loop = _count_bins(taken.dtype, histogram.dtype, histogram.shape[2])
    scratch = torch.empty(channels, positions, dtype=torch.int32)
    tensors = (taken, mean, scale, labels, histogram, scratch)
    _run(loop, taken.numel(), channels, 1, *tensors, positions, samples)


def absorb(
    mean: Tensor, m2: Tensor, size: int, groups: Tensor, moments: Moments, rows: Tensor
) -> None:
    """Merge each image into the moments of its group; see `sweep.absorb`."""
    tensors = (mean, m2, groups, moments.count, moments.mean, moments.m2, rows)
    _run(_absorb(), 0, 1, 1, *tensors, *mean.shape, size)


def _run(loop: Compiled, values: int, items: int, step: int, *given: Tensor | int) -> None:
    """Do a loop over items, `step` at a time, on a team that a number of values is worth."""
    threads, library = team.threads(values), team.library()
    number = library.number if library is not None and threads > 1 else 0
    places = [g.data_ptr() if isinstance(g, Tensor) else g for g in given]
    slots = array("q", (items, step, threads, number, 0, *places, *[0] * threads))
    slots[COUNTERS] = slots.buffer_info()[0] + 8 * (GIVEN + len(places))
    team.start(loop, slots, threads)


@njit(**OPTIONS)
def _claim(p: int) -> Any:
    """The next items of the loop, from the first up to the end; below 0 when none is left."""
    threads, number = load_integer(p, THREADS), load_integer(p, NUMBER)
    items, step = load_integer(p, ITEMS), load_integer(p, STEP)
    return claim(load_integer(p, COUNTERS), threads, number, items, step)


@cache
def _sweep(dtype: torch.dtype) -> Compiled:
    kind = KINDS[dtype]

    def loop(p: int) -> None:
        slots = _memory(p + 8 * GIVEN, types.int64)
        values, taken = _memory(slots[0], kind), _memory(slots[5], kind)
        mean, m2 = _memory(slots[1], types.float64), _memory(slots[2], types.float64)
        fired, places = _memory(slots[3], types.int64), _memory(slots[4], types.int64)
        length, counted = slots[6], slots[7]
        first, end = _claim(p)
        while first >= 0:
            for r in range(first, end):
                start = r * length
                shift = np.float64(values[start])  # one of them, so little cancels
                total = square = 0.0
                above = types.int32(0)
                for i in range(start, start + length):
                    step = np.float64(values[i]) - shift
                    total += step
                    square += step * step
                    above += types.int32(values[i] > 0)
                mean[r] = shift + total / length
                spread = square - total * (total / length)
                m2[r] = 0.0 if spread < 0 else spread  # NaN stays
                fired[r] = above
                for i in range(counted):  # the row is still in the cache
                    taken[r * counted + i] = values[start + places[i]]
            first, end = _claim(p)

    # sums may be reordered, so that they vectorise; NaN stays NaN
    return compiled(VOID, loop, dtype, fastmath={"reassoc", "contract", "nsz"})


@cache
def _count_bins(dtype: torch.dtype, counted: torch.dtype, bins: int) -> Compiled:
    kind, count = KINDS[dtype], KINDS[counted]

    def loop(p: int) -> None:
        slots = _memory(p + 8 * GIVEN, types.int64)
        values, scratch = _memory(slots[0], kind), _memory(slots[5], types.int32)
        mean, scale = _memory(slots[1], types.float64), _memory(slots[2], types.float64)
        labels, counts = _memory(slots[3], types.int64), _memory(slots[4], count)
        channels, positions, samples = load_integer(p, ITEMS), slots[6], slots[7]
        first, end = _claim(p)
        while first >= 0:
            for c in range(first, end):
                for n in range(samples):
                    row = n * channels + c
                    centre, factor = mean[row], scale[row]
                    for i in range(positions):  # apart from the counting, so that it vectorises
                        place = (values[row * positions + i] - centre) * factor + bins / 2
                        place = place if place > 0 else 0.0  # NaN too
                        place = place if place < bins - 1 else bins - 1.0
                        scratch[c * positions + i] = types.int32(place)
                    cell = (labels[n] * channels + c) * bins
                    for i in range(positions):
                        counts[cell + scratch[c * positions + i]] += 1
            first, end = _claim(p)

    return compiled(VOID, loop, dtype, counted, bins, fastmath=False)


@cache
def _absorb() -> Compiled:
    def loop(p: int) -> None:
        slots = _memory(p + 8 * GIVEN, types.int64)
        mean, m2 = _memory(slots[0], types.float64), _memory(slots[1], types.float64)
        groups, count = _memory(slots[2], types.int64), _memory(slots[3], types.float64)
        held, spread = _memory(slots[4], types.float64), _memory(slots[5], types.float64)
        rows = _memory(slots[6], types.float64)
        samples, channels, size = slots[7], slots[8], slots[9]
        for n in range(samples):
            k = groups[n]
            before = count[k]
            share = size / (before + size)
            root = math.sqrt(before * share)
            for c in range(channels):
                here, there = n * channels + c, k * channels + c
                step = mean[here] - held[there]
                held[there] += step * share
                spread[there] += m2[here] + step * step * before * share
                rows[here] = step * root
            count[k] += size

    return compiled(VOID, loop)
