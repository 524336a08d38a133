"""The checks, by code; one small class each, in files by family."""

import inspect

from normscope.doctor.checks.base import Case, Check, Skip
from normscope.doctor.checks.batches import BatchComposition, BatchSize, Leak, Padding
from normscope.doctor.checks.buffers import (
    ColdStatistics,
    DeadGates,
    DeadScale,
    DoubleUpdates,
    NotFinite,
    Precision,
    TinyVariance,
)
from normscope.doctor.checks.modes import (
    Accumulation,
    Averaged,
    FakeFreeze,
    Mode,
    Momentum,
    Ranks,
    WeightDecay,
)
from normscope.doctor.checks.statistics import (
    Drift,
    DropoutBefore,
    MixedDomains,
    Reused,
    Stale,
    TrainEvalGap,
)
from normscope.doctor.checks.structure import FoldParity, NormAtTheEnd, UselessBias

__all__ = ["CHECKS", "Case", "Check", "Skip", "explanation"]

CHECKS: dict[str, type[Check]] = {
    check.code: check
    for check in sorted(
        (
            *(Mode, Momentum, FakeFreeze, Averaged, WeightDecay, Ranks, Accumulation),
            *(ColdStatistics, NotFinite, TinyVariance, DeadScale, DeadGates, Precision),
            *(DoubleUpdates, Stale, TrainEvalGap, DropoutBefore, Reused, MixedDomains, Drift),
            *(BatchSize, BatchComposition, Padding, Leak, UselessBias, FoldParity, NormAtTheEnd),
        ),
        key=lambda check: check.code,
    )
}


def explanation(code: str) -> str:
    """A check's docstring: the title in the first line, then what is wrong and what to do."""
    return inspect.cleandoc(CHECKS[code].__doc__ or "")
