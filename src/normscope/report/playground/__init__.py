"""The live network: a small network that trains in the page.

A page has it as a part of its document, `block()`, one at most. It keeps its state in the address
under "net"; a link such as `#net=lesson_trap` opens it there, and so does, at any time,
`document.dispatchEvent(new CustomEvent("network", { detail: { lesson: "trap" } }))`.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from normscope.report.bilingual import tr
from normscope.report.document import Interactive
from normscope.report.html import asset, render
from normscope.report.messages import Lang

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


def block(first: str = "mixed") -> Interactive:
    """Make the part of a document that holds the live network, with a ready lesson to begin."""
    parts = "\n".join(asset(f"scripts/network/{name}.js") for name in SCRIPTS)
    return Interactive(
        "network_block.html.j2",
        values={"lessons": lessons()},
        data={"network": {"lessons": lessons(), "digits": digits(), "first": first}},
        # a function `network(data)` that starts it and returns what a new language needs
        scripts=(f"const network = (() => {{\n{parts}\nreturn network;\n}})();",),
        style=asset("network.css"),
        messages=("network.",),
    )


def page(lang: Lang) -> str:
    """Write the page of `playground`: the network alone."""
    part = block()
    return render("network_page.html.j2", lang, [part], tr("network.title"), **part.values)


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
