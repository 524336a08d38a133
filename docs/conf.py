"""Sphinx: `make docs` writes docs/_build/index.html. A warning is an error; nothing is loaded."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

import normscope

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

project = "normscope"
copyright = "the normscope authors"
version = release = normscope.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "tutorials",  # these five are in _extensions
    "references",
    "live_pages",
    "internal_links",
    "chinese",
]
exclude_patterns = ["_build", "jupyter_execute", "_extensions"]

myst_enable_extensions = ["dollarmath", "attrs_inline", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # outputs are those that are committed

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
default_role = "code"
smartquotes = False  # "--html" is no dash
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "normscope"
html_static_path = ["_static"]
html_css_files = ["normscope.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = html_show_sourcelink = False
# the browser typesets formulas by itself: MathML needs no script from elsewhere
html_math_renderer = "mathml"


def _as_written(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Show indented paragraphs as they are; elsewhere "*S" is a shape, not emphasis."""
    shown: list[str] = []
    before, block = "", False
    for line in lines:
        indented = line.startswith("    ")
        if not indented and line:
            block = False
        elif indented and shown[-1:] == [""] and not before.startswith(("..", ":", "-", " ")):
            if not before.endswith("::"):
                shown += [".. code-block:: text", ""]
            block = True
        line = re.sub(r"^(:\w+ \w+: \w)\.", r"\1\\.", line)  # "K." begins no list
        code = block or line.lstrip().startswith((">>>", "..."))
        shown.append(line if code else re.sub(r"(?<!`)\*", r"\\*", line))
        before = line or before
    lines[:] = shown


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _as_written, priority=1000)
