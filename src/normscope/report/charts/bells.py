"""The lines of a small drawing of distributions, each a normal curve with its mean and deviation.

Only mean and variance are known of a stored statistic, so that a normal curve stands for it.
"""

import math
from typing import NamedTuple

import numpy as np

from normscope.report.charts.svg import multiples, step
from normscope.report.document import Bells
from normscope.report.format import number

WIDTH, HEIGHT = 340, 120  # of the curves, in units of the drawing
REACH = 3.0  # deviations to either side that a curve shows
POINTS = 61
TICKS = 4


class Curve(NamedTuple):
    """One distribution in units of the drawing."""

    path: str
    mean: float
    low: float  # one deviation below the mean
    high: float
    style: str


class Curves(NamedTuple):
    """All of a drawing: the curves, and where the axis has which number."""

    curves: list[Curve]
    ticks: list[tuple[float, str]]
    width: int = WIDTH
    height: int = HEIGHT


def curves(drawing: Bells) -> Curves:
    """Lay distributions out on one axis; each curve has the same area, within reason."""
    known = [b for b in drawing.bells if math.isfinite(b.mean) and 0 <= b.deviation < math.inf]
    ends = [b.mean + side * REACH * b.deviation for b in known for side in (-1, 1)]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    if not high > low:
        low, high = low - 1, high + 1
    # a deviation of nearly nothing is a line
    spreads = [max(b.deviation, (high - low) / 300) for b in known]
    # a narrow one is cut down, so that a wide one beside it can be seen
    heights = [min(1.0, math.sqrt(max(spreads) / s) / 2.5 + 0.2) for s in spreads]
    z = np.linspace(-REACH, REACH, POINTS)

    def across(value: float) -> float:
        return round((value - low) / (high - low) * WIDTH, 1)

    drawn = []
    for bell, spread, height in zip(known, spreads, heights, strict=True):
        y = HEIGHT * (1 - 0.92 * height / max(heights) * np.exp(-z * z / 2))
        points = zip((bell.mean + z * spread).tolist(), y.tolist(), strict=True)
        path = "M" + "L".join(f"{across(x)},{down:.1f}" for x, down in points)
        mean, first, last = (across(bell.mean + side * spread) for side in (0, -1, 1))
        drawn.append(Curve(path, mean, first, last, bell.style))
    values = multiples(low, high, step(low, high, TICKS))
    return Curves(drawn, [(across(t), number(t, 1e-12, 3)) for t in values])
