"""The compiled loops of the sweep, on torch's own threads; Numba keeps them on disk."""

import math
from array import array
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import cfunc, njit, types
from numba.extending import intrinsic
from torch import Tensor

from normscope.kernels.cpu import team
from normscope.kernels.cpu.elements import OPTIONS
from normscope.kernels.cpu.entries import Compiled
from normscope.kernels.cpu.memory import fetch_add

KINDS = {
    torch.float32: types.float32,
    torch.float64: types.float64,
    torch.int32: types.int32,
    torch.int64: types.int64,
}
VOID = types.void(types.int64)


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
    _run(_sweep(rows.dtype), rows.numel(), mean.numel(), *tensors, *numbers)


def count_bins(
    taken: Tensor, mean: Tensor, scale: Tensor, labels: Tensor, histogram: Tensor
) -> None:
    """Count the bins (x - mean) * scale + BINS / 2 of taken (N, C, P).

    Channels are shared out, so that a channel's counts belong to one thread.
    """
    samples, channels, positions = taken.shape
    compiled = _count_bins(taken.dtype, histogram.dtype, histogram.shape[2])
    scratch = torch.empty(channels, positions, dtype=torch.int32)
    tensors = (taken, mean, scale, labels, histogram, scratch)
    _run(compiled, taken.numel(), channels, *tensors, positions, samples)


def _run(compiled: Compiled, values: int, items: int, *given: Tensor | int) -> None:
    """Call with two slots, the next item and how many there are, and those given."""
    places = (g.data_ptr() if isinstance(g, Tensor) else g for g in given)
    slots = array("q", (0, items, *places))
    team.start(compiled, slots, team.threads(values))


@cache
def _sweep(dtype: torch.dtype) -> Compiled:
    kind = KINDS[dtype]

    def loop(p: int) -> None:
        slots = _memory(p, types.int64)
        items, length, counted = slots[1], slots[8], slots[9]
        values = _memory(slots[2], kind)
        mean, m2 = _memory(slots[3], types.float64), _memory(slots[4], types.float64)
        fired, places = _memory(slots[5], types.int64), _memory(slots[6], types.int64)
        taken = _memory(slots[7], kind)
        while True:
            first = fetch_add(p, 16)
            if first >= items:
                break
            for r in range(first, min(first + 16, items)):
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

    # sums may be reordered, so that they vectorise; NaN stays NaN
    return _compiled(loop, fastmath={"reassoc", "contract", "nsz"})


@cache
def _count_bins(dtype: torch.dtype, counted: torch.dtype, bins: int) -> Compiled:
    kind, count = KINDS[dtype], KINDS[counted]

    def loop(p: int) -> None:
        slots = _memory(p, types.int64)
        channels, positions, samples = slots[1], slots[8], slots[9]
        values = _memory(slots[2], kind)
        mean, scale = _memory(slots[3], types.float64), _memory(slots[4], types.float64)
        labels, counts = _memory(slots[5], types.int64), _memory(slots[6], count)
        scratch = _memory(slots[7], types.int32)
        while True:
            c = fetch_add(p, 1)
            if c >= channels:
                break
            first = c * positions
            for n in range(samples):
                row = n * channels + c
                centre, factor = mean[row], scale[row]
                for i in range(positions):  # apart from the counting, so that it vectorises
                    place = (values[row * positions + i] - centre) * factor + bins / 2
                    place = place if place > 0 else 0.0  # NaN too
                    place = place if place < bins - 1 else bins - 1.0
                    scratch[first + i] = types.int32(place)
                cell = (labels[n] * channels + c) * bins
                for i in range(positions):
                    counts[cell + scratch[first + i]] += 1

    return _compiled(loop, fastmath=False)


def _compiled(loop: Any, *, fastmath: Any) -> Compiled:
    function = cfunc(VOID, cache=True, **(OPTIONS | {"fastmath": fastmath}))(loop)
    return Compiled(function, function.ctypes, function.address)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def absorb(
    mean: Any, m2: Any, size: int, groups: Any, count: Any, held: Any, spread: Any, rows: Any
) -> None:
    """Merge each image into the moments of its group, see `sweep.absorb`."""
    for n in range(mean.shape[0]):
        k = groups[n]
        before = count[k]
        share = size / (before + size)
        root = math.sqrt(before * share)
        for c in range(mean.shape[1]):
            step = mean[n, c] - held[k, c]
            held[k, c] += step * share
            spread[k, c] += m2[n, c] + step * step * before * share
            rows[n, c] = step * root
        count[k] += size
