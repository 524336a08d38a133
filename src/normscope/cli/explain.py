"""normscope explain."""

import json
import sys
from typing import Annotated, Any

import typer

from normscope.cli.app import Console, Printed, Shown, numbers
from normscope.errors import InputError


def explain(
    show: Shown,
    code: Annotated[str | None, typer.Argument(show_default="the worked example")] = None,
    checks: bool = False,
    classes: Annotated[
        list[str] | None, typer.Option("--class", show_default="50,52,54,56 and 2,4,6,8")
    ] = None,
    gamma: str | None = None,
    beta: str | None = None,
    eps: float = 0.0,
    seeds: int = 20,
) -> None:
    """Show in numbers how classes stay apart under batch norm.

    Examples: normscope explain --html lesson.html; normscope explain NS001

    Args:
        code: A check of diagnose, as NS001: what it looks for, and what to do.
        checks: List the checks of diagnose with their titles.
        classes: The values of one class, as 50,52,54,56; give it once per class.
        gamma: One scale per class, as 5,2.
        beta: One shift per class, as 10,3.
        eps: Added to the variance before its root.
        seeds: Learn gamma and beta from so many random starts.
    """
    if checks or code is not None:
        _checks(show) if checks else _check(str(code), show)
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
    show.present(record)


def _codes() -> list[str]:
    from normscope.report.messages import catalogue

    return sorted({key.split(".")[1] for key in catalogue() if key.startswith("doctor.NS")})


def _checks(show: Printed) -> None:
    """List the doctor's checks with their titles."""
    from normscope.report.messages import say

    titles = {code: say(show.lang, f"doctor.{code}.title") for code in _codes()}
    if show.as_json:
        sys.stdout.write(json.dumps(titles, ensure_ascii=False) + "\n")
        return
    for code, title in titles.items():
        typer.echo(f"{code}  {title}")


def _check(code: str, show: Printed) -> None:
    """Explain one of the doctor's checks: what it looks for, why, and what to do."""
    from normscope.report.messages import say

    wanted = code.upper()
    if wanted not in _codes():
        raise InputError(f"there is no check {code!r}; normscope explain --checks lists them")
    if show.as_json:
        parts = {part: say(show.lang, f"doctor.{wanted}.{part}") for part in ("title", "explain")}
        parts["text"] = parts.pop("explain")
        sys.stdout.write(json.dumps({"code": wanted} | parts) + "\n")
        return
    from normscope.report.diagnosis import explanation
    from normscope.report.terminal import show as put

    put(explanation(wanted), show.lang, Console())
