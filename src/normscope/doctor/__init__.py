"""The doctor: exact statistics, checks with a cause, and repairs that are proved and undone."""

from importlib import import_module
from typing import Any

from normscope.doctor.adapt import Adaptation, adapt, certainty
from normscope.doctor.averages import recalibrated
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
    "recalibrated",
    "repair",
    "split",
]


def __getattr__(name: str) -> Any:
    if name == "callbacks":  # imported when asked for: they are made of what is in here
        return import_module(f"{__name__}.callbacks")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
