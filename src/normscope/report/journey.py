"""The picture that opens a run's page: one channel through its steps and through training."""

import math
from typing import Any

from normscope.records import ChannelHistory, Run


def drawings(run: Run) -> list[dict[str, Any]]:
    """Collect what the page's script needs, one entry for each network with a history."""
    return [_drawing(history, run) for history in run.histories if history.x]


def _drawing(history: ChannelHistory, run: Run) -> dict[str, Any]:
    """Put the lanes in the order of their pass rates, so that the picture reads as a slope."""
    last = history.passing[-1]
    lanes = sorted(range(len(last)), key=lambda k: (-_or_zero(last[k]), k))
    at = {history.classes[k]: place for place, k in enumerate(lanes)}
    learns = "all"
    if history.norm == "affine_only":
        learns = "some" if run.config.freeze_head else "head"
    return {
        "learns": learns,
        "layer": history.layer,
        "channel": history.channel,
        "channels": history.channels,
        "eps": history.eps,
        "classes": [run.classes[history.classes[k]] for k in lanes],
        "label": [at[k] for k in history.label],
        "epoch": history.epoch,
        "x": history.x,
        "gamma": history.gamma,
        "beta": history.beta,
        "running_mean": history.running_mean,
        "running_var": history.running_var,
        "passing": [[row[k] for k in lanes] for row in history.passing],
        "information": history.information,
        "accuracy": history.accuracy,
    }


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0
