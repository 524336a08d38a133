"""What differs between two inspections of one architecture."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from normscope.records.base import Part, Record
from normscope.records.inspection import StageName


@dataclass(frozen=True, kw_only=True)
class StageDifference(Part):
    """Each measure of a stage, in the first and in the second."""

    name: StageName
    eta2: tuple[float, float]
    lda: tuple[float, float]
    nearest_mean: tuple[float, float]
    separation: tuple[float, float]
    condition: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class LayerDifference(Part):
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
class Difference(Record, kind="difference"):
    """Two checkpoints, epochs or domains of one model, layer by layer."""

    models: tuple[str, str]
    data: tuple[str, str]
    images: tuple[int, int]
    classes: tuple[str, ...]
    layers: tuple[LayerDifference, ...]
    only_first: tuple[str, ...]  # layers that the other lacks
    only_second: tuple[str, ...]

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row per layer, stage and measure; one of a whole layer has no stage."""
        return [
            {"layer": layer.name, "stage": stage, "measure": name}
            | {"first": first, "second": second, "change": change}
            for layer in self.layers
            for stage, name, first, second, change in _measured(layer)
        ]


def _measured(layer: LayerDifference) -> Iterator[tuple[str, str, float, float, float]]:
    """Yield stage and name of every measure, in both, and its change."""
    both: list[tuple[str, str, tuple[float, float]]] = [
        (stage.name, name, getattr(stage, name))
        for stage in layer.stages
        for name in ("eta2", "lda", "nearest_mean", "separation", "condition")
    ]
    both += [("", name, getattr(layer, name)) for name in ("gate_information", "signal")]
    for place, name, (first, second) in both:
        yield place, name, first, second, second - first
    for name in ("moved", "statistics", "gamma", "beta", "gates", "firing"):
        yield "", name, math.nan, math.nan, getattr(layer, name)
