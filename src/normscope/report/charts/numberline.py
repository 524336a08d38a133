"""Values of several classes on one line, as text and as the marks of a small drawing."""

import math
from typing import NamedTuple

from rich.text import Text as Styled

from normscope.report.charts.svg import multiples, step
from normscope.report.document import NumberLine
from normscope.report.format import number

SIGNS = "123456789abcdefghijklmnopqrstuvwxyz"  # one sign per class on a line of text
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
WIDTH, LANE, SIZE = 300, 11, 4.2  # of a drawing, in its units
TICKS = 4
MOST = 8  # classes with a lane of their own


# the shapes of the pictures that move, so that a class looks the same everywhere
SHAPES = (
    "M-1,0a1,1 0 1,0 2,0a1,1 0 1,0 -2,0z",
    "M-0.9,-0.9h1.8v1.8h-1.8z",
    "M0,-1.2L1.1,0.8H-1.1z",
    "M0,-1.3L1.2,0L0,1.3L-1.2,0z",
    "M0,1.2L1.1,-0.8H-1.1z",
)


class Mark(NamedTuple):
    """One value: where it stands, its shape, and which colour its class has."""

    x: float
    y: float
    path: str
    colour: int


class Drawn(NamedTuple):
    """All of a drawing: the marks, the cuts, and where the axis has which number."""

    marks: list[Mark]
    cuts: list[float]
    ticks: list[tuple[float, str]]
    height: int
    width: int = WIDTH
    size: float = SIZE


def drawn(line: NumberLine) -> Drawn:
    """Lay the values out, a lane for each class."""
    low, high = _ends(line)
    room = 0.06 * (high - low) or 1.0
    low, high = low - room, high + room

    def across(value: float) -> float:
        return round((value - low) / (high - low) * WIDTH, 1)

    lanes = min(len(line.classes), MOST)
    marks = [
        Mark(across(v), LANE * (0.7 + k % lanes), SHAPES[k % len(SHAPES)], k % 8 + 1)
        for k, values in enumerate(line.classes)
        for v in values
    ]
    values, zero = multiples(low, high, step(low, high, TICKS)), 1e-12 * (high - low)
    ticks = [(across(t), number(t, zero, line.digits)) for t in values]
    return Drawn(marks, [across(cut) for cut in line.cuts], ticks, LANE * (lanes + 1))


def text(line: NumberLine, width: int) -> Styled:
    """Write the values on one line of text, as wide as they reach: digits are classes."""
    low, high = _ends(line)
    ends = [number(v, digits=line.digits) for v in (low, high)]
    room = max(8, width - len(ends[0]) - len(ends[1]) - 2)

    def cell(value: float) -> int:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(share * (room - 1))

    owners: dict[int, set[int]] = {}
    for k, values in enumerate(line.classes):
        for value in values:
            owners.setdefault(cell(value), set()).add(k)
    cuts = {cell(t) for t in line.cuts}
    styled = Styled(ends[0] + " ", "dim")
    for i in range(room):
        classes = owners.get(i, set())
        if len(classes) == 1:
            (k,) = classes
            styled.append(SIGNS[k], f"not dim bold {COLOURS[k % len(COLOURS)]}")
        elif classes:
            styled.append("*", "not dim bold red")
        else:
            styled.append("|" if i in cuts else "-", "not dim" if i in cuts else "")
    return styled.append(" " + ends[1])


def _ends(line: NumberLine) -> tuple[float, float]:
    values = [v for values in line.classes for v in values if math.isfinite(v)]
    return min(values), max(values)
