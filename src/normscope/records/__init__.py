"""What crosses from measuring to showing: frozen records of plain numbers, no tensors.

Every record has `to_json()` (a string; NaN and infinities become null) and `from_json(text)`.
Axes are written in the field comments: K classes, C channels, B histogram bins, T time points.
"""

from normscope.records.base import SCHEMA, Array, Numbers, Record, Table, plain
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
from normscope.records.diagnosis import (
    SEVERITIES,
    Cause,
    ChannelGap,
    Confidence,
    Diagnosis,
    Finding,
    Gap,
    LayerGap,
    Repaired,
    Score,
    Severity,
    Skipped,
    Trial,
    Verdict,
)
from normscope.records.difference import Difference, LayerDifference, StageDifference
from normscope.records.inspection import (
    Batches,
    Collapse,
    Inspection,
    Layer,
    MapKind,
    StageMeasures,
    StageName,
    Work,
    WorkName,
)
from normscope.records.kinds import KINDS, load
from normscope.records.lesson import ClassValues, Composition, Learning, Lesson, Posterior, Stage
from normscope.records.run import Epoch, Member, Row, Run, RunConfig, Sweep, Trace

__all__ = [
    "KINDS",
    "SCHEMA",
    "SEVERITIES",
    "Accuracy",
    "Array",
    "Batches",
    "Bench",
    "Cause",
    "Change",
    "ChannelGap",
    "ClassValues",
    "Collapse",
    "Comparison",
    "Composition",
    "Confidence",
    "Converted",
    "Diagnosis",
    "Difference",
    "Epoch",
    "Finding",
    "Gap",
    "Inspection",
    "Layer",
    "LayerDifference",
    "LayerGap",
    "Learning",
    "Left",
    "Lesson",
    "MapKind",
    "Member",
    "Numbers",
    "Posterior",
    "Race",
    "Record",
    "Repaired",
    "Row",
    "Run",
    "RunConfig",
    "Score",
    "Setting",
    "Severity",
    "Skipped",
    "Spread",
    "Stage",
    "StageDifference",
    "StageMeasures",
    "StageName",
    "StatisticsError",
    "Sweep",
    "Table",
    "Timing",
    "Trace",
    "Trial",
    "Verdict",
    "Work",
    "WorkName",
    "load",
    "plain",
]
