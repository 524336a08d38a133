"""A passport: settings of every norm and the data of its statistics, which no state dict has."""

from dataclasses import dataclass
from typing import Literal

from normscope.records.base import Numbers, Record

SKETCHES = 4  # random sums of means, and as many of deviations


@dataclass(frozen=True, kw_only=True)
class NormPassport:
    """One norm: its settings, and a summary that identifies its statistics."""

    name: str
    layer: str  # class name
    channels: int
    eps: float
    momentum: float | None  # None: the cumulative mean
    convention: Literal["unbiased", "unknown"]  # of the running variance
    training: bool
    frozen: bool  # statistics never change, or neither gamma nor beta is trained
    tracked: int | None  # batches seen; None where they are not counted
    dtype: str  # of the statistics
    digest: str  # of mean and variance, to the bit
    sketch: Numbers  # of the same, by which a change of dtype is told from other statistics
    deviations: Numbers  # sizes of sketch: of the means in deviations, of the variances in parts
    # root mean square over channels; NaN without data
    distance: float = float("nan")  # of what is stored from the data, in deviations
    mean_error: float = float("nan")  # standard error, in deviations
    var_error: float = float("nan")  # standard error, as a part of the variance

    def __post_init__(self) -> None:
        if (len(self.sketch), len(self.deviations)) != (2 * SKETCHES, 2):
            raise ValueError(f"the summary of {self.name!r} is not whole")


@dataclass(frozen=True, kw_only=True)
class DataPassport:
    """The data that were measured, by what enters the first norm."""

    batches: int
    samples: int
    sizes: tuple[int, ...]  # of batches, the different ones, the most frequent first
    norm: str  # the first norm that runs
    count: int  # values per channel there
    mean: Numbers  # (C,) of its input
    var: Numbers  # (C,) unbiased


@dataclass(frozen=True, kw_only=True)
class Passport(Record, kind="passport", parts="norms"):
    """The batch norms of one checkpoint."""

    model: str  # class name
    torch: str
    normscope: str
    norms: tuple[NormPassport, ...]
    data: DataPassport | None = None


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """A difference between a model or checkpoint and its passport."""

    # eps, momentum, reset, overwritten, channels, missing
    code: Literal["eps", "momentum", "reset", "overwritten", "channels", "missing"]
    norm: str
    passport: str  # the value there, as text
    found: str
    amount: float = float("nan")  # of statistics: about how far they moved, in deviations


@dataclass(frozen=True, kw_only=True)
class PassportCheck(Record, kind="passport_check", parts="mismatches"):
    """A checkpoint or model compared with its passport."""

    subject: str
    passport: Passport
    mismatches: tuple[Mismatch, ...]

    @property
    def ok(self) -> bool:
        """Whether it matches its passport."""
        return not self.mismatches
