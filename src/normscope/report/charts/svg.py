"""Elements of a drawing as SVG, and where an axis has numbers."""

import math
from typing import Any

from markupsafe import Markup

from normscope.errors import shown

SHAPES = {
    "square": "M-1-1H1V1H-1z",
    "triangle-up": "M0-1.2L1.1,.8H-1.1z",
    "triangle-down": "M0,1.2L1.1-.8H-1.1z",
    "diamond": "M0-1.3L1.2,0L0,1.3L-1.2,0z",
    "cross": "M-.4-1.2H.4V-.4H1.2V.4H.4V1.2H-.4V.4H-1.2V-.4H-.4z",
}


def element(name: str, /, text: str = "", **attributes: Any) -> Markup:
    """Write one element; attributes that are "" or None are left out, texts are harmless."""
    parts = [
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), f"{v:.1f}" if isinstance(v, float) else v
        )
        for key, v in attributes.items()
        if v not in ("", None)
    ]
    inside = Markup(">{}</{}>").format(shown(text), name) if text else Markup("/>")
    return Markup("<{}{}{}").format(name, Markup("").join(parts), inside)


def picture(width: float, height: float, drawn: list[Markup]) -> Markup:
    """Put elements together to a drawing."""
    size = Markup('width="{0:.0f}" viewBox="0 0 {0:.0f} {1:.0f}"').format(width, height)
    inside = Markup("").join(drawn)
    return Markup('<svg class="still" {} aria-hidden="true">{}</svg>').format(size, inside)


def dot(
    x: float, y: float, size: float, colour: str, shape: str, *, hollow: bool = False
) -> Markup:
    """Draw a point; `size` is its area."""
    radius = math.sqrt(size / math.pi)
    look: dict[str, Any] = {"fill": colour}
    if hollow:
        look = {"fill": "none", "stroke": colour, "stroke_width": 1.5}
    if shape not in SHAPES:
        return element("circle", cx=x, cy=y, r=radius, **look)
    moved = f"translate({x:.1f},{y:.1f})scale({radius:.1f})"
    return element("path", d=SHAPES[shape], transform=moved, **look)


def line(
    x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "", wide: float = 1
) -> Markup:
    """Draw a straight line."""
    path = f"M{x1:.1f},{y1:.1f}L{x2:.1f},{y2:.1f}"
    return element("path", d=path, stroke=colour, stroke_width=wide, stroke_dasharray=dash)


def label(x: float, y: float, text: str, style: str = "tick", anchor: str = "start") -> Markup:
    """Write a text."""
    return element("text", text, x=x, y=y, class_=style, text_anchor=anchor)


def width_of(text: str) -> float:
    """Estimate how wide a label is; Chinese characters are twice as wide."""
    return sum(6.6 * (1 + (ord(c) > 0x2E7F)) for c in text)


def step(low: float, high: float, count: int = 5) -> float:
    """Choose a round distance of about so many numbers on an axis."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999) * power


def multiples(low: float, high: float, step: float) -> list[float]:
    """Return the multiples of a step from low to high."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]
