"""normscope diagnose."""

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
from normscope.cli.inputs import Checkup
from normscope.cli.options import with_options
from normscope.errors import InputError
from normscope.files import write_whole
from normscope.records import SEVERITIES, Severity


@with_options(Checkup)
def diagnose(
    given: Checkup,
    select: Annotated[
        str, typer.Option(help="Make only checks whose codes begin so, as NS00,NS014.")
    ] = "",
    fail_on: Annotated[
        str, typer.Option("--fail-on", help="error, warning or info: exit code 1 from there on.")
    ] = "error",
    html: Html = None,
    sarif: Annotated[
        Path | None, typer.Option(help="Also write the findings as SARIF 2.1.0, for code scanning.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(help="Also write the findings as JUnit XML, for CI.")
    ] = None,
    as_json: Json = False,
    lang: LangOption = LOCALE,
) -> None:
    """Why a model is worse in eval() than in training: checks, causes, and what to do."""
    language, grave = known_language(lang), _known_severity(fail_on)
    given.check()
    from normscope.doctor import diagnose as look
    from normscope.probe.load import read_weights

    network = data = None
    if given.model is None:
        assert given.weights is not None, "checked before"
        content, name = read_weights(given.weights, given.key), str(given.weights)
    else:
        network, name, data = given.loaded(given.batch_size)
    with progress_bar(as_json, given.expected(data)) as show:
        record = look(
            content if network is None else network,
            select=names(select),
            model_name=name,
            data_name=data.name if data else "",
            on_progress=show,
            **given.arguments(network, data),
        )
    if sarif is not None or junit is not None:
        from normscope.report import machine

        if sarif is not None:
            write_whole(sarif, machine.sarif(record, language))
        if junit is not None:
            write_whole(junit, machine.junit(record, language))
    from normscope.report.diagnosis import document

    present(record, document(record), language, as_json=as_json, html=html)
    if record.fails(grave):
        raise typer.Exit(1)


def _known_severity(text: str) -> Severity:
    for severity in SEVERITIES:
        if text == severity:
            return severity
    raise InputError(f"--fail-on is {text!r}; it can be {', '.join(reversed(SEVERITIES))}")
