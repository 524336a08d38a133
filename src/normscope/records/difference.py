"""What differs between two inspections of one architecture."""

from dataclasses import dataclass
from typing import ClassVar

from normscope.records.base import Record
from normscope.records.inspection import StageName


@dataclass(frozen=True, kw_only=True)
class StageDifference:
    """Each measure of a stage, in the first and in the second."""

    name: StageName
    eta2: tuple[float, float]
    lda: tuple[float, float]
    nearest_mean: tuple[float, float]
    separation: tuple[float, float]
    condition: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class LayerDifference:
    """One layer in both."""

    name: str
    stages: tuple[StageDifference, ...]  # those that both have
    moved: float  # mean over channels of the distance of the inputs' Gaussians, in deviations
    statistics: float  # the same of what the layer normalises with
    gamma: float  # root mean square of the change
    beta: float
    gates: float  # share of the channels whose gamma changed its sign
    gate_information: tuple[float, float]  # bits, mean over channels
    firing: float  # largest change of a class's firing rate at a channel
    channel: int  # where that is
    signal: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Difference(Record):
    """Two checkpoints, epochs or domains of one model, layer by layer."""

    kind: ClassVar[str] = "difference"
    models: tuple[str, str]
    data: tuple[str, str]
    images: tuple[int, int]
    classes: tuple[str, ...]
    layers: tuple[LayerDifference, ...]
    only_first: tuple[str, ...]  # layers that the other lacks
    only_second: tuple[str, ...]
