"""Sphinx: `make docs` writes docs/_build/index.html; a warning is an error."""

import re

from sphinx.application import Sphinx

import normscope

project = "normscope"
copyright = "the normscope authors"
version = release = normscope.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings name shapes and dtypes
html_theme = "alabaster"
html_theme_options = {"font_family": "system-ui, sans-serif", "page_width": "68rem"}


def _stars_are_shapes(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    lines[:] = [
        re.sub(r"(?<!`)\*", r"\\*", line) for line in lines
    ]  # "*S" is a shape, not emphasis


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _stars_are_shapes, priority=1000)
