"""The pages that compute in the browser, written by the program itself into the built site.

Formulas become MathML here too: browsers typeset it by themselves, so that no page loads anything.
"""

from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def write_pages(app: Sphinx, failure: Exception | None) -> None:
    """Write the lesson and the live network, in both languages, under live/."""
    if failure is not None or app.builder.format != "html":
        return
    from normscope.lesson import lesson
    from normscope.report import html
    from normscope.report.lesson import document
    from normscope.report.playground import page

    folder = Path(app.outdir) / "live"
    folder.mkdir(exist_ok=True)
    record = lesson()
    for lang in ("en", "zh"):
        (folder / f"lesson.{lang}.html").write_text(
            html.page(document(record), lang), encoding="utf-8"
        )
        (folder / f"network.{lang}.html").write_text(page(lang), encoding="utf-8")


def inline_formula(self: Any, node: nodes.math) -> None:
    """Write a formula in a line of text."""
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_formula(self: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own."""
    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
    app.connect("build-finished", write_pages, priority=400)
    return {"parallel_read_safe": True}
