"""Published statements about batch norm, tested on this machine."""

from dataclasses import dataclass
from typing import Literal

from normscope.records.base import Record

StatementVerdict = Literal["agrees", "direction", "no"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One number, over seeds."""

    name: str  # the message key behind "claims.NAME.number."
    mean: float
    spread: float  # standard deviation over seeds
    percent: bool = False


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line, or the points of a scatter, over seeds."""

    name: str  # the message key behind "claims.NAME.curve."
    x: tuple[float, ...]
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    points: bool = False  # drawn without a line


@dataclass(frozen=True, kw_only=True)
class ClaimResult(Record, kind="claim", parts="numbers"):
    """One statement: what was measured, and whether it agrees by a rule fixed before the run."""

    name: str
    source: str
    link: str
    data: str
    verdict: StatementVerdict
    numbers: tuple[Measured, ...]
    curves: tuple[Curve, ...]
    log_x: bool
    log_y: bool
    seeds: int
    seconds: float
    torch: str
    normscope: str


@dataclass(frozen=True, kw_only=True)
class Claims(Record, kind="claims", parts="results"):
    """Several statements, in the order of their publication."""

    results: tuple[ClaimResult, ...]
