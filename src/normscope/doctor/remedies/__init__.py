"""The remedies, by the name that checks give: variants of which the best on held-out data wins."""

from normscope.doctor.remedies import settings, statistics
from normscope.doctor.remedies.base import Patient, Remedy, Unfit
from normscope.doctor.remedies.memory import Memory

__all__ = ["REMEDIES", "Memory", "Patient", "Remedy", "Unfit"]

REMEDIES: dict[str, tuple[Remedy, ...]] = {
    "eval_mode": (settings.eval_mode,),
    "correct_cold": (statistics.correct_cold,),
    "recalibrate": (statistics.by_batch, statistics.sequential, statistics.everywhere),
    "mend_channels": (statistics.mend_channels,),
    "momentum": (settings.momentum,),
    "choose_eps": (settings.choose_eps,),
    "freeze": (settings.freeze,),
    "domains": (settings.domains,),
    "widen": (statistics.widen,),
    "fold_bias": (settings.fold_bias,),
}
