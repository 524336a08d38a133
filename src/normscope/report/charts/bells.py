"""Distributions of which mean and deviation alone are known, each drawn as a normal curve."""

import math
from collections.abc import Mapping

import numpy as np

from normscope.report.charts import spec
from normscope.report.document import Spec

REACH = 3.0  # deviations to either side that a curve shows
POINTS = 61


def bells(moments: Mapping[str, tuple[float, float]]) -> Spec:
    """Lay distributions out on one axis; each curve has the same area, within reason."""
    known = {
        name: (mean, deviation)
        for name, (mean, deviation) in moments.items()
        if math.isfinite(mean) and 0 <= deviation < math.inf
    }
    ends = [mean + side * REACH * sd for mean, sd in known.values() for side in (-1, 1)]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    if not high > low:
        low, high = low - 1, high + 1
    # a deviation of nearly nothing is a line
    spreads = {name: max(sd, (high - low) / 300) for name, (_, sd) in known.items()}
    # a narrow one is cut down, so that a wide one beside it can be seen
    widest = max(spreads.values(), default=1.0)
    heights = {name: min(1.0, math.sqrt(widest / s) / 2.5 + 0.2) for name, s in spreads.items()}
    z = np.linspace(-REACH, REACH, POINTS)
    rows: list[Spec] = []
    spans: list[Spec] = []
    for place, (name, (mean, _)) in enumerate(known.items()):
        height = heights[name] / max(heights.values())
        curve = zip((mean + z * spreads[name]).tolist(), np.exp(-z * z / 2).tolist(), strict=True)
        rows += [{"series": name, "x": x, "y": height * y} for x, y in curve]
        first, last = mean - spreads[name], mean + spreads[name]
        spans.append({"series": name, "x": first, "x2": last, "y": -0.08 * (place + 1)})
    means = [{**span, "x": known[span["series"]][0]} for span in spans]
    return spec("bells", rows, list(moments), spans=spans, means=means, domain=[low, high])
