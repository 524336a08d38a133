"""normscope playground."""

from pathlib import Path
from typing import Annotated

import typer

from normscope.cli.app import LOCALE, LangOption, known_language, tell


def playground(
    html: Annotated[Path, typer.Option(help="Write the page here.")],
    lang: LangOption = LOCALE,
) -> None:
    """Write a page in which a small network trains: every norm, both modes, seven ready lessons."""
    language = known_language(lang)

    from normscope.files import write_whole
    from normscope.report.playground import page

    write_whole(html, page(language))
    tell(language, "cli.page", path=html)
