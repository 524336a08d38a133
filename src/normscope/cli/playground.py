"""normscope playground."""

from pathlib import Path

from normscope.cli.app import Spoken


def playground(show: Spoken, html: Path) -> None:
    """Write a page in which a small network trains as you watch.

    Args:
        html: Write the page to this file.
    """
    from normscope.files import write_whole
    from normscope.report.playground import page

    write_whole(html, page(show.lang))
    show.tell("cli.page", path=html)
