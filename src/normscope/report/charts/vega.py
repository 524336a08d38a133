"""The pictures of a document as specifications for Vega-Lite outside of a page.

They are those of the page, in one language, with colours in place of names of the style sheet.
"""

import re
from functools import cache
from typing import Any

from normscope.records import plain
from normscope.report.bilingual import Text, read
from normscope.report.charts import picture_template
from normscope.report.document import Bars, Chart, Document, Spec, parts
from normscope.report.html import asset
from normscope.report.messages import Lang

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
WIDTH = 560
NAME = re.compile(r"var\(--([\w-]+)\)")
COLOUR = re.compile(r"--([\w-]+): (?:light-dark\()?(#\w+)")  # on a light ground


def specifications(document: Document, lang: Lang) -> list[Spec]:
    """Return a specification of every chart and of all bars."""
    found = []
    for part in parts(document):
        if isinstance(part, Chart):
            found.append({"title": read(part.title, lang), **_read(part.spec, lang)})
        elif isinstance(part, Bars) and part.bars:
            found.append({"title": read(part.title, lang), **_bars(part, lang)})
    # the colours are those of a light ground, so it comes along, for notebooks that are dark
    config = {**_read(picture_template("config"), lang), "background": "#fff"}
    return [{"$schema": SCHEMA, "config": config, **spec} for spec in found]


def _bars(part: Bars, lang: Lang) -> Spec:
    rows = [
        {"name": read(bar.name, lang), "share": share, "text": read(bar.text, lang), "at": place}
        for bar in part.bars
        for place, share in enumerate(bar.shares)
    ]
    y: Spec = {"field": "name", "type": "nominal", "sort": None, "title": None}
    encoding: Spec = {
        "y": y,
        "x": {"field": "share", "type": "quantitative", "title": None, "scale": {"domain": [0, 1]}},
        "tooltip": [{"field": "name"}, {"field": "text"}],
    }
    if any(len(bar.shares) > 1 for bar in part.bars):
        encoding["yOffset"] = {"field": "at", "type": "ordinal"}
        encoding["color"] = {"field": "at", "type": "ordinal", "legend": None}
    return {"width": WIDTH, "data": {"values": rows}, "mark": "bar", "encoding": encoding}


def _read(value: Any, lang: Lang) -> Any:
    """Read every text in one language, and every colour."""
    if isinstance(value, Text):
        return value.read(lang)
    if isinstance(value, dict):
        read_ = {key: _read(item, lang) for key, item in value.items()}
        if read_.get("width") == "container":
            read_["width"] = WIDTH
        return read_
    if isinstance(value, (list, tuple)):
        return [_read(item, lang) for item in value]
    if isinstance(value, str):
        return NAME.sub(lambda name: _colours()[name[1]], value)
    return plain(value)


@cache
def _colours() -> dict[str, str]:
    """Read the colours of the style sheet."""
    return dict(COLOUR.findall(asset("page.css")))
