"""What all charts share: a Vega-Lite specification as a plain dict, and the table of its numbers.

Texts in a specification stay in both languages; the page puts in the one that is read. Colours
are names from the style sheet, so that light, dark and paper need no second drawing.
"""

from collections.abc import Sequence
from typing import Any

from normscope.report.bilingual import Text
from normscope.report.document import Chart as Chart
from normscope.report.document import Spec as Spec

DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 2])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")

# as in the style sheet: widths are measured with it before anything is drawn
FONT = (
    'ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", '
    '"PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif'
)

# the look that all charts share; colours resolve in the page
CONFIG: Spec = {
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--quiet)",
        "titleColor": "var(--quiet)",
        "titleFontWeight": "normal",
        "titleFontSize": 12,
        "labelFontSize": 11.5,
        "gridColor": "var(--rule)",
        "domainColor": "var(--rule)",
        "tickColor": "var(--rule)",
        "tickCount": 5,
    },
    "legend": {
        "orient": "top",
        "title": None,
        "labelColor": "var(--ink)",
        "labelFontSize": 12.5,
        "symbolStrokeWidth": 2.5,
        "symbolSize": 90,
        "labelLimit": 260,
        "offset": 6,
        "columnPadding": 18,
    },
    "line": {"strokeWidth": 2.25},
    "point": {"filled": True, "size": 42},
    "text": {"color": "var(--ink)"},
    "rule": {"color": "var(--rule)"},
}


def spec(rows: list[Spec], height: int, **parts: Any) -> Spec:
    """A specification as wide as its column, with its data in it."""
    return {
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": rows},
        **parts,
    }


def by_series(names: Sequence[str | Text], field: str = "series") -> Spec:
    """Colour and dash together, so that neither is needed alone."""
    colours = [f"var(--c{i % 8 + 1})" for i in range(len(names))]
    dashes = [DASHES[i % len(DASHES)] for i in range(len(names))]
    # as strong as the line, where a paler band lies under it
    legend: Spec = {"symbolType": "stroke", "symbolOpacity": 1}
    return {
        "color": {
            "field": field,
            "type": "nominal",
            "scale": {"domain": names, "range": colours},
            "legend": legend,
        },
        "strokeDash": {
            "field": field,
            "type": "nominal",
            "scale": {"domain": names, "range": dashes},
            "legend": legend,
        },
    }


def x_axis(field: str, title: Text | None, **more: Any) -> Spec:
    """A quantitative horizontal axis without grid lines."""
    return {"field": field, "type": "quantitative", "title": title, "axis": {"grid": False}, **more}


def y_axis(field: str, title: str | Text | None, **more: Any) -> Spec:
    """A quantitative vertical axis."""
    return {"field": field, "type": "quantitative", "title": title, **more}


PERCENT: Spec = {"axis": {"format": ".0%"}}
LOOSE: Spec = {"scale": {"zero": False, "nice": True}}
