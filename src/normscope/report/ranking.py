"""The index of many layers: one row each, the one that loses most class signal first."""

import math
from collections.abc import Callable

import numpy as np

from normscope.records import Inspection, Layer
from normscope.report import findings
from normscope.report.bilingual import Words, said
from normscope.report.document import Cell, Table
from normscope.report.format import figure, magnitude, share

IDLE = 1e-3  # a gate that fires less often than this, or more often than 1 - IDLE, tells nothing


def gained(layer: Layer) -> float:
    """J behind the layer and its activation, less J before: below 0 where class signal is lost.

    Before: also before the activation that made its input, where the layer comes behind one.
    """
    return layer.every_stage[-1].lda_fraction - layer.every_stage[0].lda_fraction


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
    """Layers by measures; every column sorts."""
    rows = []
    for place in worst_first(inspection):
        layer = inspection.layers[place]
        cells = [
            Cell(layer.name, "name", link=f"layer-{place}"),
            Cell(str(place + 1), value=place + 1),
            Cell(findings.follows(layer)),
        ]
        for name, show in COLUMNS.items():
            value = MEASURES[name](layer)
            lost = name == "gained" and value < -findings.RAISED
            cells.append(Cell(show(value), "changed" if lost else "", value=value))
        rows.append(tuple(cells))
    names = ("layer", "order", "then", *COLUMNS)
    head = tuple(said(f"page.rank.{name}") for name in names)
    return Table(said("page.rank.caption"), head, tuple(rows), sortable=True)


MEASURES: dict[str, Callable[[Layer], float]] = {
    "gained": gained,
    "fraction": lambda layer: layer.stages[-1].lda_fraction,
    "eta2": lambda layer: layer.stages[0].eta2_mean,
    "nearest_mean": lambda layer: layer.stages[-1].nearest_mean_accuracy,
    "separation": lambda layer: layer.stages[-1].separation,
    "condition": lambda layer: layer.stages[-1].condition,
    "information": lambda layer: findings.mean_known(layer.information),
    "gate": lambda layer: findings.mean_known(layer.gate_information),
    "efficiency": lambda layer: findings.mean_known(map(layer.efficiency, range(layer.channels))),
    "idle": lambda layer: idle(layer),
    "invariance": lambda layer: layer.invariance,
}
COLUMNS: dict[str, Callable[[float], Words]] = {
    "gained": findings.signed,
    "fraction": lambda v: figure(v, 3),
    "eta2": lambda v: figure(v, 3),
    "nearest_mean": share,
    "separation": magnitude,
    "condition": magnitude,
    "information": lambda v: figure(v, 3),
    "gate": lambda v: figure(v, 3),
    "efficiency": share,
    "idle": share,
    "invariance": lambda v: "-" if math.isnan(v) else f"{v:.0e}",
}


def idle(layer: Layer) -> float:
    """Share of the channels that fire for hardly any value of any class, or for nearly all."""
    known = layer.firing[~np.isnan(layer.firing).all(1)]
    if not len(known):
        return math.nan
    return float(np.mean((known.max(0) < IDLE) | (known.min(0) > 1 - IDLE)))


def _or_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
