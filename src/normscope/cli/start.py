"""`normscope` alone: what to try first. And --version."""

from typing import Annotated

import typer

from normscope import __version__
from normscope.cli.app import OUTPUT, Console, app
from normscope.cli.language import spoken
from normscope.report.messages import Lang, say

FIRST = {  # message -> what to type
    "cli.first.explain": "normscope explain",
    "cli.first.train": "normscope train --out runs/first",
    "cli.first.inspect": "normscope inspect --model net.py:model --loader net.py:loader",
    "cli.first.diagnose": "normscope diagnose --model net.py:model --loader net.py:loader",
}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"normscope {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    lang: Annotated[
        Lang,
        typer.Option(
            default_factory=spoken,
            show_default="that of your locale",
            help="Language of texts and pages: English or Chinese.",
            rich_help_panel=OUTPUT,
        ),
    ],
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="Print the version and leave.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
) -> None:
    """Say what to try first, where no command is named."""
    if context.invoked_subcommand is not None:
        return
    console = Console(highlight=False)

    def put(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, soft_wrap=True)

    put(say(lang, "cli.first", version=__version__))
    for key, line in FIRST.items():
        put("")
        put(say(lang, key))
        put(f"  {line}", "bold")
    put("")
    put(say(lang, "cli.first.help"))
