"""What is measured of layers, and the tables of it.

A measure of every stage that `lens.stage_measures` has registered is shown by its messages
(`page.measure.NAME`, `page.measure.NAME.how`) alone. One number of a layer is an entry of
`LAYERS` here with a place in `RANKED` or `GATES` and its message (`page.rank.NAME`). Terminal,
page and notebook follow.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from normscope.records import Inspection, Layer, StageMeasures, StageName
from normscope.report import findings
from normscope.report.bilingual import Words, said
from normscope.report.document import Cell, Table
from normscope.report.format import figure, magnitude, share, signed

IDLE = 1e-3  # a gate that fires less often than this, or more often than 1 - IDLE, tells nothing
ORDER: tuple[StageName, ...] = (
    "pre_activation",
    "input",
    "normalised",
    "scaled_shifted",
    "activated",
)
AFFINE = ORDER[1:4]


class OfStage(NamedTuple):
    """A measure at every stage, and whether an affine map per channel leaves it as it is."""

    of: Callable[[StageMeasures], float]
    show: Callable[[float], Words]
    locked: bool = False


class OfLayer(NamedTuple):
    """One number of a layer."""

    of: Callable[[Layer], float]
    show: Callable[[float], Words]


def _three(value: float) -> Words:
    return "-" if math.isnan(value) else figure(value, 3)


STAGES: dict[str, OfStage] = {
    "eta2": OfStage(lambda s: s.eta2_mean, figure, locked=True),
    "lda": OfStage(lambda s: s.lda_fraction, figure, locked=True),
    "nearest_mean": OfStage(lambda s: s.nearest_mean_accuracy, share),
    "separation": OfStage(lambda s: s.separation, magnitude),
    "cdnv": OfStage(lambda s: s.cdnv, magnitude),
    "condition": OfStage(lambda s: s.condition, magnitude),
}
LAYERS: dict[str, OfLayer] = {
    "gained": OfLayer(lambda layer: gained(layer), signed),
    "fraction": OfLayer(lambda layer: layer.stages[-1].lda_fraction, lambda v: figure(v, 3)),
    "eta2": OfLayer(lambda layer: layer.stages[0].eta2_mean, lambda v: figure(v, 3)),
    "nearest_mean": OfLayer(lambda layer: layer.stages[-1].nearest_mean_accuracy, share),
    "separation": OfLayer(lambda layer: layer.stages[-1].separation, magnitude),
    "condition": OfLayer(lambda layer: layer.stages[-1].condition, magnitude),
    "information": OfLayer(lambda layer: findings.mean_known(layer.information), _three),
    "gate": OfLayer(lambda layer: findings.mean_known(layer.gate_information), _three),
    "best": OfLayer(lambda layer: findings.mean_known(layer.best_information), _three),
    "efficiency": OfLayer(
        lambda layer: findings.mean_known(map(layer.efficiency, range(layer.channels))), share
    ),
    "spread": OfLayer(lambda layer: layer.firing_spread, share),
    "idle": OfLayer(lambda layer: idle(layer), share),
    "signal": OfLayer(lambda layer: layer.signal, share),
    "invariance": OfLayer(
        lambda layer: layer.invariance, lambda v: "-" if math.isnan(v) else f"{v:.0e}"
    ),
}
RANKED = ("gained", "fraction", "eta2", "nearest_mean", "separation", "condition", "invariance")
GATES = ("information", "gate", "best", "efficiency", "spread", "idle", "signal")


def gained(layer: Layer) -> float:
    """J behind the layer and its activation, less J before: below 0 where class signal is lost.

    Before: also before the activation that made its input, where the layer comes behind one.
    """
    return layer.every_stage[-1].lda_fraction - layer.every_stage[0].lda_fraction


def idle(layer: Layer) -> float:
    """Share of the channels that fire for hardly any value of any class, or for nearly all."""
    known = layer.firing[~np.isnan(layer.firing).all(1)]
    if not len(known):
        return math.nan
    return float(np.mean((known.max(0) < IDLE) | (known.min(0) > 1 - IDLE)))


def worst_first(inspection: Inspection) -> list[int]:
    """Places of the layers: ascending gain of J, then of gate information; unknown ones last."""

    def key(place: int) -> tuple[float, float, int]:
        layer = inspection.layers[place]
        bits = findings.mean_known(layer.gate_information)
        return _or_last(gained(layer)), _or_last(bits), place

    return sorted(range(len(inspection.layers)), key=key)


def pictured(inspection: Inspection, most: int) -> list[int]:
    """Choose the layers that get pictures, in their order: all, or both ends of the rank."""
    order = worst_first(inspection)
    if len(order) <= most:
        return sorted(order)
    return sorted([*order[: most // 2], *order[-(most - most // 2) :]])


def ranking(inspection: Inspection) -> Table:
    """Make a table of layers that any column sorts, the smallest gain of J first."""
    return _of_layers(inspection, worst_first(inspection), RANKED, "page.rank.caption")


def gates(inspection: Inspection) -> Table:
    """Make a table of what the gates of every layer tell about the class."""
    return _of_layers(inspection, range(len(inspection.layers)), GATES, "lens.gate.caption")


def _of_layers(
    inspection: Inspection, places: Sequence[int], names: Sequence[str], caption: str
) -> Table:
    rows = []
    for place in places:
        layer = inspection.layers[place]
        values = {name: LAYERS[name].of(layer) for name in names}
        rows.append(
            (
                Cell(
                    layer.name + " *" * (layer.maps == "per_sample"), "name", link=f"layer-{place}"
                ),
                Cell(str(place + 1), value=place + 1),
                Cell(findings.follows(layer)),
                *(
                    Cell(
                        LAYERS[name].show(value),
                        "changed" if name == "gained" and value < -findings.RAISED else "",
                        value=value,
                    )
                    for name, value in values.items()
                ),
            )
        )
    head = tuple(said(f"page.rank.{name}") for name in ("layer", "order", "then", *names))
    return Table(said(caption), head, tuple(rows), sortable=True)


def by_stage(layers: Sequence[Layer]) -> Table:
    """Layer by measure and stage; what an affine map cannot change stands on one locked band."""
    rows, styles = [], []
    shown = [n for n in ORDER if n != "pre_activation" or any(la.pre_activation for la in layers)]
    for layer in layers:
        found = {stage.name: stage for stage in layer.every_stage}
        for place, (name, measure) in enumerate((STAGES | _registered(layer)).items()):
            icon = "lock" if measure.locked else "scale"
            cells = [
                Cell(layer.name if place == 0 else "", "name"),
                Cell(said(f"page.measure.{name}"), "measure", icon=icon),
            ]
            before: Words = ""
            for stage_name in shown:
                stage = found.get(stage_name)
                value = "-" if stage is None else measure.show(measure.of(stage))
                fixed = measure.locked and layer.maps == "one" and stage_name in AFFINE
                changed = bool(before) and value not in (before, "-")
                changed &= not fixed or stage_name == "input"
                cells.append(Cell(value, "locked" if fixed else "changed" if changed else ""))
                before = value
            rows.append(tuple(cells))
            styles.append("first" if place == 0 else "")
    head = [said("page.head.layer"), said("page.head.measure")]
    head += [said(f"page.stage.{name}") for name in shown]
    return Table(said("page.index.caption"), tuple(head), tuple(rows), tuple(styles), keys=2)


def _registered(layer: Layer) -> dict[str, OfStage]:
    """Return the measures that the record of a layer holds by name."""

    def of(name: str) -> Callable[[StageMeasures], float]:
        return lambda stage: stage.more.get(name, math.nan)

    return {name: OfStage(of(name), magnitude) for name in layer.stages[0].more}


def _or_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
