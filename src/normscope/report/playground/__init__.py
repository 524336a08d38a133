"""The live network: a small network that trains in the page.

To have it in another page, give `Network()` to the template as `part` and to the page's builder,
which puts `part.script` before the page's own last script, `part.style` after the page's style,
`part.data` at "network" in the page's data and `part.messages` among its messages:

    {% from "network.html.j2" import network with context %}
    {{ network(part, level=2) }}

The page has one at most. It keeps its state in the address under "net"; a link such as
`#net=lesson_trap` opens it there, and so does, at any time,
`document.dispatchEvent(new CustomEvent("network", { detail: { lesson: "trap" } }))`.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from normscope.report.messages import catalogue

# in this order one script of a scope of its own: each file uses only what stands before it
SCRIPTS = (
    "random",
    "engine",
    "data",
    "experiment",
    "lessons",
    "picture",
    "surface",
    "units",
    "curves",
    "editing",
    "controls",
    "words",
    "network",
)
IMAGES = 30  # digits of each class


class Network:
    """What a page needs to hold the live network."""

    @property
    def lessons(self) -> list[dict[str, Any]]:
        """The ready lessons: setting, steps, claims, and what was measured over 20 seeds."""
        return lessons()

    @property
    def script(self) -> str:
        """A function `network(data)` that starts it and returns what a new language needs."""
        parts = "\n".join(_asset(f"scripts/network/{name}.js") for name in SCRIPTS)
        return f"const network = (() => {{\n{parts}\nreturn network;\n}})();"

    @property
    def style(self) -> str:
        """Its style sheet."""
        return _asset("network.css")

    @property
    def data(self) -> dict[str, Any]:
        """Its lessons and the digits."""
        return {"lessons": lessons(), "digits": digits()}

    @property
    def messages(self) -> dict[str, dict[str, str]]:
        """Its sentences, by key."""
        return {k: v for k, v in catalogue().items() if k.startswith("network.")}


@cache
def lessons() -> list[dict[str, Any]]:
    """Read the ready lessons and their claims."""
    text = files(__name__).joinpath("lessons.json").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text)
    return found


@cache
def digits() -> dict[str, str]:
    """Pack images of scikit-learn's digits: a character per pixel (0-9, a-g), a row per image."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    taken = sorted(i for k in range(10) for i in (labels == k).nonzero()[0][:IMAGES])
    scale = "0123456789abcdefg"
    pixels = "".join(scale[round(v)] for i in taken for v in images[i])
    return {"pixels": pixels, "labels": "".join(str(labels[i]) for i in taken)}


def _asset(name: str) -> str:
    return files("normscope.report").joinpath("assets", name).read_text(encoding="utf-8")
