"""Which channels of a layer are worth a picture, and what the picture needs."""

import math
from dataclasses import dataclass
from typing import Any

from normscope.records import Inspection, Layer

EACH = 2  # channels shown at either end of the ranking
CLASSES = 20  # lanes of one picture


@dataclass(frozen=True)
class Chosen:
    """A channel with the number that ranked it."""

    channel: int
    best: bool
    score: float  # bits where the layer has a gate, otherwise eta squared


def gate_information(layer: Layer, counts: tuple[int, ...], channel: int) -> float:
    """Mutual information in bits between the class and whether the gate is open.

    I = H(sum_k p_k f_k) - sum_k p_k H(f_k), f_k the firing share of class k, p_k its share of
    the images; NaN where no class has values.
    """
    shares = [row[channel] for row in layer.firing]
    known = [(f, n) for f, n in zip(shares, counts, strict=True) if n and math.isfinite(f)]
    total = sum(n for _, n in known)
    if not total:
        return math.nan
    together = sum(f * n for f, n in known) / total
    return _entropy(together) - sum(_entropy(f) * n for f, n in known) / total


def choose(layer: Layer, counts: tuple[int, ...]) -> list[Chosen]:
    """The channels whose gate tells most about the class, and those whose gate tells least.

    Where no activation follows, the between-class share of the variance ranks instead.
    """
    if layer.activation is None:
        scores = list(layer.stages[0].eta2)
    else:
        scores = [gate_information(layer, counts, c) for c in range(layer.channels)]
    ranked = sorted(
        (c for c in range(layer.channels) if math.isfinite(scores[c])),
        key=lambda c: (-scores[c], c),
    )
    best = ranked[:EACH]
    worst = [c for c in ranked[-EACH:] if c not in best]
    return [
        *(Chosen(c, best=True, score=scores[c]) for c in best),
        *(Chosen(c, best=False, score=scores[c]) for c in worst),
    ]


def shown_classes(inspection: Inspection) -> list[int]:
    """The classes that get a lane: all, or evenly spread ones where there are too many."""
    present = [k for k, n in enumerate(inspection.counts) if n]
    if len(present) <= CLASSES:
        return present
    return [present[round(i * (len(present) - 1) / (CLASSES - 1))] for i in range(CLASSES)]


def drawing(layer: Layer, chosen: Chosen, inspection: Inspection) -> dict[str, Any]:
    """What the page needs to draw one channel and to move its gate."""
    c, classes = chosen.channel, shown_classes(inspection)
    return {
        "gamma": layer.gamma[c],
        "beta": layer.beta[c],
        "mean": layer.running_mean[c],
        "variance": layer.running_var[c],
        "eps": layer.eps,
        "activation": layer.activation,
        "edges": layer.bin_edges,
        "counts": [layer.histogram[k][c] for k in classes],
        "firing": [layer.firing[k][c] for k in classes],
        "weights": [inspection.counts[k] for k in classes],
        "classes": [inspection.classes[k] for k in classes],
    }


def _entropy(p: float) -> float:
    if p <= 0 or p >= 1:
        return 0.0
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)
