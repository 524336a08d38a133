"""Stored and measured statistics of single channels, for those that findings name."""

from collections.abc import Sequence
from itertools import chain, zip_longest

from normscope.doctor.checks import CheckContext
from normscope.moments import drift
from normscope.records import ChannelGap, Finding

MOST = 12  # channels of one record
APART = 0.1  # standard deviations, below which two sets of statistics are alike


def channel_gaps(case: CheckContext, findings: Sequence[Finding]) -> tuple[ChannelGap, ...]:
    """Compare the channels of layers with a warning or an error, the furthest apart first.

    Layers take turns, so that one with many faulty channels does not hide the others.
    """
    if case.data is None:
        return ()
    named = {f.layer for f in findings if f.layer and f.severity != "info"}
    by_layer = []
    for state in case.layers:
        if state.name not in named or state.name not in case.data.by_batch:
            continue
        mean, var = case.data.population(state.name)
        away = drift(state.mean, state.var, mean, var).reshape(-1, state.mean.shape[-1])
        away = away.where(var.isfinite(), 0)
        found = []
        for at in away.flatten().argsort(descending=True)[:MOST].tolist():
            row, channel = divmod(at, away.shape[-1])
            if float(away[row, channel]) > APART:
                found.append(
                    ChannelGap(
                        layer=state.name,
                        channel=channel,
                        condition=row if len(away) > 1 else None,
                        stored_mean=float(state.mean.reshape_as(away)[row, channel]),
                        stored_var=float(state.var.reshape_as(away)[row, channel]),
                        mean=float(mean.expand_as(away)[row, channel]),
                        var=float(var.expand_as(away)[row, channel]),
                        distance=float(away[row, channel]),
                    )
                )
        by_layer.append(found)
    by_layer.sort(key=lambda found: -found[0].distance if found else 0.0)
    turns = chain.from_iterable(zip_longest(*by_layer))
    return tuple([gap for gap in turns if gap is not None][:MOST])
