"""normscope explain."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from normscope.cli.app import LOCALE, Json, LangOption, known_language, numbers, tell


def explain(
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="The values of one class: 50,52,54,56. Give it per class."),
    ] = None,
    gamma: Annotated[str | None, typer.Option(help="One scale per class: 5,2.")] = None,
    beta: Annotated[str | None, typer.Option(help="One shift per class: 10,3.")] = None,
    eps: Annotated[float, typer.Option(help="Added to the variance.")] = 0.0,
    seeds: Annotated[int, typer.Option(help="Random starts of gamma and beta.")] = 20,
    html: Annotated[Path | None, typer.Option(help="Write the interactive page here.")] = None,
    as_json: Json = False,
    lang: LangOption = LOCALE,
) -> None:
    """How classes stay apart although every channel gets mean 0 and variance 1, in numbers."""
    language = known_language(lang)
    arguments: dict[str, Any] = {}
    if classes:
        arguments["classes"] = [numbers("--class", text) for text in classes]
        arguments["gamma"] = arguments["beta"] = None
    if gamma is not None:
        arguments["gamma"] = numbers("--gamma", gamma)
    if beta is not None:
        arguments["beta"] = numbers("--beta", beta)

    from normscope.lesson import lesson

    record = lesson(eps=eps, seeds=seeds, **arguments)
    if html is not None:
        from normscope.files import write_whole
        from normscope.report.page import render_lesson

        write_whole(html, render_lesson(record, language))
    if as_json:
        sys.stdout.write(record.to_json() + "\n")
    else:
        from normscope.report.text import print_lesson

        print_lesson(record, language, Console())
    if html is not None:
        tell(language, "cli.page", path=html)
