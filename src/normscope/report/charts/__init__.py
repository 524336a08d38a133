"""Pictures: Vega-Lite templates filled with numbers, and drawings that need no script.

The templates are `assets/charts/NAME.json`, as Vega-Lite reads them, with these additions: "$KEY"
is the message of that key, "@NAME" a value that Python passes, `"series": STYLE` among the
encodings is the colour of each series together with its dash or shape. A layer or an encoding
with `"when"` is left out where that is false. Texts stay in both languages; the page puts in the
one that is read. Colours are names from the style sheet, so that light, dark and paper need no
second drawing.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

from normscope.report.bilingual import Words, tr
from normscope.report.document import Spec, Table, table
from normscope.report.format import number

Item = TypeVar("Item")

DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 2])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
SIZED: Spec = {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
# as strong as the line, where a paler band lies under it
STROKE: Spec = {"symbolType": "stroke", "symbolOpacity": 1}
# the legend of each style, and what tells the series apart beside their colour
STYLES: dict[str, tuple[Spec | None, str, Sequence[Any]]] = {
    "lines": (STROKE, "strokeDash", DASHES),
    "points": ({}, "shape", SHAPES),
    "areas": (STROKE, "", ()),
    "circles": ({"symbolType": "circle", "symbolOpacity": 1}, "", ()),
    "unnamed": (None, "", ()),
    "unnamed lines": (None, "strokeDash", DASHES),
    "unnamed points": (None, "shape", SHAPES),
}


def spec(name: str, rows: list[Spec], names: Sequence[Words] = (), **values: Any) -> Spec:
    """Fill a template: its rows, the names of its series, and the values that it asks for."""
    filled = _filled(picture_template(name), {"names": names, **values})
    return {**SIZED, "data": {"values": rows}, **filled}


@cache
def picture_template(name: str) -> Spec:
    """Read a template as it is."""
    text = files("normscope.report").joinpath("assets/charts", f"{name}.json").read_text("utf-8")
    found: Spec = json.loads(text)
    return found


def _filled(part: Any, values: dict[str, Any]) -> Any:
    if isinstance(part, str) and part[:1] in ("$", "@"):
        return tr(part[1:]) if part[0] == "$" else values[part[1:]]
    if isinstance(part, list):
        return list(filter(_wanted, (_filled(item, values) for item in part)))
    if isinstance(part, dict):
        filled = {key: _filled(item, values) for key, item in part.items()}
        filled = {key: item for key, item in filled.items() if _wanted(item)}
        style = filled.pop("series", None)
        return filled if style is None else {**filled, **_series(values["names"], style)}
    return part


def _wanted(part: Any) -> bool:
    """Return whether a part stays, without what says so."""
    return not isinstance(part, dict) or bool(part.pop("when", True))


def _series(names: Sequence[Words], style: str) -> Spec:
    """Tell series apart by colour and by one more sign, so that neither is needed alone."""
    legend, sign, kinds = STYLES[style]
    field: Spec = {"field": "series", "type": "nominal"}
    colours = [f"var(--c{i % 8 + 1})" for i in range(len(names))]
    found = {"color": {**field, "scale": {"domain": names, "range": colours}, "legend": legend}}
    if sign:
        signs = [kinds[i % len(kinds)] for i in range(len(names))]
        found[sign] = {**field, "scale": {"domain": names, "range": signs}}
        if sign == "strokeDash":
            found[sign]["legend"] = legend
    return found


def by_series(
    chart: str,
    rows: Sequence[Spec],
    names: Sequence[str],
    place: str,
    value: str,
    show: Callable[[Any], Words],
) -> Table:
    """Make a table of the rows of a chart: a row for some of the places, a column a series.

    Its caption is the message page.CHART.table, the first head page.head.PLACE.
    """
    found = {(row[place], row["series"]): row[value] for row in rows}
    places = thinned(sorted({row[place] for row in rows}))
    body = [[number(at), *(show(found.get((at, name))) for name in names)] for at in places]
    return table(tr(f"page.{chart}.table"), [tr(f"page.head.{place}"), *names], body)


def thinned(items: list[Item], most: int = 13) -> list[Item]:
    """Take at most `most` of the items, evenly spread, with the first and the last."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
