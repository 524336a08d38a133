"""Single marks of a drawing, as SVG."""

import math

from markupsafe import Markup

from normscope.errors import shown

# the colour scale of pages, in five steps
CIVIDIS = ((0, 34, 78), (66, 78, 108), (125, 124, 120), (187, 174, 109), (254, 232, 56))
SHAPES = {
    "square": "M-1-1H1V1H-1z",
    "triangle-up": "M0-1.2L1.1,.8H-1.1z",
    "triangle-down": "M0,1.2L1.1-.8H-1.1z",
    "diamond": "M0-1.3L1.2,0L0,1.3L-1.2,0z",
    "cross": "M-.4-1.2H.4V-.4H1.2V.4H.4V1.2H-.4V.4H-1.2V-.4H-.4z",
}


def svg(width: float, height: float, drawn: str) -> Markup:
    """Put marks together; what is in them is harmless already."""
    size = f'width="{width:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return Markup(f'<svg class="still" {size} aria-hidden="true">{drawn}</svg>')


def shade(share: float) -> str:
    """Return the colour of a share from 0 to 1."""
    place = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    low = min(int(place), len(CIVIDIS) - 2)
    mixed = zip(CIVIDIS[low], CIVIDIS[low + 1], strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - low)):02x}" for a, b in mixed)


def dot(x: float, y: float, size: float, colour: str, shape: str, *, hollow: bool = False) -> str:
    """Draw a point; `size` is its area."""
    radius = math.sqrt(size / math.pi)
    look = f'fill="none" stroke="{colour}" stroke-width="1.5"' if hollow else f'fill="{colour}"'
    if shape not in SHAPES:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" {look}/>'
    moved = f"translate({x:.1f},{y:.1f})scale({radius:.1f})"
    return f'<path d="{SHAPES[shape]}" transform="{moved}" {look}/>'


def line(
    x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "", wide: float = 1
) -> str:
    """Draw a straight line."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    path = f"M{x1:.1f},{y1:.1f}L{x2:.1f},{y2:.1f}"
    return f'<path d="{path}" stroke="{colour}" stroke-width="{wide}"{dashed}/>'


def text(x: float, y: float, text: str, style: str = "tick", anchor: str = "start") -> str:
    """Write a text; it cannot be markup."""
    return str(
        Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(
            f"{x:.1f}", f"{y:.1f}", style, anchor, shown(text)
        )
    )
