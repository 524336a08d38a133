"""Chinese pages: lines are joined without the space of a line's end, and the language is named."""

import re
from typing import Any

from sphinx.application import Sphinx

HAN = r"[\u3001-\u303f\u4e00-\u9fff\uff01-\uff65“”]"
FENCE = re.compile(r"(^```.*?^```$|^<!--.*?-->$)", re.DOTALL | re.MULTILINE)
END = re.compile(rf"(?<={HAN})\n *(?={HAN})")


def join(app: Sphinx, docname: str, source: list[str]) -> None:
    """Join the lines of paragraphs; code stays as it is."""
    parts = FENCE.split(source[0])
    parts[::2] = [END.sub("", part) for part in parts[::2]]
    source[0] = "".join(parts)


def name_language(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Say it in the page, for screen readers and the choice of fonts."""
    if page.startswith("zh/"):
        context["language"] = "zh-CN"


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("source-read", join)
    app.connect("html-page-context", name_language)
    return {"parallel_read_safe": True}
