"""The remedies, by the name that checks give: the first variant that no later one beats."""

from normscope.doctor.remedies import settings, statistics
from normscope.doctor.remedies.base import Remedy, RepairContext, Unfit

__all__ = ["REMEDIES", "Remedy", "RepairContext", "Unfit"]

# in the order of trying: the particular before the general
REMEDIES: dict[str, tuple[Remedy, ...]] = {
    "eval_mode": (settings.eval_mode,),
    "widen": (statistics.widen,),
    "repair_channels": (statistics.repair_channels,),
    "choose_eps": (settings.choose_eps,),
    "correct_cold": (statistics.correct_cold,),
    "momentum": (settings.momentum_and_statistics, settings.momentum),
    "copy_buffers": (statistics.copy_buffers,),
    "split": (statistics.split_calls,),
    "domains": (settings.domains,),
    "freeze": (settings.freeze_anew, settings.freeze),
    "recalibrate": (
        statistics.by_batch,
        statistics.as_in_training,
        statistics.averaged,
        statistics.outliers,
        statistics.sequential,
        statistics.everywhere,
    ),
    "own_weight": (settings.weigh_samples,),
    "fold_bias": (settings.fold_bias,),
    "adapt": (statistics.adapt_statistics,),
}
