"""What crosses from measuring to showing: frozen records of plain numbers, no tensors.

Every record has `to_json()` (a string; NaN and infinities become null) and `from_json(text)`.
Axes are written in the field comments: K classes, C channels, B histogram bins, T time points.
"""

import json
import math
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal, Self

from normscope.errors import InputError

SCHEMA = 1  # raised when a field changes its meaning; from_json refuses what is newer

Numbers = tuple[float, ...]
Table = tuple[Numbers, ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base of the records that are saved: JSON with the record's kind and schema number."""

    kind: ClassVar[str]

    def to_json(self) -> str:
        """One JSON document; not-finite numbers are null, so that any parser reads it."""
        head = {"kind": self.kind, "schema": SCHEMA}
        return json.dumps({**head, **plain(self)}, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; null in the place of a number is NaN.

        Raises:
            InputError: not JSON, another kind of record, a newer schema, a missing field.
        """
        try:
            value = json.loads(text)
        except json.JSONDecodeError as problem:
            raise InputError(f"this is no {cls.kind} record: {problem}") from problem
        if not isinstance(value, dict) or value.get("kind") != cls.kind:
            raise InputError(f"this is no {cls.kind} record; its kind must be {cls.kind!r}")
        if value.get("schema") != SCHEMA:
            raise InputError(
                f"this {cls.kind} record has schema {value.get('schema')}, "
                f"this normscope reads {SCHEMA}; write it again with the same version"
            )
        try:
            return typing.cast(Self, _build(cls, value))
        except (KeyError, TypeError, ValueError) as problem:
            raise InputError(f"this {cls.kind} record is not whole: {problem}") from problem


def plain(value: Any) -> Any:
    """A record as dicts, lists and numbers that JSON can hold; not-finite floats become None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _build(kind: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        known = {f.name: f for f in fields(kind)}
        return kind(**{n: _build(hints[n], value[n]) for n in known if n in value})
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _build(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return tuple(_build(arguments[0], item) for item in value)
        return tuple(_build(a, item) for a, item in zip(arguments, value, strict=True))
    if origin is dict:
        return {key: _build(arguments[1], item) for key, item in value.items()}
    if kind is float:
        return math.nan if value is None else float(value)
    if kind is int:
        return int(value)
    return value


# --- the lesson -------------------------------------------------------------------------------


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

    name: str  # input, standardised_per_class, scaled_shifted, learned, identity, joint, ...
    classes: tuple[ClassValues, ...]
    threshold_accuracy: float  # of the best single-threshold rule (K-1 cuts for K classes)
    thresholds: Numbers  # the cuts that reach it
    eta2: float  # between-class share of the variance
    facts: dict[str, float] = field(default_factory=dict)  # numbers that its sentence quotes


@dataclass(frozen=True, kw_only=True)
class Learning:
    """Gradient descent on gamma and beta from one random start."""

    seed: int
    steps: tuple[int, ...]  # T
    loss: Numbers  # T, mean cross-entropy in nats
    accuracy: Numbers  # T, best single threshold
    gamma: Table  # T x K
    beta: Table  # T x K


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Where the condition is not known: the posterior of each group under its stored statistics."""

    value: float
    truth: int
    probability: Numbers  # K


@dataclass(frozen=True, kw_only=True)
class Composition:
    """How much class signal a batch leaves: predicted (1-r)(1-1/m) beside measured."""

    r: float  # excess probability that a batch-mate shares the class
    m: int  # values per batch
    predicted: float
    measured: float


@dataclass(frozen=True, kw_only=True)
class Lesson(Record):
    """The worked example and the trap, as data."""

    kind: ClassVar[str] = "lesson"
    eps: float
    stages: tuple[Stage, ...]
    learning: tuple[Learning, ...]
    posteriors: tuple[Posterior, ...]
    composition: tuple[Composition, ...]


# --- the lens ---------------------------------------------------------------------------------

StageName = Literal["input", "normalised", "scaled_shifted", "activated"]


@dataclass(frozen=True, kw_only=True)
class StageMeasures:
    """How well the classes stand apart at one of a layer's four stages."""

    name: StageName
    eta2: Numbers  # C: between-class share of each channel's variance, per value that BN sees
    eta2_mean: float
    lda_fraction: float  # J = tr(S_T^-1 S_B) / (K-1), in [0, 1], per image
    nearest_mean_accuracy: float  # share of images whose nearest class mean is their own
    condition: float  # largest / smallest eigenvalue of S_T
    rank: int  # eigenvalues of S_T that count


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One call of one normalisation layer: who came in, what was done, who left."""

    name: str  # as in model.named_modules(); "#2" is added for a second call per forward
    norm: str  # class name
    activation: str | None  # the one that follows, where one does
    channels: int
    positions: int  # values per image and channel: 1 for (N, C)
    eps: float
    gamma: Numbers  # C; ones where the layer has none
    beta: Numbers  # C; zeros where the layer has none
    running_mean: Numbers  # C; what the layer normalised with
    running_var: Numbers  # C
    stages: tuple[StageMeasures, ...]  # four, or three where no activation follows
    class_mean: Table  # K x C, input stage
    class_var: Table  # K x C, input stage, population variance
    bin_edges: Numbers  # B + 1, z-units; the first and last bin also hold what lies beyond
    histogram: tuple[tuple[tuple[int, ...], ...], ...]  # K x C x B counts of z per class
    gate: Numbers  # C: y > 0 where z > gate = -beta/gamma (below it where gamma < 0)
    firing: Table  # K x C: share of values with y > 0, counted on y itself
    invariance: float  # largest difference of eta2 and J between input, normalised, scaled
    notes: tuple[str, ...] = ()  # message keys of what the reader of this layer should know


@dataclass(frozen=True, kw_only=True)
class Inspection(Record):
    """Every normalisation layer of a model, class by class, over one pass of the data."""

    kind: ClassVar[str] = "inspection"
    model: str
    data: str
    classes: tuple[str, ...]  # K names
    counts: tuple[int, ...]  # K images
    layers: tuple[Layer, ...]
    invariance: float  # largest over the layers; the lens's own self-test
    skipped: dict[str, str] = field(default_factory=dict)  # layer name -> message key of why


# --- training ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that decides a run's numbers."""

    data: str
    net: str  # mlp, cnn
    norms: tuple[str, ...]
    epochs: int
    batch_size: int
    lr: float
    seed: int  # the first; seeds are seed, seed + 1, ...
    seeds: int
    domains: tuple[str, ...] = ()
    every: int = 10  # steps between two telemetry lines
    sweep: Numbers = ()  # learning rates of the sweep; empty: no sweep


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One line of a learning curve."""

    epoch: int  # 1, 2, ...
    train_loss: float
    test_loss: float
    test_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Member:
    """One network of a run: one normalisation, one seed."""

    norm: str
    seed: int
    status: Literal["done", "diverged", "stopped"]
    accuracy: float  # on the test set after the last epoch
    leaks: bool  # the accuracy was reached with the test labels given to the network
    accuracy_without_label: float | None  # the same network where no label is given
    accuracy_by_domain: dict[str, float]
    epochs_to_95: int | None  # first epoch at 95 % of this member's best test accuracy
    parameters: int
    seconds: float
    curve: tuple[Epoch, ...]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """How one normalisation layer moved in training (the first seed of its norm)."""

    norm: str
    layer: str
    step: tuple[int, ...]  # T
    gamma: Table  # T x C; empty where the layer has none
    beta: Table  # T x C
    running_mean: Table  # T x C
    running_var: Table  # T x C
    gradient: Numbers  # T: norm of the gradient of gamma and beta together
    drift: Numbers  # T: movement of the layer input's distribution since the last line, in sigmas
    drift_after: Numbers  # T: the same for what leaves the layer


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Which learning rates train: short runs of one norm over a grid."""

    norm: str
    lr: Numbers
    accuracy: Numbers
    lowest: float | None  # smallest and largest rate within the criterion
    highest: float | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the comparison table."""

    norm: str
    seeds: int
    diverged: int
    mean: float
    spread: float  # sample standard deviation over seeds; NaN for one seed
    epochs_to_95: float  # mean over seeds; NaN where none got there
    lr_lowest: float | None
    lr_highest: float | None
    leaks: bool
    without_label: float | None
    by_domain: dict[str, float]
    parameters: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Run(Record):
    """A finished (or stopped) comparison of normalisations on one data set."""

    kind: ClassVar[str] = "run"
    config: RunConfig
    complete: bool
    classes: tuple[str, ...]
    train_size: int
    test_size: int
    environment: dict[str, str]  # versions and threads
    rows: tuple[Row, ...]
    members: tuple[Member, ...]
    traces: tuple[Trace, ...]
    sweeps: tuple[Sweep, ...]
    inspection: Inspection | None


# --- conversion -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A layer that became another."""

    name: str  # as in model.named_modules(); the class name where the model is the layer
    before: str  # class names
    after: str
    # where it computes what it did: in training too, in eval() only as was asked for, or nowhere
    equal: Literal["always", "eval", "never"]
    note: str = ""  # what to know, as a phrase


@dataclass(frozen=True)
class Left:
    """A normalisation layer that stayed as it was."""

    name: str
    layer: str  # class name
    reason: str  # as a phrase


@dataclass(frozen=True)
class Comparison:
    """One thing that was compared before and after a conversion."""

    what: str  # "outputs", "gradients", ...
    mode: Literal["eval", "train"]
    difference: float  # largest absolute difference over the largest value of before
    # what rounding explains: a hundred times what the model before makes of an input moved by one
    # unit in the last place; None where the two may differ
    allowed: float | None

    @property
    def ok(self) -> bool:
        """Whether the two are equal, or need not be."""
        return self.allowed is None or self.difference <= self.allowed


@dataclass(frozen=True, kw_only=True)
class Converted(Record):
    """What `normscope convert` did to a model, and the proof of it."""

    kind: ClassVar[str] = "conversion"
    model: str
    to: str
    changed: tuple[Change, ...]
    kept: tuple[Left, ...]
    refused: tuple[Left, ...]
    comparisons: tuple[Comparison, ...] = ()  # empty where it was not verified

    @property
    def ok(self) -> bool:
        """Whether all that must be equal is equal."""
        return all(comparison.ok for comparison in self.comparisons)
