"""A benchmark: times, memory, and errors of the statistics, for each peer."""

from dataclasses import dataclass, field
from typing import Any, Literal

from normscope.records.base import Record, scalars

Part = Literal[
    "models",
    "shapes",
    "formats",
    "dtypes",
    "threads",
    "groups",
    "sweep",
    "inference",
    "network",
    "accuracy",
]
Layout = Literal["contiguous", "channels_last"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The arguments that all peers of one comparison share."""

    part: Part
    shape: tuple[int, ...]  # of x: (N, C, *S)
    layout: Layout = "contiguous"
    dtype: str = "float32"
    groups: int = 1  # K, of equal size
    threads: int
    model: str = ""  # a whole network; empty: one layer
    training: bool = True  # False: the forward in eval() alone

    @property
    def values(self) -> int:
        """How many values x has."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Milliseconds of one thing, done several times."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    repeats: int


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One peer at one setting: forward and backward of a training step, or inference."""

    peer: str
    forward: Spread
    backward: Spread
    total: Spread
    speed: float  # time of torch's plain layer / own time, by the medians of total
    gb_per_s: float  # bytes that must move (5 times those of x) / median of total
    share: float  # of the copy limit: time in which a copy moves as many bytes / own time
    share_forward: float  # one read and one write
    share_backward: float  # two reads and one write
    memory: float | None  # peak of what the step allocates, MB; None: the peer does not say


@dataclass(frozen=True, kw_only=True)
class Race:
    """All peers at one setting, measured in turns."""

    setting: Setting
    copy: Spread  # of x into memory that is there already: one read and one write
    timings: tuple[Timing, ...]
    absent: dict[str, str] = field(default_factory=dict)  # peer -> why it was not measured

    def of(self, peer: str) -> Timing | None:
        """Return the timing of one peer; None where it was not measured."""
        return next((t for t in self.timings if t.peer == peer), None)


@dataclass(frozen=True, kw_only=True)
class StatisticsError:
    """Largest relative error over the channels against float64, of one peer."""

    peer: str
    mean: float
    var: float  # NaN where x rounded to its dtype has no variance left


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The statistics of all peers on the same x."""

    setting: Setting
    ratio: float  # mean / standard deviation of x
    errors: tuple[StatisticsError, ...]


@dataclass(frozen=True, kw_only=True)
class Bench(Record, kind="bench"):
    """Speed, memory and accuracy of normscope and its peers, in one run."""

    complete: bool  # False: interrupted; what is here was measured in full
    quick: bool
    repeats: int  # at least so many for each median, but for what takes over a second
    environment: dict[str, str]
    checked: int  # forms of the kernel that were equal to the definition before anything was timed
    races: tuple[Race, ...]
    accuracies: tuple[Accuracy, ...]

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row per setting and peer, times in milliseconds."""
        return [
            scalars(race.setting)
            | {"shape": " x ".join(map(str, race.setting.shape))}
            | {f"{name}_ms": getattr(t, name).median for name in ("forward", "backward", "total")}
            | scalars(t)
            for race in self.races
            for t in race.timings
        ]
