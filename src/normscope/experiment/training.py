"""Train and compare: one call from data to a record."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from normscope.experiment import fit, ranks
from normscope.experiment.data import IN_MEMORY, Source, batches
from normscope.experiment.nets import standing_for
from normscope.files import write_whole
from normscope.lens import inspect
from normscope.progress import Progress, steps
from normscope.records import Run, RunConfig

__all__ = ["train"]


def train(
    data: Source = "digits",
    *,
    net: str = "mlp",
    norms: Sequence[str] = ("batch", "none", "noaffine"),
    epochs: int = 20,
    batch_size: int = 64,
    lr: float = 0.1,
    seed: int = 0,
    seeds: int = 3,
    domains: Sequence[str] = (),
    every: int = 10,
    sweep: Sequence[float] = fit.SWEEP,
    freeze_head: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
    progress: bool | None = None,
    on_progress: Progress | None = None,
) -> Run:
    """Train one network under several normalisations and compare them, class by class.

    Networks of one seed start from the same weights and see the samples in the same order. Ctrl-C
    returns what is finished, in a record that is not `complete`; with `out`, `resume` continues.

    Args:
        data: digits, iris, wine, breast_cancer, a file, a folder of images, path/file.py:factory,
            or the samples themselves: (x, y), (x, y, class names) or a `Data`. x is (N, C) or
            (N, C, H, W), y (N,).
        net: mlp or cnn.
        norms: what stands between two layers; a wrong name lists all.
        epochs: passes over the data.
        batch_size: samples per batch.
        lr: the learning rate of the first step; it falls to zero along a cosine.
        seed: the first seed.
        seeds: how many seeds.
        domains: two or more of clean, contrast, brightness, invert, noise.
        every: steps between two lines of telemetry.
        sweep: learning rates that are tried in short trainings; empty: none.
        freeze_head: under affine_only, freeze the output layer too.
        out: the run's folder; None: nothing is kept but the record.
        resume: continue the run in `out`.
        overwrite: replace the run in `out`.
        tensorboard: write events as well.
        progress: show a bar; None: in a notebook or on a terminal.
        on_progress: called after every step.

    Returns:
        The record as it is in run.json, with an inspection of the network that stands for the run.

    Raises:
        InputError: options, norms or data that cannot be trained; other options on resume.
        FileError: a folder or file that cannot be read or written; nothing is half-written.
        MissingExtraError: a package for the data or for events is not installed.

    Example:
        >>> import normscope
        >>> run = normscope.train("iris", norms=["batch", "none"], epochs=2, seeds=1, sweep=())
        >>> [row.norm for row in run.rows], run.complete
        (['batch', 'none'], True)
    """
    config = RunConfig(
        data=data if isinstance(data, str) else IN_MEMORY,
        net=net,
        norms=tuple(norms),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        seeds=seeds,
        domains=tuple(domains),
        every=every,
        sweep=tuple(sweep),
        freeze_head=freeze_head,
    )
    samples = None if isinstance(data, str) else data
    with ExitStack() as stack:
        if out is None:
            out = Path(stack.enter_context(TemporaryDirectory(prefix="normscope-"))) / "run"
        folder = Path(out)
        rank = stack.enter_context(ranks.world())
        show = stack.enter_context(steps(progress if rank == 0 else False, on_progress))
        run = fit.train(
            config,
            folder,
            data=samples,
            resume=resume,
            overwrite=overwrite,
            tensorboard=tensorboard,
            on_progress=show,
        )
        return _inspected(run, folder, samples) if rank == 0 and run.complete else run


def _inspected(run: Run, folder: Path, data: Source | None) -> Run:
    """Inspect the network that represents the run, if it was trained and has norm layers."""
    place = (standing_for(run.config.norms), run.config.seed)
    trained = any((m.norm, m.seed) == place and m.status == "done" for m in run.members)
    if not trained or place[0] == "none":
        return run
    _, model, found = fit.load_run(folder, data)
    record = inspect(
        model,
        batches(found, 256),
        classes=found.classes,
        model_name=f"{run.config.net}, {place[0]}",
        data_name=found.name,
        progress=False,
    )
    run = replace(run, inspection=record)
    write_whole(folder / "run.json", run.to_json())
    return run
