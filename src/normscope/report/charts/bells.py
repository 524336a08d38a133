"""The lines of a small drawing of distributions, each a normal curve with its mean and deviation.

Only mean and variance are known of a stored statistic, so that a normal curve stands for it.
"""

import math
from dataclasses import dataclass

from normscope.report.document import Bells
from normscope.report.format import number

WIDTH, HEIGHT = 340, 120  # of the curves, in units of the drawing
REACH = 3.0  # deviations to either side that a curve shows
POINTS = 61
TICKS = 4


@dataclass(frozen=True)
class Curve:
    """One distribution in units of the drawing."""

    path: str
    mean: float
    low: float  # one deviation below the mean
    high: float
    style: str


@dataclass(frozen=True)
class Curves:
    """All of a drawing: the curves, and where the axis has which number."""

    curves: tuple[Curve, ...]
    ticks: tuple[tuple[float, str], ...]
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
    widest = max(spreads, default=1.0)
    # a narrow one is cut down, so that a wide one beside it can be seen
    heights = [min(1.0, math.sqrt(widest / s) / 2.5 + 0.2) for s in spreads]
    top = max(heights, default=1.0)

    def across(value: float) -> float:
        return round((value - low) / (high - low) * WIDTH, 1)

    drawn = []
    for bell, spread, height in zip(known, spreads, heights, strict=True):
        path = []
        for i in range(POINTS):
            z = REACH * (2 * i / (POINTS - 1) - 1)
            y = HEIGHT * (1 - 0.92 * height / top * math.exp(-z * z / 2))
            path.append(f"{across(bell.mean + z * spread)},{y:.1f}")
        drawn.append(
            Curve(
                "M" + "L".join(path),
                across(bell.mean),
                across(bell.mean - spread),
                across(bell.mean + spread),
                bell.style,
            )
        )
    return Curves(tuple(drawn), tuple((across(t), number(t, 1e-12, 3)) for t in ticks(low, high)))


def ticks(low: float, high: float) -> list[float]:
    """Choose round numbers, about `TICKS` of them."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m for m in (1, 2, 5, 10) if m * power >= rough) * power
    first = math.ceil(low / step)
    return [k * step for k in range(first, math.floor(high / step) + 1)]
