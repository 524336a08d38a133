"""The pictures of a document as specifications for Vega-Lite outside of a page.

They are those of the page, in one language, with colours in place of names of the style sheet.
"""

import re
from functools import cache
from typing import Any

from normscope.records import plain
from normscope.report.bilingual import Text, read
from normscope.report.charts import picture_template, spec
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
            found.append({"title": read(part.title, lang), **_read(_bars(part), lang)})
    # the colours are those of a light ground, so it comes along, for notebooks that are dark
    config = {**_read(picture_template("config"), lang), "background": "#fff"}
    return [{"$schema": SCHEMA, "config": config, **picture} for picture in found]


def _bars(part: Bars) -> Spec:
    """Draw bars by their shares; a page does it by its style sheet."""
    rows = [
        {"name": bar.name, "share": share, "text": bar.text, "at": place}
        for bar in part.bars
        for place, share in enumerate(bar.shares)
    ]
    return spec("bars", rows, compared=any(len(bar.shares) > 1 for bar in part.bars))


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
