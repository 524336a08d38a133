"""A chart as a drawing that needs no script, from the same specification that a page draws.

It knows what the templates of charts use: layers of lines, points, areas, rectangles, rules,
ticks and texts on axes of numbers or names, coloured by series or by a number.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from markupsafe import Markup

from normscope.report.charts import svg
from normscope.report.charts.axis import Axis, as_text, cut
from normscope.report.document import Spec
from normscope.report.messages import Lang

WIDTH = 640
LINE = 19  # height of a line of the legend
SMALL = 12  # height of a line of an axis
RIGHT = 14  # air behind the end of the horizontal axis
CIVIDIS = ((0, 34, 78), (66, 78, 108), (125, 124, 120), (187, 174, 109), (254, 232, 56))
Row = dict[str, Any]


class _Look(NamedTuple):
    """How one series differs from others."""

    colour: str
    dash: str = ""
    shape: str = "circle"


class _Layer(NamedTuple):
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

    def range(self, channel: str) -> list[Any]:
        """Return what the scale of a channel leads to."""
        return list(self.channels.get(channel, {}).get("scale", {}).get("range", ()))

    def known(self) -> list[Row]:
        """Return the rows with a place on both axes."""
        placed = [channel for channel in ("x", "y") if channel in self.channels]
        return [row for row in self.rows if all(_known(self.value(c, row)) for c in placed)]


def drawing(chart: Spec, lang: Lang, width: int = WIDTH) -> Markup:
    """Draw a specification as SVG; colours are those of the page around it."""
    return _Drawing(chart, lang, width).svg()


class _Drawing:
    def __init__(self, chart: Spec, lang: Lang, width: int) -> None:
        self.lang, self.width, self.height = lang, width, float(chart.get("height", 200))
        self.layers = [_layer(chart, part) for part in chart.get("layer", [chart])]
        self.x, self.y = self._axis("x"), self._axis("y")
        self.looks = self._looks()

    def svg(self) -> Markup:
        x, y = self.x, self.y
        self.left = 8.0
        if y is not None and not y.hidden:
            self.left = 12 + max((svg.width_of(text) for _, text in y.texts()), default=0)
        self.right = self.width - RIGHT
        legend, lines = self._legend()
        self.top = lines * LINE + (SMALL + 6 if y is not None and y.title else 6)
        self.bottom = self.top + self.height
        if x is not None:
            x.place(self.left, self.right)
        if y is not None:
            y.place(self.bottom, self.top)
        drawn = [*legend, *self._axes()]
        for layer in self.layers:
            drawn += getattr(self, f"_{layer.mark['type']}")(layer)
        below = 0 if x is None or x.hidden else SMALL + 8 + (SMALL + 6 if x.title else 0)
        return svg.picture(self.width, self.bottom + below, drawn)

    def _axis(self, name: str) -> Axis | None:
        used = [la for la in self.layers if "value" not in la.channels.get(name, {"value": 0})]
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
        return Axis(values, about, self.lang) if used else None

    def _looks(self) -> dict[Any, _Look]:
        """Give each series its colour, dash and shape, in the order of the legend."""
        found: dict[Any, _Look] = {}
        for layer in self.layers:
            about = layer.channels.get("color", {})
            if "field" not in about or about.get("type") == "quantitative":
                continue
            scale = about.get("scale") or {}
            names = scale.get("domain") or list(dict.fromkeys(layer.values("color")))
            colours = scale.get("range") or [f"var(--c{k % 8 + 1})" for k in range(len(names))]
            dashes = layer.range("strokeDash") or [[1, 0]] * len(names)
            shapes = layer.range("shape") or ["circle"] * len(names)
            for name, *look in zip(names, colours, map(_dash, dashes), shapes, strict=True):
                if name not in found or (look[1] and not found[name].dash):
                    found[name] = _Look(*look)
        return found

    def _legend(self) -> tuple[list[Markup], int]:
        coloured = [layer for layer in self.layers if "color" in layer.channels]
        named = [la for la in coloured if la.channels["color"].get("legend", {}) is not None]
        if not self.looks or not named:
            return [], 0
        drawn, at, row = list[Markup](), self.left, 0
        lines = any(layer.mark["type"] in ("line", "area") for layer in named)
        for name, look in self.looks.items():
            text = as_text(name, self.lang)
            wide = 34 + svg.width_of(text)
            if at + wide > self.width and at > self.left:
                at, row = self.left, row + 1
            y = row * LINE + 10
            if lines:
                drawn.append(svg.line(at, y, at + 20, y, look.colour, look.dash, 2.5))
            else:
                drawn.append(svg.dot(at + 10, y, 60, look.colour, look.shape))
            drawn.append(svg.label(at + 26, y + 4, text))
            at += wide + 12
        return drawn, row + 1

    def _axes(self) -> Iterator[Markup]:
        x, y = self.x, self.y
        if y is not None and not y.hidden:
            if y.title:
                yield svg.label(0, self.top - 8, y.title, "tick quiet")
            for at, text in y.ticks(SMALL + 2, vertical=True):
                yield svg.line(self.left, at, self.right, at, "var(--rule)")
                yield svg.label(self.left - 6, at + 4, text, "tick", "end")
        if x is not None and not x.hidden:
            yield svg.line(self.left, self.bottom, self.right, self.bottom, "var(--rule)")
            for at, text in x.ticks(8):
                yield svg.label(at, self.bottom + SMALL + 4, text, "tick", "middle")
            if x.title:
                middle, base = (self.left + self.right) / 2, self.bottom + 2 * SMALL + 10
                yield svg.label(middle, base, x.title, "tick quiet", "middle")

    # --- marks: each draws a layer ---

    def _line(self, layer: _Layer) -> Iterator[Markup]:
        dots = layer.mark.get("point")
        for rows in self._series(layer):
            points = [(self._at("x", layer, row), self._at("y", layer, row)) for row in rows]
            look = self._look(layer, rows[0])
            yield svg.element(
                "path",
                d="M" + _path(points),
                fill="none",
                stroke=look.colour,
                stroke_width=layer.mark.get("strokeWidth", 2.25),
                stroke_dasharray=look.dash or _dash(layer.mark.get("strokeDash", ())),
            )
            if dots:
                size = dots.get("size", 42) if isinstance(dots, dict) else 42
                yield from (svg.dot(x, y, size, look.colour, "circle") for x, y in points)

    def _area(self, layer: _Layer) -> Iterator[Markup]:
        y = self.y
        assert y is not None, "an area stands on numbers"
        floor = y.at(0) if y.low <= 0 <= y.high else self.bottom
        for rows in self._series(layer):
            high = [(self._at("x", layer, row), self._at("y", layer, row)) for row in rows]
            low = [
                (x, self._at("y2", layer, row) if "y2" in layer.channels else floor)
                for (x, _), row in zip(high, rows, strict=True)
            ]
            yield svg.element(
                "path",
                d=f"M{_path([*high, *reversed(low)])}z",
                fill=self._look(layer, rows[0]).colour,
                fill_opacity=str(layer.mark.get("opacity", 0.3)),
            )

    def _point(self, layer: _Layer) -> Iterator[Markup]:
        beside = list(dict.fromkeys(layer.values("xOffset")))
        for row in layer.known():
            look, x = self._look(layer, row), self._at("x", layer, row)
            if beside and self.x is not None:  # points of several series in the band of a name
                place = (beside.index(layer.value("xOffset", row)) + 0.5) / len(beside) - 0.5
                x += self.x.band * 0.7 * place
            size, hollow = layer.mark.get("size", 42), layer.mark.get("filled") is False
            y = self._at("y", layer, row)
            yield svg.dot(x, y, size, look.colour, look.shape, hollow=hollow)

    def _rect(self, layer: _Layer) -> Iterator[Markup]:
        about = layer.channels.get("opacity")
        for row in layer.rows:
            (x, wide), (y, high) = (self._span(name, layer, row) for name in ("x", "y"))
            faded = ""
            if about is not None:
                least, most = about["scale"]["range"]
                faded = f"{least + (most - least) * layer.value('opacity', row):.2f}"
            colour = self._look(layer, row).colour
            size: Row = {"x": x, "y": y, "width": wide, "height": high}
            yield svg.element("rect", **size, fill=colour, fill_opacity=faded)

    def _rule(self, layer: _Layer) -> Iterator[Markup]:
        dash, wide = _dash(layer.mark.get("strokeDash", ())), layer.mark.get("strokeWidth", 1)
        for row in layer.rows:
            ends = {"x": (self.left, self.right), "y": (self.top, self.bottom)}
            for name in [name for name in ends if name in layer.channels]:
                first = self._at(name, layer, row)
                second = f"{name}2"
                last = self._at(second, layer, row) if second in layer.channels else first
                ends[name] = first, last
            (x1, x2), (y1, y2) = ends["x"], ends["y"]
            look = self._look(layer, row, "var(--rule)")
            yield svg.line(x1, y1, x2, y2, look.colour, look.dash or dash, wide)

    def _tick(self, layer: _Layer) -> Iterator[Markup]:
        half, wide = layer.mark.get("size", 15) / 2, layer.mark.get("thickness", 2)
        for row in layer.rows:
            x, y = self._at("x", layer, row), self._at("y", layer, row)
            yield svg.line(x, y - half, x, y + half, self._look(layer, row).colour, "", wide)

    def _text(self, layer: _Layer) -> Iterator[Markup]:
        mark = layer.mark
        anchor = {"left": "start", "right": "end"}.get(mark.get("align", ""), "middle")
        room = self.width / max(1, len(layer.rows)) if anchor == "start" else self.width
        for row in layer.rows:
            x = self._at("x", layer, row) + mark.get("dx", 0)
            y = self._at("y", layer, row) + mark.get("dy", 0)
            y += 10 if mark.get("baseline") == "top" else 0
            text = as_text(layer.value("text", row), self.lang)
            if svg.width_of(text) > room:
                text = cut(text, max(2, int(room / 7)))
            yield svg.label(x, y, text, "tick", anchor)

    # --- what marks share ---

    def _series(self, layer: _Layer) -> list[list[Row]]:
        groups: dict[Any, list[Row]] = {}
        for row in layer.known():
            key = (layer.value("color", row), layer.value("detail", row))
            groups.setdefault(key, []).append(row)
        return list(groups.values())

    def _look(self, layer: _Layer, row: Row, plain: str = "var(--c1)") -> _Look:
        about = layer.channels.get("color", {})
        if "field" not in about:
            return _Look(layer.mark.get("color", plain))
        value = layer.value("color", row)
        if about.get("type") == "quantitative":
            low, high = about["scale"]["domain"]
            return _Look(_shade((value - low) / (high - low)))
        return self.looks.get(value, _Look(plain))

    def _at(self, channel: str, layer: _Layer, row: Row) -> float:
        about = layer.channels[channel]
        if "value" in about:  # in units of the drawing
            return float(about["value"]) + (self.top if channel[0] == "y" else self.left)
        axis = self.x if channel[0] == "x" else self.y
        assert axis is not None, "the channel has an axis"
        return axis.at(layer.value(channel, row))

    def _span(self, channel: str, layer: _Layer, row: Row) -> tuple[float, float]:
        axis = self.x if channel == "x" else self.y
        if axis is not None and axis.names:
            start = axis.at(layer.value(channel, row)) - axis.band / 2
            return start, max(0.5, axis.band - 0.6)
        ends = self._at(channel, layer, row), self._at(f"{channel}2", layer, row)
        return min(ends), abs(ends[1] - ends[0])


def _layer(chart: Spec, part: Spec) -> _Layer:
    mark = part["mark"]
    data: Spec = part.get("data") or chart.get("data") or {}
    channels = {**chart.get("encoding", {}), **part.get("encoding", {})}
    named = {"type": mark} if isinstance(mark, str) else mark
    return _Layer(named, data.get("values", []), channels)


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _path(points: list[tuple[float, float]]) -> str:
    return "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _dash(lengths: Any) -> str:
    return "" if lengths == [1, 0] else " ".join(map(str, lengths))


def _shade(share: float) -> str:
    """Return the colour of a share from 0 to 1 on the colour scale of pages."""
    place = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    low = min(int(place), len(CIVIDIS) - 2)
    mixed = zip(CIVIDIS[low], CIVIDIS[low + 1], strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - low)):02x}" for a, b in mixed)
