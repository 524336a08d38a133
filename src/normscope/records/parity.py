"""Two forms of one network side by side: what is the same, the first norm that is not, and why."""

from dataclasses import dataclass
from typing import Literal

from normscope.records.base import Record
from normscope.records.passport import Mismatch

PairStatus = Literal["same", "fused", "differs", "carried", "missing"]


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why one norm of the two forms is not the same."""

    code: str  # the message key behind "parity.reason."
    first: str = ""  # the value in the first form, as text
    second: str = ""
    detail: str = ""  # another layer, channels, n
    amount: float = float("nan")  # the difference of its output that this alone makes; relative


@dataclass(frozen=True, kw_only=True)
class NormPair:
    """One norm of the first form, and its counterpart in the second."""

    name: str
    other: str  # its name there; "" where it is fused away or missing
    layers: tuple[str, str]  # class or operator
    channels: int
    # fused: its map is in a layer beside it, and the same; carried: it differs only in its input
    status: PairStatus
    inputs: float  # largest difference over the largest value of the first; NaN where not compared
    outputs: float
    allowed: float  # what rounding explains
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModeParity:
    """The outputs of both in one mode."""

    mode: Literal["eval", "train"]
    outputs: float  # largest difference over the largest value of the first
    allowed: float
    statistics: float = float("nan")  # of the running statistics behind a step in train()

    @property
    def ok(self) -> bool:
        """Whether rounding explains the difference."""
        return self.outputs <= self.allowed


@dataclass(frozen=True, kw_only=True)
class Parity(Record, kind="parity", parts="norms"):
    """Two forms of one network on the same inputs."""

    names: tuple[str, str]
    forms: tuple[str, str]  # module, compiled, exported, torchscript, onnx, function
    modes: tuple[ModeParity, ...]
    norms: tuple[NormPair, ...]  # in the order of execution of the first
    extra: tuple[str, ...] = ()  # norms of one side with nothing in their place on the other
    reasons: tuple[Reason, ...] = ()  # of what is no norm: compiled code, layers behind the last
    # where each side is not what its own passport says; None where it has none
    passports: tuple[tuple[Mismatch, ...] | None, ...] = (None, None)
    forwards: tuple[int, int] = (0, 0)  # how often each was run

    @property
    def ok(self) -> bool:
        """Whether they are the same network, up to rounding."""
        return (
            self.first is None
            and not self.reasons
            and not self.extra
            and all(mode.ok for mode in self.modes)
        )

    @property
    def first(self) -> NormPair | None:
        """The first norm that is not the same."""
        return next((n for n in self.norms if n.status in ("differs", "missing")), None)

    @property
    def why(self) -> str:
        """The code of the first reason; "" where they are the same."""
        first = self.first
        reasons = first.reasons if first is not None else self.reasons
        return reasons[0].code if reasons else "" if self.ok else "unknown"
