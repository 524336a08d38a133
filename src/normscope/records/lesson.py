"""The worked example and the trap, as data."""

from dataclasses import dataclass, field
from typing import Any

from normscope.records.base import Numbers, Part, Record, Table, scalars


@dataclass(frozen=True, kw_only=True)
class ClassValues:
    """One class at one stage of the lesson."""

    values: Numbers
    mean: float
    var: float  # population variance (correction 0)
    min: float
    max: float
    gamma: float | None = None  # the scale that made this stage, where one did
    beta: float | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the worked example, for all classes together."""

    name: str  # input, joint, standardised_per_class, ...: see `lesson`
    classes: tuple[ClassValues, ...]
    threshold_accuracy: float  # of the best single-threshold rule (K-1 cuts for K classes)
    thresholds: Numbers  # the cuts that reach it
    eta2: float  # between-class share of the variance
    facts: dict[str, float] = field(default_factory=dict)  # numbers that its sentence quotes


@dataclass(frozen=True, kw_only=True)
class Learning(Part):
    """Gradient descent on gamma and beta from one random start."""

    seed: int
    steps: tuple[int, ...]  # T, the recorded ones
    loss: Numbers  # T
    accuracy: Numbers  # T; by class: of the best thresholds on y; joint: of the head's answers
    gamma: Table  # T x K; joint: T x 1
    beta: Table  # T x K; joint: T x 1
    head: Table = ()  # joint: T x 2K, the weight of every class, then its offset
    templates: Numbers = ()  # classification: K, where the reader expects each class


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """One way of learning gamma and beta after standardising, from several random starts.

    distribution: by class, so that each class comes back to its input distribution.
    classification: by class, so that a reader tells the classes apart.
    joint: one gamma and beta for all classes, before a ReLU and a linear head.
    """

    name: str
    needs_labels: bool  # whether the label of a value is needed to compute its output
    learning: tuple[Learning, ...]


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Where the condition is not known: the posterior of each group under its stored statistics."""

    value: float
    truth: int
    probability: Numbers  # K


@dataclass(frozen=True, kw_only=True)
class Composition:
    """How much class signal a batch leaves: predicted (1-r)(1-1/m) and measured."""

    r: float  # excess probability that a batch-mate shares the class
    m: int  # values per batch
    predicted: float
    measured: float


@dataclass(frozen=True, kw_only=True)
class Lesson(Record, kind="lesson"):
    """The worked example and the trap, as data."""

    eps: float
    stages: tuple[Stage, ...]
    recoveries: tuple[Recovery, ...]
    posteriors: tuple[Posterior, ...]
    composition: tuple[Composition, ...]

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row per stage and class."""
        return [
            {"stage": stage.name, "class": number, **scalars(values)}
            | {"threshold_accuracy": stage.threshold_accuracy, "eta2": stage.eta2}
            for stage in self.stages
            for number, values in enumerate(stage.classes, 1)
        ]
