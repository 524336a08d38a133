"""Pictures of a part for a notebook, as images.

A notebook that came from elsewhere is not trusted: what shows it takes SVG and style sheets out of
HTML and leaves their texts behind. An image stays, and its size where it is in the tag.
"""

import base64
import re
from functools import cache
from importlib.resources import files

from markupsafe import escape

SVG = re.compile(r"<svg (?P<head>[^>]*)>(?P<drawn>.*?)</svg>", re.DOTALL)
ATTRIBUTE = re.compile(r'([\w-]+)="([^"]*)"')
# by class of the drawing; what has none is as wide as there is room
SIZES = {
    "still": "max-width:100%;height:auto",
    "bar-line": "width:20em;max-width:100%;vertical-align:middle",
}
BESIDE, ABOVE, BELOW = 8, 14, 4  # where a drawing may reach over its edges
ROOM = "display:block;width:100%;max-width:26em"
# what a reader needs of the style sheet beside pictures
INLINE = {
    '<p class="caption" hidden': "display:none",
    '<span class="bar-name"': "display:inline-block;min-width:12em",
}


def with_images(fragment: str) -> str:
    """Put an image in the place of every drawing; icons, which hold no text, stay."""
    for tag, style in INLINE.items():
        fragment = fragment.replace(tag, f'{tag} style="{style}"')
    return SVG.sub(_image, fragment)


def _image(found: re.Match[str]) -> str:
    attributes = dict(ATTRIBUTE.findall(found["head"]))
    kind = attributes.get("class", "")
    if kind == "icon":
        return found[0]
    own = {name: attributes[name] for name in ("width", "height", "viewBox") if name in attributes}
    if "viewBox" in own:
        x, y, wide, high = map(float, own["viewBox"].split())
        x, y, wide, high = x - BESIDE, y - ABOVE, wide + 2 * BESIDE, high + ABOVE + BELOW
        own |= {"viewBox": f"{x:g} {y:g} {wide:g} {high:g}"}
        own |= {"width": f"{wide:g}"} if kind == "still" else {}
    head = "".join(f' {name}="{value}"' for name, value in own.items())
    drawn = re.sub(r"\s*\n\s*", "", found["drawn"])
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg"{head}><style>{_style()}</style>{drawn}</svg>'
    )
    source = base64.b64encode(picture.encode()).decode()
    shown = {
        **{name: value for name, value in attributes.items() if name.startswith("aria-l")},
        "class": kind or "picture",
        **({"width": own["width"]} if kind == "still" else {}),
        **({"height": own["height"]} if kind == "bar-line" else {}),
        "style": SIZES.get(kind, ROOM),
        "src": f"data:image/svg+xml;base64,{source}",
    }
    written = " ".join(f'{name}="{escape(value)}"' for name, value in shown.items())
    return f'<img alt="" {written}>'


@cache
def _style() -> str:
    assets = files("normscope.report").joinpath("assets")
    names = ("picture.css", "drawing.css")
    text = "".join(assets.joinpath(name).read_text(encoding="utf-8") for name in names)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text).replace(" { ", "{").replace("; }", "}").replace(": ", ":")
