"""normscope diagnose."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from normscope.cli.app import (
    LOCALE,
    Console,
    Html,
    Json,
    Key,
    LangOption,
    Model,
    known_language,
    names,
    progress_bar,
    tell,
)
from normscope.cli.patient import (
    BatchSize,
    Momentum,
    check_named,
    in_training,
    in_use,
    known_severity,
    model_and_data,
    write_reports,
)


def diagnose(
    model: Model = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="safetensors or a weights-only file; alone, without --model, it serves."),
    ] = None,
    key: Key = None,
    data: Annotated[str | None, typer.Option(help="As for train; its training part.")] = None,
    loader: Annotated[
        str | None, typer.Option(help="Batches as in training: path/file.py:factory.")
    ] = None,
    live: Annotated[
        str | None, typer.Option(help="Data as in use, to look for drift; as --data.")
    ] = None,
    batch_size: BatchSize = 64,
    momentum: Momentum = 0.1,
    select: Annotated[str, typer.Option(help="Beginnings of codes, with commas.")] = "",
    fail_on: Annotated[
        str, typer.Option("--fail-on", help="error, warning or info: exit code 1 from there on.")
    ] = "error",
    html: Html = None,
    sarif: Annotated[Path | None, typer.Option(help="Write SARIF 2.1.0 here.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.")] = None,
    as_json: Json = False,
    lang: LangOption = LOCALE,
) -> None:
    """Why a model is worse in eval() than in training: checks, causes, and what to do."""
    language, grave = known_language(lang), known_severity(fail_on)
    check_named(model, weights, data, loader, live)
    from normscope.doctor import diagnose as look
    from normscope.probe.load import read_weights

    with progress_bar(as_json) as show:
        if model is None:
            assert weights is not None, "asked before"
            record = look(
                read_weights(weights, key),
                select=names(select),
                momentum=momentum,
                model_name=str(weights),
                on_progress=show,
            )
        else:
            network, source, name = model_and_data(model, weights, data, key)
            batches = in_training(source, loader, batch_size)
            record = look(
                network,
                batches,
                live=in_use(live, batch_size),
                select=names(select),
                model_name=name,
                data_name=loader or (source.name if source is not None else ""),
                on_progress=show,
            )
    write_reports(record, None, language, html, sarif, junit)
    if as_json:
        sys.stdout.write(record.to_json() + "\n")
    else:
        from normscope.report.text import print_diagnosis

        print_diagnosis(record, language, Console())
    if html is not None:
        tell(language, "cli.page", path=html)
    if record.fails(grave):
        raise typer.Exit(1)
