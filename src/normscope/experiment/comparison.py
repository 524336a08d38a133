"""The rows of the comparison, and the learning rates that train, from single networks."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from normscope.experiment.nets import NORMS
from normscope.records import Epoch, Member, Row, Sweep

SHARE_OF_BEST = 0.95
SHARE = 0.9  # a rate trains if it reaches this share of the best accuracy of the sweep


def epochs_to_95(curve: Sequence[Epoch]) -> int | None:
    """Return the first epoch at 95 % of the best test accuracy of this curve; None if empty."""
    best = max((epoch.test_accuracy for epoch in curve), default=math.nan)
    return next((e.epoch for e in curve if e.test_accuracy >= SHARE_OF_BEST * best), None)


def rows(
    norms: Sequence[str], members: Sequence[Member], sweeps: Sequence[Sweep]
) -> tuple[Row, ...]:
    """Make one row per norm of which a network is finished, in the order of `norms`.

    Means are over the seeds that did not diverge, NaN where all did; the spread is the sample
    standard deviation over them. Seconds are the mean of one training. Stopped ones do not count.
    """
    ended = {n: [m for m in members if m.norm == n and m.status != "stopped"] for n in norms}
    return tuple(
        _row(found, next((s for s in sweeps if s.norm == norm), None))
        for norm, found in ended.items()
        if found
    )


def _row(ended: Sequence[Member], sweep: Sweep | None) -> Row:
    done = [m for m in ended if m.status == "done"]
    accuracy = [m.accuracy for m in done]
    unlabelled = [m.accuracy_without_label for m in done if m.accuracy_without_label is not None]
    names = done[0].accuracy_by_domain if done else ()
    return Row(
        norm=ended[0].norm,
        seeds=len(ended),
        diverged=len(ended) - len(done),
        mean=_mean(accuracy),
        spread=statistics.stdev(accuracy) if len(accuracy) > 1 else math.nan,
        epochs_to_95=_mean([m.epochs_to_95 for m in done if m.epochs_to_95 is not None]),
        lr_lowest=sweep.lowest if sweep else None,
        lr_highest=sweep.highest if sweep else None,
        leaks=ended[0].leaks,
        without_label=_mean(unlabelled) if unlabelled else None,
        by_domain={name: _mean([m.accuracy_by_domain[name] for m in done]) for name in names},
        parameters=ended[0].parameters,
        learning=ended[0].learning,
        before=_mean([m.accuracy_before for m in done]),
        seconds=_mean([m.seconds for m in ended]),
    )


def judged(sweeps: tuple[Sweep, ...]) -> tuple[Sweep, ...]:
    """Return the sweep with the lowest and the highest rate that trains.

    A rate trains if it reaches 0.9 of the best accuracy over all norms and rates; norms that are
    given the labels do not set that mark, unless there are no others. Rates in between may fail.
    """
    honest = [s for s in sweeps if not NORMS[s.norm].leaks] or sweeps
    reached = [a for s in honest for a in s.accuracy if not math.isnan(a)]
    mark = SHARE * max(reached, default=math.inf)

    def judge(s: Sweep) -> Sweep:
        trains = [lr for lr, a in zip(s.lr, s.accuracy, strict=True) if a >= mark]
        return replace(s, lowest=min(trains, default=None), highest=max(trains, default=None))

    return tuple(map(judge, sweeps))


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan
