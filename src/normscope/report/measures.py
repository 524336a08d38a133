"""What is measured of layers, and the tables of it.

A measure of every stage that `lens.stage_measures` has registered is shown by its messages
(`page.measure.NAME`, `page.measure.NAME.how`) alone. One number of a layer is an entry of
`RANKED` or `GATES` here with its message (`page.rank.NAME`). Terminal,
page and notebook follow.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from normscope.records import Inspection, Layer, StageMeasures, StageName
from normscope.report.bilingual import Words, tr
from normscope.report.document import Cell, Table, columns, table
from normscope.report.findings import RAISED, follows, mean_known
from normscope.report.format import figure, magnitude, or_dash, share, signed

Of = TypeVar("Of")

IDLE = 1e-3  # a gate that fires less often than this, or more often than 1 - IDLE, tells nothing
ORDER: tuple[StageName, ...] = (
    "pre_activation",
    "input",
    "normalised",
    "scaled_shifted",
    "activated",
)
AFFINE = ORDER[1:4]


class Measure(NamedTuple, Generic[Of]):
    """What is measured, how it is written, and whether an affine map per channel keeps it."""

    of: Callable[[Of], float]
    show: Callable[[float], Words]
    locked: bool = False


THREE = partial(figure, digits=3)
SHOWN = partial(or_dash, show=THREE)
STAGES: dict[str, Measure[StageMeasures]] = {
    "eta2": Measure(lambda s: s.eta2_mean, figure, locked=True),
    "lda": Measure(lambda s: s.lda_fraction, figure, locked=True),
    "nearest_mean": Measure(lambda s: s.nearest_mean_accuracy, share),
    "separation": Measure(lambda s: s.separation, magnitude),
    "cdnv": Measure(lambda s: s.cdnv, magnitude),
    "condition": Measure(lambda s: s.condition, magnitude),
}
RANKED: dict[str, Measure[Layer]] = {
    "gained": Measure(lambda layer: gained(layer), signed),
    "fraction": Measure(lambda layer: layer.stages[-1].lda_fraction, THREE),
    "eta2": Measure(lambda layer: layer.stages[0].eta2_mean, THREE),
    "nearest_mean": Measure(lambda layer: layer.stages[-1].nearest_mean_accuracy, share),
    "separation": Measure(lambda layer: layer.stages[-1].separation, magnitude),
    "condition": Measure(lambda layer: layer.stages[-1].condition, magnitude),
    "invariance": Measure(lambda layer: layer.invariance, partial(or_dash, show="{:.0e}".format)),
}
# where there are no two classes
ALONE: dict[str, Measure[Layer]] = {
    "drift": Measure(lambda layer: mean_known(layer.drift), SHOWN),
    "passing": Measure(lambda layer: mean_known(layer.firing.mean(1).tolist()), share),
    "idle": Measure(lambda layer: idle(layer), share),
    "condition": RANKED["condition"],
}
GATES: dict[str, Measure[Layer]] = {
    "information": Measure(lambda layer: mean_known(layer.information), SHOWN),
    "gate": Measure(lambda layer: mean_known(layer.gate_information), SHOWN),
    "best": Measure(lambda layer: mean_known(layer.best_information), SHOWN),
    "efficiency": Measure(
        lambda layer: mean_known(map(layer.efficiency, range(layer.channels))), share
    ),
    "spread": Measure(lambda layer: layer.firing_spread, share),
    "idle": Measure(lambda layer: idle(layer), share),
    "signal": Measure(lambda layer: layer.signal, share),
}


def gained(layer: Layer) -> float:
    """Compute J behind the layer and its activation, less J before: below 0 where signal is lost.

    Before: also before the activation that made its input, where the layer comes behind one.
    """
    return layer.every_stage[-1].lda_fraction - layer.every_stage[0].lda_fraction


def idle(layer: Layer) -> float:
    """Compute the share of the channels that fire for hardly any or for nearly all values."""
    known = layer.firing[~np.isnan(layer.firing).all(1)]
    if not len(known):
        return math.nan
    return float(np.mean((known.max(0) < IDLE) | (known.min(0) > 1 - IDLE)))


def worst_first(inspection: Inspection) -> list[int]:
    """Order the layers: ascending gain of J, then of gate information; unknown ones last.

    Where there are no two classes: by descending distance from the stored statistics.
    """

    def key(place: int) -> tuple[float, ...]:
        layer = inspection.layers[place]
        values = (gained(layer), mean_known(layer.gate_information), place)
        if not layer.compared:
            values = (-mean_known(layer.drift), -idle(layer), place)
        return tuple(math.inf if math.isnan(value) else value for value in values)

    return sorted(range(len(inspection.layers)), key=key)


def pictured(inspection: Inspection, most: int) -> list[int]:
    """Choose the layers that get pictures, in their order: all, or both ends of the rank."""
    order = worst_first(inspection)
    if len(order) <= most:
        return sorted(order)
    return sorted([*order[: most // 2], *order[-(most - most // 2) :]])


def ranking(inspection: Inspection) -> Table:
    """Make a table of layers that any column sorts, the worst first."""
    measures = RANKED if inspection.compared else ALONE
    caption = "page.rank.caption" if inspection.compared else "page.rank.caption.alone"
    return _of_layers(inspection, worst_first(inspection), measures, caption)


def gates(inspection: Inspection) -> Table:
    """Make a table of what the gates of every layer tell about the class."""
    return _of_layers(inspection, range(len(inspection.layers)), GATES, "lens.gate.caption")


def _of_layers(
    inspection: Inspection, places: Iterable[int], measures: dict[str, Measure[Layer]], caption: str
) -> Table:
    layers = inspection.layers
    known = {n for n, m in measures.items() if any(math.isfinite(m.of(la)) for la in layers)}

    def measured(place: int, name: str) -> Cell:
        value = measures[name].of(layers[place])
        lost = name == "gained" and value < -RAISED
        return Cell(measures[name].show(value), "changed" if lost else "", value=value)

    def named(place: int) -> Cell:
        star = " *" * (layers[place].maps == "per_sample")
        return Cell(layers[place].name + star, "name", link=f"layer-{place}")

    of: dict[str, Callable[[int], Words | Cell]] = {
        "layer": named,
        "order": lambda place: Cell(str(place + 1), value=place + 1),
        "then": lambda place: follows(layers[place]),
        **{name: partial(measured, name=name) for name in measures if name in known},
    }
    return columns(caption, "page.rank", places, of, sortable=True)


def by_stage(layers: Sequence[Layer]) -> Table:
    """List layer by measure and stage; what an affine map cannot change is on one locked band."""
    rows, styles = [], []
    shown = [n for n in ORDER if n != "pre_activation" or any(la.pre_activation for la in layers)]
    for layer in layers:
        found = {stage.name: stage for stage in layer.every_stage}
        measures = {n: m for n, m in STAGES.items() if layer.compared or n == "condition"}
        for name, measure in (measures | _registered(layer)).items():
            first = name == next(iter(measures))
            icon = "lock" if measure.locked else "scale"
            cells = [
                Cell(layer.name if first else "", "name"),
                Cell(tr(f"page.measure.{name}"), "measure", icon=icon),
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
            rows.append(cells)
            styles.append("first" if first else "")
    head = [tr("page.head.layer"), tr("page.head.measure")]
    head += [tr(f"page.stage.{name}") for name in shown]
    return table(tr("page.index.caption"), head, rows, keys=2, styles=tuple(styles))


def _registered(layer: Layer) -> dict[str, Measure[StageMeasures]]:
    """Return the measures that the record of a layer holds by name."""

    def of(name: str) -> Callable[[StageMeasures], float]:
        return lambda stage: stage.more.get(name, math.nan)

    return {name: Measure(of(name), magnitude) for name in layer.stages[0].more}
