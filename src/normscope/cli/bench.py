"""normscope bench."""

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
    tell,
)


def bench(
    html: Html = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer settings and repeats: about a minute.")
    ] = False,
    only: Annotated[
        str,
        typer.Option(
            help="Parts, with commas: models, shapes, formats, dtypes, threads, groups, sweep, "
            "inference, network, accuracy."
        ),
    ] = "",
    repeats: Annotated[
        int | None, typer.Option(help="At least so many for each median: 20, or 5 with --quick.")
    ] = None,
    as_json: Json = False,
    lang: LangOption = LOCALE,
) -> None:
    """Speed, memory and accuracy of the kernels beside torch, compilers and loops, in one run."""
    language = known_language(lang)
    from normscope.bench import measure

    with progress_bar(as_json) as progress:
        record = measure(names(only), quick=quick, repeats=repeats, on_progress=progress)
    from normscope.report.bench import document

    present(record, document(record), language, as_json=as_json, html=html)
    if not record.complete:
        tell(language, "cli.bench.stopped")
        raise typer.Exit(130)
