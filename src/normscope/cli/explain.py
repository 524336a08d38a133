"""normscope explain."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from normscope.cli.app import (
    LOCALE,
    Console,
    Json,
    LangOption,
    known_language,
    numbers,
    present,
)
from normscope.errors import InputError
from normscope.report.messages import Lang


def explain(
    code: Annotated[
        str | None,
        typer.Argument(
            help="A check of diagnose, such as NS001: what it looks for, and what to do. "
            "Without one: the worked example."
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="The values of one class: 50,52,54,56. Give it per class."),
    ] = None,
    gamma: Annotated[str | None, typer.Option(help="One scale per class: 5,2.")] = None,
    beta: Annotated[str | None, typer.Option(help="One shift per class: 10,3.")] = None,
    eps: Annotated[float, typer.Option(help="Added to the variance before its root.")] = 0.0,
    seeds: Annotated[
        int, typer.Option(help="From so many random starts gamma and beta are learned.")
    ] = 20,
    html: Annotated[Path | None, typer.Option(help="Write the interactive page here.")] = None,
    as_json: Json = False,
    lang: LangOption = LOCALE,
) -> None:
    """How classes stay apart although every channel gets mean 0 and variance 1, in numbers."""
    language = known_language(lang)
    if code is not None:
        _check(code, as_json, language)
        return
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
    from normscope.report.lesson import document

    present(record, document(record), language, as_json=as_json, html=html)


def _check(code: str, as_json: bool, language: Lang) -> None:
    """Say what one of the doctor's checks looks for, why, and what to do."""
    from normscope.report.messages import catalogue, say

    codes = sorted({key.split(".")[1] for key in catalogue() if key.startswith("doctor.NS")})
    wanted = code.upper()
    if wanted not in codes:
        there = "\n".join(f"  {known} {say(language, f'doctor.{known}.title')}" for known in codes)
        raise InputError(f"{say(language, 'cli.no_check', code=repr(code))}\n{there}")
    text = say(language, f"doctor.{wanted}.explain")
    if as_json:
        title = say(language, f"doctor.{wanted}.title")
        sys.stdout.write(json.dumps({"code": wanted, "title": title, "text": text}) + "\n")
        return
    from normscope.report.diagnosis import explanation
    from normscope.report.terminal import show

    show(explanation(wanted), language, Console())
