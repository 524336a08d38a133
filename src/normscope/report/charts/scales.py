"""Where a value stands in a drawing, and the marks and numbers of its axis."""

import math
import re
from collections.abc import Sequence
from typing import Any

from normscope.report.bilingual import Text
from normscope.report.document import Spec
from normscope.report.messages import Lang

TICKS = 5
CHARACTER = 6.6  # width of a letter of the axis, in units of the drawing
LISTED = re.compile(r"^\[(.*)\]\[datum\.value\]$")  # names of the values 0, 1, ...


def spoken(value: Any, lang: Lang) -> str:
    """Read a value of a specification as a text."""
    if isinstance(value, Text):
        return value.read(lang)
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def width_of(text: str) -> float:
    """Estimate how wide a text is; Chinese characters are twice as wide."""
    return sum(CHARACTER * (1 + (ord(c) > 0x2E7F)) for c in text)


class Scale:
    """One axis of numbers, linear or logarithmic."""

    band = 0.0

    def __init__(self, values: Sequence[float], about: Spec, lang: Lang) -> None:
        scale: Spec = about.get("scale") or {}
        self.axis: Spec | None = about.get("axis", {})
        self.title, self.lang = spoken(about.get("title"), lang), lang
        self.log = scale.get("type") == "log"
        known = [v for v in values if math.isfinite(v) and (v > 0 or not self.log)]
        low, high = min(known, default=1.0 if self.log else 0.0), max(known, default=1.0)
        if "domain" in scale:
            low, high = scale["domain"]
        elif scale.get("zero", not self.log) and not {"domainMin", "domainMax"} & set(scale):
            low, high = min(low, 0.0), max(high, 0.0)
        low, high = float(scale.get("domainMin", low)), float(scale.get("domainMax", high))
        if not high > low:
            low, high = (low / 2, high * 2) if self.log else (low - 0.5, high + 0.5)
        if "domain" not in scale and scale.get("nice", True) and not self.log:
            step = _step(low, high)
            low = float(scale.get("domainMin", step * math.floor(low / step + 1e-9)))
            high = float(scale.get("domainMax", step * math.ceil(high / step - 1e-9)))
        if self.log and scale.get("nice", True) and "domain" not in scale:
            low, high = (
                max(v for v in _rounds(low) if v <= low),
                min(v for v in _rounds(high) if v >= high),
            )
        self.low, self.high = low, high
        self.ends = (1.0, 0.0) if scale.get("reverse") else (0.0, 1.0)

    def place(self, start: float, end: float) -> None:
        """Set where the axis begins and ends in the drawing."""
        first, last = self.ends
        self.start, self.end = start + first * (end - start), start + last * (end - start)

    def at(self, value: float) -> float:
        """Return where a value stands."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = (math.log10(max(v, 1e-300)) for v in (value, low, high))
        share: float = min(max((value - low) / (high - low), -0.02), 1.02)
        return self.start + share * (self.end - self.start)

    def marks(self) -> list[tuple[float, str]]:
        """Return the places and texts of the marks of the axis."""
        axis = self.axis or {}
        if "values" in axis:
            values = [v for v in axis["values"] if self.low <= v <= self.high]
        elif self.log:
            values = _rounds(self.low) if self.high < 100 * self.low else []
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            values = sorted({*values, *_rounds(self.high)} if values else {10.0**p for p in powers})
            values = [v for v in values if self.low <= v <= self.high]
        else:
            step = max(_step(self.low, self.high), axis.get("tickMinStep", 0))
            first = math.ceil(self.low / step - 1e-9)
            values = [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        named = LISTED.match(axis.get("labelExpr", ""))
        names = re.findall(r"'([^']*)'", named[1]) if named else []
        return [
            (self.at(v), names[int(v)] if named else formatted(v, axis.get("format", "")))
            for v in values
        ]


class Bands:
    """One axis of names, each with a band of the same width."""

    def __init__(self, values: Sequence[Any], about: Spec, lang: Lang) -> None:
        self.axis: Spec | None = about.get("axis", {})
        self.title, self.lang = spoken(about.get("title"), lang), lang
        seen = list(dict.fromkeys(values))
        order = about.get("sort") or (seen if about["type"] == "nominal" else sorted(seen))
        self.names = [v for v in order if v in seen]
        self.places = {name: place for place, name in enumerate(self.names)}

    def place(self, start: float, end: float) -> None:
        """Set where the axis begins and ends in the drawing."""
        self.start, self.end = min(start, end), max(start, end)
        self.band = (self.end - self.start) / max(1, len(self.names))

    def at(self, value: Any) -> float:
        """Return the middle of the band of a name."""
        return self.start + self.band * (self.places[value] + 0.5)

    def marks(self) -> list[tuple[float, str]]:
        """Return the middle of every band with its name."""
        if (self.axis or {}).get("labels") is False:
            return []
        return [(self.at(name), _cut(spoken(name, self.lang))) for name in self.names]


def formatted(value: float, pattern: str) -> str:
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


def _step(low: float, high: float) -> float:
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999) * power


def _cut(text: str) -> str:
    return text if len(text) <= 30 else f"{text[:29]}…"
