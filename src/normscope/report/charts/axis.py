"""Where a value stands in a drawing, and the numbers or names beside its axis."""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from normscope.report.bilingual import Text
from normscope.report.charts.svg import multiples, step, width_of
from normscope.report.document import Spec
from normscope.report.messages import Lang

LISTED = re.compile(r"^\[(.*)\]\[datum\.value\]$")  # names of the values 0, 1, ...
LONGEST = 30  # characters of a name
Tick = tuple[float, str]


class Axis:
    """One axis, linear or logarithmic; names are the numbers 0, 1, ... of a linear one."""

    def __init__(self, values: Sequence[Any], about: Spec, lang: Lang) -> None:
        self.axis: Spec = about.get("axis") or {}
        self.hidden = about.get("axis", {}) is None
        self.title, self.lang = as_text(about.get("title"), lang), lang
        self.scale: Spec = about.get("scale") or {}
        self.log = self.scale.get("type") == "log"
        self.names: list[Any] = []
        if about.get("type") == "quantitative":
            numbers = [v for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
            self.low, self.high = self._ends([v for v in numbers if v > 0 or not self.log])
        else:
            seen = list(dict.fromkeys(values))
            order = about.get("sort") or (sorted(seen) if about.get("type") == "ordinal" else seen)
            self.names = [name for name in order if name in seen]
            self.low, self.high = -0.5, len(self.names) - 0.5

    def _ends(self, known: list[float]) -> tuple[float, float]:
        """Find the first and the last number, round ones where the scale is to be nice."""
        scale, nice = self.scale, self.scale.get("nice", True) and "domain" not in self.scale
        low, high = min(known, default=1.0 if self.log else 0.0), max(known, default=1.0)
        if "domain" in scale:
            low, high = scale["domain"]
        elif scale.get("zero", not self.log) and not {"domainMin", "domainMax"} & set(scale):
            low, high = min(low, 0.0), max(high, 0.0)
        low, high = float(scale.get("domainMin", low)), float(scale.get("domainMax", high))
        if not high > low:
            low, high = (low / 2, high * 2) if self.log else (low - 0.5, high + 0.5)
        if nice and self.log:
            low = max(v for v in _rounds(low) if v <= low)
            high = min(v for v in _rounds(high) if v >= high)
        elif nice:
            by = step(low, high)
            low = float(scale.get("domainMin", by * math.floor(low / by + 1e-9)))
            high = float(scale.get("domainMax", by * math.ceil(high / by - 1e-9)))
        return low, high

    def place(self, start: float, end: float) -> None:
        """Set where the axis begins and ends in the drawing; names go down or to the right."""
        turned = self.scale.get("reverse") or (self.names and start > end)
        self.start, self.end = (end, start) if turned else (start, end)
        self.band = abs(end - start) / max(1, len(self.names))

    def at(self, value: Any) -> float:
        """Return where a value stands."""
        low, high = self.low, self.high
        value = self.names.index(value) if self.names else value
        if self.log:
            value, low, high = (math.log10(max(v, 1e-300)) for v in (value, low, high))
        share: float = min(max((value - low) / (high - low), -0.02), 1.02)
        return self.start + share * (self.end - self.start)

    def texts(self) -> list[tuple[Any, str]]:
        """Return the values that the axis names, and how."""
        if self.names:
            found = [(name, as_text(name, self.lang)) for name in self.names]
            return (
                [] if self.axis.get("labels") is False else [(n, cut(t, LONGEST)) for n, t in found]
            )
        named = LISTED.match(self.axis.get("labelExpr", ""))
        names = re.findall(r"'([^']*)'", named[1]) if named else []
        values = [v for v in self._values() if self.low <= v <= self.high]
        return [
            (v, names[int(v)] if names else _formatted(v, self.axis.get("format", "")))
            for v in values
        ]

    def _values(self) -> Sequence[float]:
        if "values" in self.axis:
            found: Sequence[float] = self.axis["values"]
            return found
        if not self.log:
            by = max(step(self.low, self.high), self.axis.get("tickMinStep", 0))
            return multiples(self.low, self.high, by)
        if self.high < 100 * self.low:
            return sorted({*_rounds(self.low), *_rounds(self.high)})
        ends = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        return [10.0**power for power in range(ends[0], ends[1] + 1)]

    def ticks(self, air: float, *, vertical: bool = False) -> list[Tick]:
        """Return the places and texts of the axis, evenly as many as do not overlap."""
        found = [(self.at(value), text) for value, text in self.texts()]

        def fits(first: Tick, second: Tick) -> bool:
            need = 0 if vertical else (width_of(first[1]) + width_of(second[1])) / 2
            return abs(second[0] - first[0]) >= air + need

        thinned = (found[::every] for every in range(1, len(found) + 1))
        return next((t for t in thinned if all(fits(*pair) for pair in pairwise(t))), [])


def as_text(value: Any, lang: Lang) -> str:
    """Read a value of a specification as a text."""
    if isinstance(value, Text):
        return value.read(lang)
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def cut(text: str, most: int) -> str:
    """Cut a text that is longer."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _formatted(value: float, pattern: str) -> str:
    """Write a number as the format of an axis says, as far as charts use it."""
    if pattern.endswith("%"):
        digits = re.search(r"\.(\d)", pattern)
        text = f"{100 * value:.{digits[1] if digits else 0}f}"
        return (text.rstrip("0").rstrip(".") if "~" in pattern and "." in text else text) + "%"
    if pattern.endswith("e"):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}".replace("-", "−")


def _rounds(value: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten around a number."""
    power = math.floor(math.log10(value))
    return [m * 10.0**p for p in (power - 1, power, power + 1) for m in (1, 2, 5)]
