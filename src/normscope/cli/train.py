"""normscope train."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from normscope.cli.app import Printed, names
from normscope.cli.inputs import DATA
from normscope.cli.report import finish

RUN = "Run folder"


def train(
    show: Printed,
    data: Annotated[str, typer.Option(help=DATA)] = "digits",
    net: Literal["mlp", "cnn"] = "mlp",
    norm: str = "batch,none,noaffine",
    epochs: Annotated[int, typer.Option(min=1)] = 20,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    lr: float = 0.1,
    seed: int = 0,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    domains: Annotated[str, typer.Option(show_default="the data as they are")] = "",
    every: Annotated[int, typer.Option(min=1)] = 10,
    freeze_head: bool = False,
    sweep: bool = True,
    out: Annotated[Path, typer.Option(rich_help_panel=RUN)] = Path("runs/latest"),
    resume: Annotated[bool, typer.Option(rich_help_panel=RUN)] = False,
    overwrite: Annotated[bool, typer.Option(rich_help_panel=RUN)] = False,
    tensorboard: Annotated[bool, typer.Option(rich_help_panel=RUN)] = False,
) -> None:
    """Train one network under several norms and compare them by class.

    Example: normscope train --data iris --norm batch,none --out runs/iris

    Args:
        net: The network: fully connected, or convolutions for images.
        norm: Normalisations to compare, with commas: batch, none, noaffine, affine_only,
            per_class, conditional, shared, separate, ghost, mode, renorm, layer.
        epochs: Passes over the data.
        batch_size: Samples per batch.
        lr: Learning rate of the first step; it falls to 0 at the last.
        seed: Seed of the first network; the next ones count up from it.
        seeds: How many networks of each kind are trained, each from its own seed.
        domains: Train on several versions of images at once, with commas:
            clean,contrast,invert,noise.
        every: Steps between two measurements of the layers.
        freeze_head: With --norm affine_only, freeze the output layer too: only gamma and
            beta learn.
        sweep: Also find at which learning rates each kind trains.
        out: The folder of the run: records, checkpoints, page.
        resume: Continue the run in --out.
        overwrite: Replace the run in --out.
        tensorboard: Also write TensorBoard events.
    """
    from normscope import experiment
    from normscope.experiment import fit, ranks

    with ranks.world() as rank, show.bar(quiet=rank > 0) as bar:
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
            on_progress=bar,
        )
    if rank > 0:  # rank 0 writes and tells
        raise typer.Exit(0 if run.complete else 130)
    finish(run, out, show)
    if not run.complete:
        show.tell("cli.stopped", path=out)
        raise typer.Exit(130)
