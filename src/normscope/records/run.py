"""A comparison of normalisations, trained."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from normscope.records.base import Numbers, Part, Record, Table, scalars
from normscope.records.inspection import Inspection

Counts = tuple[tuple[int, ...], ...]


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
    freeze_head: bool = False  # under affine_only: the output layer does not learn either


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
    accuracy_without_label: float | None = None  # the same network where no label is given
    accuracy_before: float = math.nan  # of the same network before its first step
    confusion: Counts = ()  # K x K, class by prediction, where the labels are given; empty else
    confusion_without_label: Counts = ()  # the same where no label is given
    accuracy_by_domain: dict[str, float] = field(default_factory=dict)
    epochs_to_95: int | None = None  # first epoch at 95 % of this member's best test accuracy
    parameters: int
    learning: int | None = None  # how many of them learn; None in records that do not say
    seconds: float
    curve: tuple[Epoch, ...]


@dataclass(frozen=True, kw_only=True)
class Trace(Part):
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
class ChannelHistory:
    """One channel of one norm layer, on the same test samples at T epochs, in eval mode.

    It is the channel whose gate, [y > 0], tells most about the class at the last epoch.
    """

    norm: str
    seed: int
    layer: str
    channel: int
    channels: int  # of all norm layers, among which it was chosen
    eps: float
    classes: tuple[int, ...]  # L: at most ten; of more those that pass least and most
    label: tuple[int, ...]  # S: the class of each sample
    epoch: tuple[int, ...]  # T: 0 is before training
    x: Table  # T x S: what enters the layer; of maps, one place of each sample
    gamma: Numbers  # T
    beta: Numbers  # T
    running_mean: Numbers  # T
    running_var: Numbers  # T
    passing: Table  # T x L: share of all values of each class with y > 0
    information: Numbers  # T: bits that [y > 0] tells about the class
    accuracy: Numbers  # T: of the network


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
    learning: int | None = None
    before: float = math.nan  # mean accuracy before the first step
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Run(Record, kind="run"):
    """A finished (or stopped) comparison of normalisations on one data set."""

    config: RunConfig
    complete: bool
    classes: tuple[str, ...]
    train_size: int
    test_size: int
    environment: dict[str, str]  # versions and threads
    rows: tuple[Row, ...] = ()
    members: tuple[Member, ...] = ()
    traces: tuple[Trace, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    histories: tuple[ChannelHistory, ...] = ()  # of the first norm that has one, of affine_only
    inspection: Inspection | None = None

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row per network: a normalisation, a seed, and how well it did."""
        return [
            scalars(member)
            | {f"accuracy_{name}": value for name, value in member.accuracy_by_domain.items()}
            for member in self.members
        ]
