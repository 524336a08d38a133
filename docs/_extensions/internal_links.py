"""Every link inside the built site leads to a page, a file and an anchor that is there."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.util import logging

log = logging.getLogger(__name__)


class Page(HTMLParser):
    """The links and anchors of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.outside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what a tag names and where it leads."""
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif name in ("href", "src"):
                self.links.append(value)
                if tag in ("script", "img", "link", "iframe") and "//" in value.partition(":")[2]:
                    self.outside.append(value)


def check(app: Sphinx, failure: Exception | None) -> None:
    """Warn of links that lead nowhere, and of files that a page would load from elsewhere."""
    if failure is not None or app.builder.name != "html":
        return
    root = Path(app.outdir).resolve()
    pages = {
        path: Page(path.read_text(encoding="utf-8"))
        for path in sorted(root.rglob("*.html"))
        if path.parent.name != "live"  # these are tested with their scripts
    }
    for path, page in pages.items():
        where = path.relative_to(root)
        for link in page.outside:
            log.warning("%s loads %s from elsewhere", where, link, type="links")
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                log.warning("%s links to %s, which is not there", where, link, type="links")
                continue
            anchors = pages[target].anchors if target in pages else {unquote(parts.fragment)}
            if parts.fragment and unquote(parts.fragment) not in anchors:
                log.warning("%s links to %s: no such anchor", where, link, type="links")


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("build-finished", check, priority=900)
    return {"parallel_read_safe": True}
