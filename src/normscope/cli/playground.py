"""normscope playground."""

from pathlib import Path
from typing import Annotated

import typer

from normscope.cli.app import Spoken


def playground(
    show: Spoken, html: Annotated[Path, typer.Option(help="Write the page to this file.")]
) -> None:
    """Write a page in which a small network trains as you watch."""
    from normscope.files import write_whole
    from normscope.report.playground import page

    write_whole(html, page(show.lang))
    show.tell("cli.page", path=html)
