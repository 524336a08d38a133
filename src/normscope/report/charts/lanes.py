"""One channel as a drawing that needs no script: each class a lane, the gate across them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from normscope.report.charts import svg
from normscope.report.charts.axis import Axis, cut
from normscope.report.charts.still import SMALL
from normscope.report.format import number, percent
from normscope.report.messages import Lang, say

WIDTH = 440
LANE = 26
RIGHT = 60  # room for the shares
NAME = 14  # characters


def lanes(channel: Mapping[str, Any], lang: Lang) -> Markup:
    """Draw what passes the gate -beta / gamma of each class, and what it blocks."""
    gamma, beta = channel["gamma"], channel["beta"]
    names = [say(lang, "live.all_samples")] if channel.get("alone") else channel["classes"]
    edges, classes = channel["edges"], [cut(name, NAME) for name in names]
    gate = -beta / gamma if gamma else math.nan
    left = 12 + max(map(svg.width_of, classes), default=0)
    about = {"type": "quantitative", "scale": {"zero": False, "nice": False}}
    z = Axis(_reach(channel, gate), about, lang)
    z.place(left, WIDTH - RIGHT)
    drawn: list[Markup] = []
    for k, (name, counts) in enumerate(zip(classes, channel["counts"], strict=True)):
        base = (k + 1) * LANE + 10
        for passing in (False, True):
            path = "".join(_steps(counts, edges, z, base, _side(gamma, beta, gate, passing)))
            if path:
                drawn.append(svg.element("path", class_="passes" if passing else "blocked", d=path))
        share = channel["firing"][k]
        passing_share = percent(share) if math.isfinite(share) else "-"
        drawn += [
            svg.line(left, base, WIDTH - RIGHT, base, "var(--rule)"),
            svg.label(left - 8, base - 4, name, "tick", "end"),
            svg.label(WIDTH - 4, base - 4, passing_share, "tick", "end"),
        ]
    floor = len(classes) * LANE + 16
    if math.isfinite(gate):
        at = z.at(min(max(gate, z.low), z.high))
        drawn.append(svg.line(at, 8, at, floor, "currentColor", "4 3", 1.5))
    drawn.append(svg.label(WIDTH - 4, 9, say(lang, "live.passes"), "tick quiet", "end"))
    texts = [(value, z.at(value), text) for value, text in z.texts()]
    for row, name in enumerate("zy"):
        y = floor + 20 + row * (SMALL + 14)
        drawn.append(svg.label(left - 8, y, name, "tick quiet", "end"))
        for value, at, text in texts:
            if at >= left + 8:  # else the name of the axis stands there
                scaled = number(gamma * value + beta, 1e-9, 3).replace("-", "−")
                drawn.append(svg.label(at, y, scaled if row else text, "tick", "middle"))
    return svg.picture(WIDTH, floor + 2 * (SMALL + 14) + 4, drawn)


def _reach(channel: Mapping[str, Any], gate: float) -> list[float]:
    """Return the ends of the part of z where any value is, the gate where it is near."""
    edges: Sequence[float] = channel["edges"]
    used = [b for b in range(len(edges) - 1) if any(row[b] for row in channel["counts"])]
    ends = [edges[used[0]], edges[used[-1] + 1]] if used else [edges[0], edges[-1]]
    if edges[0] <= gate <= edges[-1]:
        ends += [gate - 0.25, gate + 0.25]
    return ends


def _side(gamma: float, beta: float, gate: float, passing: bool) -> tuple[float, float]:
    """Return the range of z that passes, or that does not."""
    if gamma == 0:
        return (-math.inf, math.inf) if passing == (beta > 0) else (math.inf, -math.inf)
    return (gate, math.inf) if passing == (gamma > 0) else (-math.inf, gate)


def _steps(
    counts: Sequence[int],
    edges: Sequence[float],
    z: Axis,
    base: float,
    side: tuple[float, float],
) -> Iterator[str]:
    """Yield the outline of a histogram, as far as it lies on one side of the gate."""
    peak, at = max(1, *counts), None
    for count, start, end in zip(counts, edges, edges[1:], strict=False):
        low, high = max(start, side[0]), min(end, side[1])
        if not count or high <= low:
            continue
        if at != low:
            yield f"{'' if at is None else f'V{base}'}M{z.at(low):.1f},{base}"
        yield f"V{base - (LANE - 3) * count / peak:.1f}H{z.at(high):.1f}"
        at = high
    if at is not None:
        yield f"V{base}"
