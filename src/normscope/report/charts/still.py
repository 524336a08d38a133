"""A chart as a drawing that needs no script, from the same specification that a page draws.

It knows what the charts of this package use: layers of lines, points, areas, rectangles, rules,
ticks and texts on axes of numbers or names, coloured by series or by a number.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from normscope.report.charts import marks
from normscope.report.charts.scales import Bands, Scale, spoken, width_of
from normscope.report.document import Spec
from normscope.report.messages import Lang

WIDTH = 640
LINE = 19  # height of a line of the legend
SMALL = 12  # height of a line of an axis
Row = dict[str, Any]
Axis = Scale | Bands


def drawing(chart: Spec, lang: Lang, width: int = WIDTH) -> Markup:
    """Draw a specification as SVG; colours are those of the page around it."""
    return _Drawing(chart, lang, width).svg()


@dataclass
class _Layer:
    """One mark with its data and what its channels stand for."""

    mark: Spec
    rows: list[Row]
    channels: Spec

    def value(self, channel: str, row: Row) -> Any:
        """Return what a row has for a channel; None where it has nothing."""
        about = self.channels.get(channel, {})
        return about["datum"] if "datum" in about else row.get(about.get("field", ""))

    def values(self, *channels: str) -> list[Any]:
        """Return everything that the rows have for these channels."""
        found = (self.value(channel, row) for channel in channels for row in self.rows)
        return [value for value in found if value is not None]


class _Drawing:
    def __init__(self, chart: Spec, lang: Lang, width: int) -> None:
        self.lang, self.width, self.height = lang, width, float(chart.get("height", 200))
        self.layers = [_layer(chart, part) for part in chart.get("layer", [chart])]
        self.scales = {name: self._scale(name) for name in ("x", "y")}
        self.colours = self._colours()

    def svg(self) -> Markup:
        x, y = self.scales["x"], self.scales["y"]
        left = 8.0
        if y is not None and y.axis is not None:
            y.place(self.height, 0)
            left = 12 + max((width_of(text) for _, text in y.marks()), default=0)
        legend, rows = self._legend(left)
        top = rows * LINE + (SMALL + 6 if y is not None and y.title else 6)
        if x is not None:
            x.place(left, self.width - 14)
        if y is not None:
            y.place(top + self.height, top)
        self.left, self.top, self.bottom = left, top, top + self.height
        drawn = "".join(self._axes()) + "".join(map(self._layer, self.layers))
        below = 0 if x is None or x.axis is None else SMALL + 8 + (SMALL + 6 if x.title else 0)
        return marks.svg(self.width, self.bottom + below, legend + drawn)

    def _scale(self, name: str) -> Axis | None:
        used = [layer for layer in self.layers if name in layer.channels]
        used = [layer for layer in used if "value" not in layer.channels[name]]
        if not used:
            return None
        about: Spec = {}
        for layer in reversed(used):  # the first layer decides; the others add
            given = layer.channels[name]
            both = {
                part: {**(about.get(part) or {}), **(given.get(part) or {})}
                for part in ("scale", "axis")
                if part in about or part in given
            }
            hidden = {"axis": None} if given.get("axis", {}) is None else {}
            about = {**about, **given, **both, **hidden}
        values = [v for layer in used for v in layer.values(name, f"{name}2")]
        if about.get("type") == "quantitative":
            return Scale([v for v in values if isinstance(v, (int, float))], about, self.lang)
        return Bands(values, {"type": "nominal", **about}, self.lang)

    def _colours(self) -> dict[Any, tuple[str, str, str]]:
        """Give each series its colour, dash and shape, in the order of the legend."""
        found: dict[Any, tuple[str, str, str]] = {}
        for layer in self.layers:
            about = layer.channels.get("color", {})
            if "field" not in about or about.get("type") == "quantitative":
                continue
            scale = about.get("scale") or {}
            names = scale.get("domain") or list(dict.fromkeys(layer.values("color")))
            colours = scale.get("range") or [f"var(--c{i % 8 + 1})" for i in range(len(names))]
            dashes = _range(layer, "strokeDash") or [[1, 0]] * len(names)
            shapes = _range(layer, "shape") or ["circle"] * len(names)
            for name, colour, dash, shape in zip(names, colours, dashes, shapes, strict=False):
                line = "" if dash == [1, 0] else " ".join(map(str, dash))
                if name not in found or (line and not found[name][1]):
                    found[name] = (colour, line, shape)
        return found

    def _legend(self, left: float) -> tuple[str, int]:
        hidden = [
            layer.channels["color"].get("legend", {}) is None
            for layer in self.layers
            if "color" in layer.channels
        ]
        if not self.colours or all(hidden):
            return "", 0
        parts, at, row = [], left, 0
        lines = any(layer.mark["type"] in ("line", "area") for layer in self.layers)
        for name, (colour, dash, shape) in self.colours.items():
            text = spoken(name, self.lang)
            wide = 34 + width_of(text)
            if at + wide > self.width and at > left:
                at, row = left, row + 1
            y = row * LINE + 10
            parts.append(
                marks.line(at, y, at + 20, y, colour, dash, 2.5)
                if lines
                else marks.dot(at + 10, y, 60, colour, shape)
            )
            parts.append(marks.text(at + 26, y + 4, text))
            at += wide + 12
        return "".join(parts), row + 1

    def _axes(self) -> Iterator[str]:
        x, y = self.scales["x"], self.scales["y"]
        right = self.width - 14
        if y is not None and y.axis is not None:
            if y.title:
                yield marks.text(0, self.top - 8, y.title, "tick quiet")
            for at, text in _apart(y.marks(), SMALL + 2, vertical=True):
                yield marks.line(self.left, at, right, at, "var(--rule)")
                yield marks.text(self.left - 6, at + 4, text, "tick", "end")
        if x is not None and x.axis is not None:
            yield marks.line(self.left, self.bottom, right, self.bottom, "var(--rule)")
            for at, text in _apart(x.marks(), 8):
                yield marks.text(at, self.bottom + SMALL + 4, text, "tick", "middle")
            if x.title:
                middle = (self.left + right) / 2
                yield marks.text(
                    middle, self.bottom + 2 * SMALL + 10, x.title, "tick quiet", "middle"
                )

    def _layer(self, layer: _Layer) -> str:
        kind = layer.mark["type"]
        if kind in ("line", "area"):
            return "".join(self._path(layer, group) for group in self._series(layer))
        draw = {
            "point": self._point,
            "rect": self._rect,
            "rule": self._rule,
            "tick": self._tick,
            "text": self._label,
        }[kind]
        return "".join(draw(layer, row) for row in layer.rows)

    def _series(self, layer: _Layer) -> list[list[Row]]:
        groups: dict[Any, list[Row]] = {}
        for row in layer.rows:
            if all(_known(layer.value(channel, row)) for channel in ("x", "y")):
                key = (layer.value("color", row), layer.value("detail", row))
                groups.setdefault(key, []).append(row)
        return list(groups.values())

    def _path(self, layer: _Layer, rows: list[Row]) -> str:
        points = [(self._at("x", layer, row), self._at("y", layer, row)) for row in rows]
        colour, dash, _ = self._look(layer, rows[0])
        path = "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
        if layer.mark["type"] == "area":
            y = self.scales["y"]
            assert isinstance(y, Scale), "an area stands on numbers"
            floor = y.at(0) if y.low <= 0 <= y.high else self.bottom
            low = [
                (x, self._at("y2", layer, row) if "y2" in layer.channels else floor)
                for (x, _), row in zip(points, rows, strict=True)
            ]
            path += "".join(f"L{x:.1f},{y:.1f}" for x, y in reversed(low))
            opacity = layer.mark.get("opacity", 0.3)
            return f'<path d="M{path}z" fill="{colour}" fill-opacity="{opacity}"/>'
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        wide = layer.mark.get("strokeWidth", 2.25)
        line = f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{wide}"{dashed}/>'
        dots = layer.mark.get("point")
        if not dots:
            return line
        size = dots.get("size", 42) if isinstance(dots, dict) else 42
        return line + "".join(marks.dot(x, y, size, colour, "circle") for x, y in points)

    def _point(self, layer: _Layer, row: Row) -> str:
        if not all(_known(layer.value(channel, row)) for channel in ("x", "y")):
            return ""
        colour, _, shape = self._look(layer, row)
        x = self._at("x", layer, row) + self._offset(layer, row)
        hollow = layer.mark.get("filled") is False
        size = layer.mark.get("size", 42)
        return marks.dot(x, self._at("y", layer, row), size, colour, shape, hollow=hollow)

    def _rect(self, layer: _Layer, row: Row) -> str:
        (x, wide), (y, high) = (self._span(name, layer, row) for name in ("x", "y"))
        colour, _, _ = self._look(layer, row)
        about = layer.channels.get("opacity")
        faded = ""
        if about is not None:
            low, high_ = about["scale"]["range"]
            faded = f' fill-opacity="{low + (high_ - low) * layer.value("opacity", row):.2f}"'
        box = f'x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{high:.1f}"'
        return f'<rect {box} fill="{colour}"{faded}/>'

    def _rule(self, layer: _Layer, row: Row) -> str:
        colour, _, _ = self._look(layer, row, "var(--rule)")
        x1, x2 = float(self.left), float(self.width - 14)
        y1, y2 = float(self.top), float(self.bottom)
        if "x" in layer.channels and "x2" in layer.channels:
            x1, x2 = self._at("x", layer, row), self._at("x2", layer, row)
        elif "x" in layer.channels:
            x1 = x2 = self._at("x", layer, row)
        if "y" in layer.channels:
            y1 = y2 = self._at("y", layer, row)
        dash = " ".join(map(str, layer.mark.get("strokeDash", ())))
        return marks.line(x1, y1, x2, y2, colour, dash, layer.mark.get("strokeWidth", 1))

    def _tick(self, layer: _Layer, row: Row) -> str:
        colour, _, _ = self._look(layer, row)
        x, y = self._at("x", layer, row), self._at("y", layer, row)
        half = layer.mark.get("size", 15) / 2
        return marks.line(x, y - half, x, y + half, colour, "", layer.mark.get("thickness", 2))

    def _label(self, layer: _Layer, row: Row) -> str:
        anchor = {"left": "start", "right": "end"}.get(layer.mark.get("align", ""), "middle")
        y = self._at("y", layer, row) + layer.mark.get("dy", 0)
        y += 10 if layer.mark.get("baseline") == "top" else 0
        text = spoken(layer.value("text", row), self.lang)
        room = self.width / max(1, len(layer.rows)) if anchor == "start" else self.width
        if width_of(text) > room:
            text = text[: max(1, int(room / 7))] + "…"
        return marks.text(
            self._at("x", layer, row) + layer.mark.get("dx", 0), y, text, "tick", anchor
        )

    def _look(self, layer: _Layer, row: Row, plain: str = "var(--c1)") -> tuple[str, str, str]:
        """Return colour, dash and shape of a row."""
        about = layer.channels.get("color", {})
        if "field" not in about:
            return layer.mark.get("color", about.get("value", plain)), "", "circle"
        value = layer.value("color", row)
        if about.get("type") == "quantitative":
            low, high = about["scale"]["domain"]
            return marks.shade((value - low) / (high - low)), "", "circle"
        return self.colours.get(value, (plain, "", "circle"))

    def _at(self, channel: str, layer: _Layer, row: Row) -> float:
        about = layer.channels[channel]
        scale = self.scales[channel[0]]
        if "value" in about:  # in units of the drawing
            return float(about["value"]) + (self.top if channel[0] == "y" else self.left)
        assert scale is not None, "the channel has a scale"
        return scale.at(layer.value(channel, row))

    def _offset(self, layer: _Layer, row: Row) -> float:
        """Return how far aside a point of one series stands in the band of a name."""
        scale = self.scales["x"]
        if "xOffset" not in layer.channels or not isinstance(scale, Bands):
            return 0.0
        names = list(dict.fromkeys(layer.values("xOffset")))
        place = names.index(layer.value("xOffset", row))
        return scale.band * 0.7 * ((place + 0.5) / len(names) - 0.5)

    def _span(self, channel: str, layer: _Layer, row: Row) -> tuple[float, float]:
        scale = self.scales[channel]
        if isinstance(scale, Bands):
            return scale.at(layer.value(channel, row)) - scale.band / 2, max(0.5, scale.band - 0.6)
        ends = self._at(channel, layer, row), self._at(f"{channel}2", layer, row)
        return min(ends), abs(ends[1] - ends[0])


def _layer(chart: Spec, part: Spec) -> _Layer:
    mark = part["mark"]
    data: Spec = part.get("data") or chart.get("data") or {}
    channels = {**chart.get("encoding", {}), **part.get("encoding", {})}
    return _Layer(
        {"type": mark} if isinstance(mark, str) else mark, data.get("values", []), channels
    )


def _range(layer: _Layer, channel: str) -> list[Any]:
    about: Spec = layer.channels.get(channel, {})
    scale: Spec = about.get("scale") or {}
    return list(scale.get("range", ()))


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _apart(
    found: list[tuple[float, str]], air: float, *, vertical: bool = False
) -> list[tuple[float, str]]:
    """Leave out as many marks as overlap, evenly."""

    def fits(first: tuple[float, str], second: tuple[float, str]) -> bool:
        need = 0 if vertical else (width_of(first[1]) + width_of(second[1])) / 2
        return abs(second[0] - first[0]) >= air + need

    for every in range(1, len(found) + 1):
        kept = found[::every]
        if all(fits(*pair) for pair in pairwise(kept)):
            return kept
    return found[:1]
