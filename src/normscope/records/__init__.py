"""What crosses from measuring to showing: frozen records of plain numbers, no tensors.

Every record has `to_json()` (a string; NaN and infinities become null) and `from_json(text)`.
Axes are written in the field comments: K classes, C channels, B histogram bins, T time points.
"""

from normscope.records.base import SCHEMA, Numbers, Record, Table, plain
from normscope.records.bench import (
    Accuracy,
    Bench,
    Race,
    Setting,
    Spread,
    StatisticsError,
    Timing,
)
from normscope.records.conversion import Change, Comparison, Converted, Left
from normscope.records.inspection import Inspection, Layer, StageMeasures, StageName
from normscope.records.lesson import ClassValues, Composition, Learning, Lesson, Posterior, Stage
from normscope.records.run import Epoch, Member, Row, Run, RunConfig, Sweep, Trace

__all__ = [
    "SCHEMA",
    "Accuracy",
    "Bench",
    "Change",
    "ClassValues",
    "Comparison",
    "Composition",
    "Converted",
    "Epoch",
    "Inspection",
    "Layer",
    "Learning",
    "Left",
    "Lesson",
    "Member",
    "Numbers",
    "Posterior",
    "Race",
    "Record",
    "Row",
    "Run",
    "RunConfig",
    "Setting",
    "Spread",
    "Stage",
    "StageMeasures",
    "StageName",
    "StatisticsError",
    "Sweep",
    "Table",
    "Timing",
    "Trace",
    "plain",
]
