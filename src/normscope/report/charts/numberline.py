"""Values of several classes on one line, as text and as a small drawing."""

import math

from markupsafe import Markup
from rich.text import Text as Styled

from normscope.report.charts import spec
from normscope.report.charts.still import drawing
from normscope.report.document import NumberLine
from normscope.report.format import number

SIGNS = "123456789abcdefghijklmnopqrstuvwxyz"  # one sign per class on a line of text
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
WIDTH, LANE = 324, 11  # of a drawing, in its units
MOST = 8  # classes with a lane of their own


def drawn(line: NumberLine) -> Markup:
    """Draw the values, a lane for each class."""
    low, high = _ends(line)
    room = 0.06 * (high - low) or 1.0
    lanes = min(len(line.classes), MOST)
    values = enumerate(line.classes)
    rows = [{"x": v, "lane": k % lanes, "series": str(k)} for k, own in values for v in own]
    picture = spec(
        "number_line",
        rows,
        [str(k) for k in range(len(line.classes))],
        cuts=[{"x": cut} for cut in line.cuts],
        height=LANE * (lanes + 1),
        domain=[low - room, high + room],
        lanes=[-0.7, lanes + 0.3],
    )
    return drawing(picture, "en", WIDTH)


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
