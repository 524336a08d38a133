"""Which channels of a layer are worth a picture, and what the picture needs."""

import math
from typing import Any, NamedTuple

from normscope.records import Inspection, Layer
from normscope.report.bilingual import Text, Words, tr
from normscope.report.document import Table, columns
from normscope.report.format import figure, share

EACH = 2  # channels shown at either end of the ranking
CLASSES = 20  # lanes of one picture: half for the classes hardest to tell apart, half for the rest


class Chosen(NamedTuple):
    """A channel with the number that ranked it."""

    channel: int
    best: bool
    score: float  # bits where the layer has a gate, otherwise eta squared; without classes drift


def choose(layer: Layer) -> list[Chosen]:
    """Choose the channels whose gate tells most about the class, and those that tell least.

    Where no activation follows, the between-class share of the variance ranks instead; where
    there are no two classes, the distance from the stored statistics, then the share that passes.
    """
    scores = layer.stages[0].eta2 if layer.activation is None else layer.gate_information
    if not layer.compared:
        drift = any(map(math.isfinite, layer.drift))
        scores = layer.drift if drift or not len(layer.firing) else layer.firing[0].tolist()
    known = [c for c in layer.histogram_channels if math.isfinite(scores[c])]
    ranked = sorted(known if len(layer.histogram) else [], key=lambda c: (-scores[c], c))
    best, worst = ranked[:EACH], ranked[EACH:][-EACH:]
    return [Chosen(c, c in best, scores[c]) for c in (*best, *worst)]


def shown_classes(inspection: Inspection) -> list[int]:
    """Choose the classes that get a lane: all, or of many the least and the most separated ones.

    The separation is that at the last layer; where it is not known, evenly spread classes.
    """
    present = [k for k, n in enumerate(inspection.counts) if n]
    if len(present) <= CLASSES:
        return present
    known = [k for k in present if k < len(inspection.separation)]
    known = [k for k in known if not math.isnan(inspection.separation[k])]
    if len(known) < CLASSES:
        return [present[round(i * (len(present) - 1) / (CLASSES - 1))] for i in range(CLASSES)]
    known.sort(key=lambda k: (inspection.separation[k], k))
    return [*known[: CLASSES // 2], *known[-(CLASSES - CLASSES // 2) :]]


def told(inspection: Inspection, key: str, **values: object) -> Text:
    """Return a message about classes, or that of what is shown where there are no two of them."""
    return tr(key if inspection.compared else f"{key}.alone", **values)


def class_names(inspection: Inspection) -> list[Words]:
    """Name the classes; all samples together by a message."""
    if inspection.labels == "none":
        return [tr("live.all_samples")]
    return list(inspection.classes)


def drawing(layer: Layer, chosen: Chosen, inspection: Inspection) -> dict[str, Any]:
    """Collect what the page needs to draw one channel and to move its gate."""
    c, classes = chosen.channel, shown_classes(inspection)
    return {
        "gamma": layer.gamma[c],
        "beta": layer.beta[c],
        "mean": layer.running_mean[c],
        "variance": layer.running_var[c],
        "eps": layer.eps,
        "activation": layer.activation,
        "edges": layer.bin_edges,
        "counts": [layer.counts(k, c) for k in classes],
        "firing": [float(layer.firing[k, c]) for k in classes],
        "weights": [inspection.counts[k] for k in classes],
        "classes": [inspection.classes[k] for k in classes],
        "alone": inspection.labels == "none",
    }


def numbers(layer: Layer, inspection: Inspection, c: int, classes: list[int]) -> Table:
    """List mean and deviation of every class at a channel, and the share that passes its gate."""

    def after(k: int) -> float:
        z = (float(layer.class_mean[k, c]) - layer.running_mean[c]) / _root(
            layer.running_var[c] + layer.eps
        )
        return z * layer.gamma[c] + layer.beta[c]

    return columns(
        tr("page.channel.table", channel=c),
        "page.head",
        classes,
        {
            "class": lambda k: class_names(inspection)[k],
            "mean_x": lambda k: figure(float(layer.class_mean[k, c]), 3),
            "deviation_x": lambda k: figure(_root(float(layer.class_var[k, c])), 3),
            "mean_y": lambda k: figure(after(k), 3),
            "passes": lambda k: share(float(layer.firing[k, c])),
        },
    )


def _root(variance: float) -> float:
    """Return the standard deviation; NaN where the variance is none to divide by."""
    return math.sqrt(variance) if variance > 0 else math.nan
