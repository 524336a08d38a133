"""The doctor: exact statistics, checks with a cause, and repairs that are proved and undone."""

from normscope.doctor.diagnosis import diagnose
from normscope.doctor.recalibrate import Recalibration, recalibrate
from normscope.doctor.repair import Repair, repair

__all__ = ["Recalibration", "Repair", "diagnose", "recalibrate", "repair"]
