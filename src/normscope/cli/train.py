"""normscope train."""

from pathlib import Path
from typing import Annotated

import typer

from normscope.cli.app import (
    LOCALE,
    Json,
    LangOption,
    known_language,
    names,
    progress_bar,
    tell,
)
from normscope.cli.report import finish


def train(
    data: Annotated[
        str,
        typer.Option(
            help="digits, iris, wine, breast_cancer, a .npz, .csv or .parquet file, a folder of "
            "class folders of images, or path/file.py:factory."
        ),
    ] = "digits",
    net: Annotated[str, typer.Option(help="mlp or cnn.")] = "mlp",
    norm: Annotated[
        str, typer.Option(help="Normalisations to compare, with commas; a wrong one lists all.")
    ] = "batch,none,noaffine",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 20,
    batch_size: Annotated[int, typer.Option(min=2, help="Samples per batch.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 0.1,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    domains: Annotated[
        str, typer.Option(help="Versions of the data, with commas: clean,contrast,invert,noise.")
    ] = "",
    every: Annotated[int, typer.Option(min=1, help="Steps between two telemetry lines.")] = 10,
    freeze_head: Annotated[
        bool,
        typer.Option(
            "--freeze-head",
            help="Under affine_only, freeze the output layer too: only gamma and beta learn.",
        ),
    ] = False,
    sweep: Annotated[bool, typer.Option(help="Find the learning rates that train.")] = True,
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/latest"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")
    ] = False,
    as_json: Json = False,
    lang: LangOption = LOCALE,
) -> None:
    """Train one network under several normalisations and compare them, class by class."""
    language = known_language(lang)
    from normscope import experiment
    from normscope.experiment import fit, ranks

    with ranks.world() as rank, progress_bar(as_json or rank > 0) as show:
        run = experiment.train(
            data,
            net=net,
            norms=names(norm),
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            seeds=seeds,
            domains=names(domains),
            every=every,
            sweep=fit.SWEEP if sweep else (),
            freeze_head=freeze_head,
            out=out,
            resume=resume,
            overwrite=overwrite,
            tensorboard=tensorboard,
            progress=False,
            on_progress=show,
        )
    if rank > 0:  # rank 0 writes and tells
        raise typer.Exit(0 if run.complete else 130)
    finish(run, out, as_json, language)
    if not run.complete:
        tell(language, "cli.stopped", path=out)
        raise typer.Exit(130)
