"""What diagnose and repair share: the model, its data as in training, and reports."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normscope.errors import InputError
from normscope.files import write_whole
from normscope.records import SEVERITIES, Diagnosis, Repaired, Severity
from normscope.report.messages import Lang

BatchSize = Annotated[int, typer.Option(min=1, help="As in training.")]
Momentum = Annotated[float, typer.Option(min=0, max=1, help="Of training, for a checkpoint alone.")]

if TYPE_CHECKING:
    from torch import nn

    from normscope.train.data import Data


def check_named(model: str | None, weights: Path | None, *data: str | None) -> None:
    """One sentence where there is nothing to look at, or data and no model."""
    if model is None and weights is None:
        raise InputError("name a model (--model), or a checkpoint alone (--weights)")
    if model is None and any(data):
        raise InputError("data need a model to run them through; name it with --model")


def model_and_data(
    model: str, weights: Path | None, data: str | None, key: str | None = None
) -> "tuple[nn.Module, Data | None, str]":
    """The model of a run folder or a spec, the data, and the model's name."""
    from normscope.train.data import load

    if Path(model).is_dir():
        from normscope.train import fit

        run, network, source = fit.load_run(Path(model))
        return network, load(data) if data else source, f"{run.config.net}, {run.config.norms[0]}"
    from normscope.probe.load import load_model

    network = load_model(model, weights, key).eval()
    return network, None if data is None else load(data), model


def in_training(data: "Data | None", loader: str | None, batch_size: int) -> Iterable[Any] | None:
    """Batches as in training: those of a factory, or the training part in random order."""
    if loader is not None:
        from normscope.probe.load import made

        place, colon, name = loader.rpartition(":")
        if not colon:
            raise InputError(f"--loader is {loader!r}; write path/file.py:factory")
        batches = made(place, name)
        if not isinstance(batches, Iterable):
            raise InputError(f"{loader} gives {type(batches).__name__}; batches are needed")
        return batches
    if data is None:
        return None
    import torch

    order = torch.randperm(len(data.train_x), generator=torch.Generator().manual_seed(0))
    columns = [c for c in (data.train_x, data.train_y, data.train_domain) if c is not None]
    parts = [rows for rows in order.split(batch_size) if len(rows) > 1]
    return [tuple(column[rows] for column in columns) for rows in parts]


def in_use(live: str | None, batch_size: int) -> list[Any] | None:
    """Batches of the test part of --live."""
    if live is None:
        return None
    from normscope.train.data import batches, load

    return list(batches(load(live), batch_size))


def known_severity(text: str) -> Severity:
    """--fail-on, or one sentence on which there are."""
    for severity in SEVERITIES:
        if text == severity:
            return severity
    raise InputError(f"--fail-on is {text!r}; it can be {', '.join(reversed(SEVERITIES))}")


def write_reports(
    record: Diagnosis,
    repaired: Repaired | None,
    language: Lang,
    html: Path | None,
    sarif: Path | None = None,
    junit: Path | None = None,
) -> None:
    """The files that were asked for."""
    if html is not None:
        from normscope.report.page import render_diagnosis

        write_whole(html, render_diagnosis(record, language, repaired))
    if sarif is not None or junit is not None:
        from normscope.report import machine

        if sarif is not None:
            write_whole(sarif, machine.sarif(record, language))
        if junit is not None:
            write_whole(junit, machine.junit(record, language))
