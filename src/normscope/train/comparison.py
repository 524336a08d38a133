"""From single networks to the rows of the comparison."""

import math
import statistics
from collections.abc import Sequence

from normscope.records import Epoch, Member, Row, Sweep

SHARE_OF_BEST = 0.95


def epochs_to_95(curve: Sequence[Epoch]) -> int | None:
    """The first epoch at 95 % of the best test accuracy of this curve; None for an empty one."""
    best = max((epoch.test_accuracy for epoch in curve), default=math.nan)
    reached = (e.epoch for e in curve if e.test_accuracy >= SHARE_OF_BEST * best)
    return next(reached, None)


def rows(
    norms: Sequence[str], members: Sequence[Member], sweeps: Sequence[Sweep]
) -> tuple[Row, ...]:
    """One row per norm of which a network is finished, in the order of `norms`.

    Means are over the seeds that did not diverge, NaN where all did; the spread is the sample
    standard deviation over them. Seconds are the mean of one training. Stopped ones do not count.
    """
    ranges = {sweep.norm: sweep for sweep in sweeps}
    table = []
    for norm in norms:
        ended = [m for m in members if m.norm == norm and m.status != "stopped"]
        if ended:
            table.append(_row(norm, ended, ranges.get(norm)))
    return tuple(table)


def _row(norm: str, ended: Sequence[Member], sweep: Sweep | None) -> Row:
    done = [m for m in ended if m.status == "done"]
    accuracy = [m.accuracy for m in done]
    unlabelled = [m.accuracy_without_label for m in done if m.accuracy_without_label is not None]
    names = list(done[0].accuracy_by_domain) if done else []
    return Row(
        norm=norm,
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
        seconds=_mean([m.seconds for m in ended]),
    )


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan
