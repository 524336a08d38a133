"""One channel as a drawing that needs no script: each class a lane, the gate across them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from normscope.report.charts import marks
from normscope.report.charts.scales import Scale, width_of
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
    edges, classes = channel["edges"], [_cut(name) for name in channel["classes"]]
    gate = -beta / gamma if gamma else math.nan
    left = 12 + max(map(width_of, classes), default=0)
    z = Scale(_reach(channel, gate), {"scale": {"zero": False, "nice": False}}, lang)
    z.place(left, WIDTH - RIGHT)
    parts: list[str] = []
    for k, (name, counts) in enumerate(zip(classes, channel["counts"], strict=True)):
        base = (k + 1) * LANE + 10
        for passing in (False, True):
            path = "".join(_steps(counts, edges, z, base, _side(gamma, beta, gate, passing)))
            parts.append(f'<path class="{"passes" if passing else "blocked"}" d="{path}"/>')
        share = channel["firing"][k]
        parts.append(marks.line(left, base, WIDTH - RIGHT, base, "var(--rule)"))
        parts.append(marks.text(left - 8, base - 4, name, "tick", "end"))
        told = percent(share) if math.isfinite(share) else "-"
        parts.append(marks.text(WIDTH - 4, base - 4, told, "tick", "end"))
    floor = len(classes) * LANE + 16
    if math.isfinite(gate):
        at = z.at(min(max(gate, z.low), z.high))
        parts.append(marks.line(at, 8, at, floor, "currentColor", "4 3", 1.5))
    parts.append(marks.text(WIDTH - 4, 9, say(lang, "live.passes"), "tick quiet", "end"))
    for row, (name, scale, offset) in enumerate((("z", 1.0, 0.0), ("y", gamma, beta))):
        y = floor + 16 + row * (SMALL + 14)
        parts.append(marks.text(left - 8, y + 4, name, "tick quiet", "end"))
        for at, text in z.marks():
            if at < left + 8:  # where the name of the axis stands
                continue
            value = z.low + (z.high - z.low) * (at - z.start) / (z.end - z.start)
            told = text if row == 0 else number(scale * value + offset, 1e-9, 3).replace("-", "−")
            parts.append(marks.text(at, y + 4, told, "tick", "middle"))
    return marks.svg(WIDTH, floor + 2 * (SMALL + 14) + 4, "".join(parts))


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
    z: Scale,
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


def _cut(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"
