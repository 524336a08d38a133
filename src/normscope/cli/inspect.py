"""normscope inspect."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from normscope.cli.app import LOCALE, Json, LangOption, known_language, tell


def inspect(
    model: Annotated[
        str,
        typer.Option(help="pkg.module:factory, path/file.py:factory, timm:NAME, or a run folder."),
    ],
    weights: Annotated[
        Path | None, typer.Option(help="safetensors or a weights-only file.")
    ] = None,
    data: Annotated[str, typer.Option(help="As for train.")] = "digits",
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    html: Annotated[Path | None, typer.Option(help="Write the page here.")] = None,
    as_json: Json = False,
    lang: LangOption = LOCALE,
) -> None:
    """What each normalisation layer of a model does to each class of a data set, in one pass."""
    language = known_language(lang)
    from normscope.lens import inspect as look
    from normscope.train import fit
    from normscope.train.data import batches, load

    if Path(model).is_dir():
        run, network, source = fit.load_run(Path(model))
        name = f"{run.config.net}, {run.config.norms[0]}"
    else:
        from normscope.weights import load_model

        network, source, name = load_model(model, weights), load(data), model
    record = look(
        network,
        batches(source, batch_size),
        classes=source.classes,
        model_name=name,
        data_name=source.name,
    )
    if html is not None:
        from normscope.files import write_whole
        from normscope.report.page import render_inspection

        write_whole(html, render_inspection(record, language))
    if as_json:
        sys.stdout.write(record.to_json() + "\n")
    else:
        from normscope.report.text import print_inspection

        print_inspection(record, language, Console())
    if html is not None:
        tell(language, "cli.page", path=html)
