"""The best rule that cuts a line of values into one interval per class."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from normscope.records import Numbers

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

EXACT = 1 << 20  # cells of the table up to which every order of the intervals is tried
NEVER = np.iinfo(np.int64).min // 2


def best_thresholds(classes: Sequence[Sequence[float]]) -> tuple[float, Numbers]:
    """Return the accuracy of the best cuts, and the cuts: at most K - 1 for K classes.

        accuracy = max over cuts and orders of the classes of  (1/n) sum_i [interval(x_i) = y_i]

    Each class owns at most one interval and the intervals may come in any order; for K = 2 this
    is one threshold, read in either direction. Of the rules that reach the best accuracy the one
    with the fewest cuts is returned; no cut at all means that guessing one class does as well.
    Values that differ only by rounding count as equal, so no cut separates them.

    Dynamic programming over the sorted values and the sets of classes already placed, exact in
    O(2^K K n) up to a million steps (10 classes of 10 values). Beyond, the intervals follow the
    order of the class means in O(K n): exact where the classes stand apart, otherwise a lower
    bound.

    Args:
        classes: K sequences of finite values, each at least one.
    """
    order = np.argsort([np.mean(c) for c in classes], kind="stable")
    ranked = [np.asarray(classes[k], float) for k in order]
    values, labels = np.concatenate(ranked), np.repeat(range(len(ranked)), [*map(len, ranked)])
    by_value = np.argsort(values, kind="stable")
    values, labels = values[by_value], labels[by_value]
    places = _places(values, min(float(c.std()) for c in ranked))

    # a hit is worth more than all intervals cost, so among equals the fewest intervals win
    hit = len(ranked) + 1
    is_class = labels == np.arange(len(ranked))[:, None]
    below = hit * np.pad(is_class.cumsum(1), ((0, 0), (1, 0)))[:, places]  # K x places

    plan = _plan(len(ranked), len(ranked) << len(ranked) <= EXACT // len(values))
    # best[row, i]: score of the values below place i with the classes of that row
    best = np.full((int(plan[-1][0][-1]) + 1, len(places)), NEVER)
    best[0, 0] = 0
    for rows, earlier, last in plan:
        before, gained = best[earlier], below[last]  # sets x choices of the last class x places
        owning = gained + np.maximum.accumulate(before - gained, axis=2) - 1
        best[rows] = np.maximum(before, owning).max(1)

    starts = _starts(best, below, plan)
    hits = (best[-1, -1] + len(starts)) // hit
    cuts = [(values[places[i] - 1] + values[places[i]]) / 2 for i in starts if i > 0]
    return float(hits / len(values)), tuple(sorted(map(float, cuts)))


def _places(values: Floats, spread: float) -> Integers:
    """Return where a cut can be: before the first value, between differing two, at the end."""
    low, high = values[:-1], values[1:]
    rounding = 1e-9 * spread + 8 * np.spacing(np.maximum(abs(low), abs(high)))
    between = np.flatnonzero(high - low > rounding) + 1
    return np.array([0, *between, len(values)])


@lru_cache(maxsize=8)
def _plan(num_classes: int, exact: bool) -> list[tuple[Integers, Integers, Integers]]:
    """Yield the rows to fill, one more class at a time, the rows they extend, by which class.

    A row is a set of classes as a bit mask; where not exact it is the first classes by mean.
    """
    sizes = range(1, num_classes + 1)
    if not exact:
        return [(np.array([s]), np.array([[s - 1]]), np.array([[s - 1]])) for s in sizes]
    masks = np.arange(1 << num_classes)
    member = (masks[:, None] >> np.arange(num_classes)) & 1
    plan = []
    for size in sizes:
        rows = masks[member.sum(1) == size]
        last = member[rows].nonzero()[1].reshape(-1, size)
        plan.append((rows, rows[:, None] ^ (1 << last), last))
    return plan


def _starts(
    best: Integers, below: Integers, plan: list[tuple[Integers, Integers, Integers]]
) -> list[int]:
    """Walk the table back: at which place each interval of the best rule starts."""
    starts = []
    row, i = len(best) - 1, best.shape[1] - 1
    for rows, earlier, last in reversed(plan):
        choices = np.searchsorted(rows, row)
        gain = below[last[choices], i][:, None] - below[last[choices], : i + 1] - 1
        gain[:, i] = 0  # the last class owns no interval
        came_from = best[earlier[choices], : i + 1] + gain == best[row, i]
        choice, start = np.argwhere(came_from)[-1]
        row = int(earlier[choices, choice])
        if start < i:
            i = int(start)
            starts.append(i)
    return starts
