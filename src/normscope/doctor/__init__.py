"""The doctor: exact statistics, checks with a cause, and repairs that are proved and undone."""

from normscope.doctor.recalibrate import Recalibration, recalibrate

__all__ = ["Recalibration", "recalibrate"]
