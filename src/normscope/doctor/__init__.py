"""The doctor: exact statistics, checks with a cause, and repairs that are proved and undone."""

from normscope.doctor.adapt import Adaptation, adapt, certainty
from normscope.doctor.calls import PerCall, split
from normscope.doctor.diagnosis import diagnose
from normscope.doctor.merge import merge_statistics
from normscope.doctor.own import own_weight
from normscope.doctor.recalibrate import Recalibration, recalibrate
from normscope.doctor.repair import Repair, repair
from normscope.doctor.watch import Watch, assert_healthy

__all__ = [
    "Adaptation",
    "PerCall",
    "Recalibration",
    "Repair",
    "Watch",
    "adapt",
    "assert_healthy",
    "certainty",
    "diagnose",
    "merge_statistics",
    "own_weight",
    "recalibrate",
    "repair",
    "split",
]
