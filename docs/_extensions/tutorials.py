"""The notebooks of examples/ as pages, with the outputs that are committed in them."""

from pathlib import Path
from typing import Any

from generated import write
from sphinx.application import Sphinx


def copy_notebooks(app: Sphinx, config: Any) -> None:
    """Copy every notebook of examples/ to tutorials/, where Sphinx finds it."""
    docs = Path(app.srcdir)
    notebooks = {
        path.name: path.read_text(encoding="utf-8")
        for path in sorted((docs.parent / "examples").glob("*.ipynb"))
    }
    write(docs / "tutorials", notebooks, (".ipynb",))


def without_empty_list(app: Sphinx, docname: str, source: list[str]) -> None:
    """Leave the list out where there is no notebook: Sphinx warns of an empty one."""
    if docname == "tutorials" and not list((Path(app.srcdir) / "tutorials").glob("*.ipynb")):
        source[0] = source[0].partition("```{toctree}")[0]


def always_read(app: Sphinx, *_: object) -> list[str]:
    """Read the list again at every build: which notebooks there are may have changed."""
    return ["tutorials"]


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("config-inited", copy_notebooks)
    app.connect("source-read", without_empty_list)
    app.connect("env-get-outdated", always_read)
    return {"parallel_read_safe": True}
