"""Where telemetry goes: a CSV or JSONL file, TensorBoard, W&B, MLflow, or a framework's logger."""

import csv as table
import io
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from normscope.errors import InputError, MissingExtraError
from normscope.files import append_line, shown, write_whole
from normscope.moments import Moments

Values = dict[str, float]
Sink = Callable[[int, Values], None]  # the step, and "layer/measure" -> value

HEAD = "step,layer,measure,value"
DIGITS = 5  # significant, of the numbers in a JSONL line
MLFLOW_BATCH = 1000  # metrics that MLflow takes in one request
INTEGRATIONS = "transformers.integrations."  # where its callbacks that report are


def sink(target: Any) -> Sink:
    """Return the sink that writes to `target`, for `lens.monitor(to=[target])`.

    What serves:

    - a path that ends with .csv or .jsonl;
    - a `SummaryWriter` of TensorBoard;
    - a run of Weights & Biases, a run of MLflow, an `MlflowClient`, or either module, which stands
      for the run that is active;
    - a logger of Lightning, an `Accelerator`, a Trainer of transformers;
    - any other object with log(dict, step=...) or log_metrics(dict, step=...);
    - a function of the step and of {"layer/measure": value}.

    Raises:
        InputError: none of these.
        MissingExtraError: the logger's package is not installed.
    """
    if isinstance(target, (str, Path)):
        if Path(target).suffix not in (".csv", ".jsonl"):
            raise InputError(f"{shown(target)} is no .csv or .jsonl file; name one to write to")
        return csv(target) if Path(target).suffix == ".csv" else jsonl(target)
    if callable(target):
        return target  # type: ignore[no-any-return]
    is_package = isinstance(target, ModuleType)
    of = target.__name__ if is_package else type(target).__module__
    maker = {"wandb": wandb, "mlflow": mlflow}.get(of.partition(".")[0])
    if maker is not None:
        given = {} if is_package else {"client" if hasattr(target, "log_batch") else "run": target}
        return maker(**given)
    if hasattr(target, "add_scalar"):
        return tensorboard(target)
    if hasattr(target, "callback_handler"):
        return reported(target)
    if hasattr(target, "log_metrics") or hasattr(target, "log"):
        return logged(target)
    raise InputError(
        f"telemetry cannot be written to an object of type {type(target).__name__}; give a path, "
        "a writer, run or logger, or a function of the step and the values"
    )


def csv(path: str | Path) -> Sink:
    """Write lines of step, layer, measure and value; a file that is there is continued.

    Raises:
        FileError: the file cannot be written.
        InputError: it holds something else.
    """
    file = Path(path)
    if file.exists() and file.stat().st_size:
        with file.open(encoding="utf-8", errors="replace") as lines:
            if lines.readline().strip() != HEAD:
                raise InputError(f"{shown(file)} is no table of telemetry; name another file")
    else:
        write_whole(file, HEAD + "\n")

    def write(step: int, values: Values) -> None:
        lines = io.StringIO()
        rows = table.writer(lines, lineterminator="\n")
        for name, value in values.items():
            layer, _, measure = name.rpartition("/")
            rows.writerow([step, layer, measure, repr(value)])
        if values:
            append_line(file, lines.getvalue().removesuffix("\n"))

    return write


def jsonl(path: str | Path, layers: Mapping[str, nn.Module] | None = None, **facts: Any) -> Sink:
    """Append one JSON line per measured step; the file is made, or continued.

    A line is {**facts, "step", "layers": {layer: {measure: value}}, and scalars of no layer}, with
    5 significant digits. What is not finite is null.

    Args:
        path: the file.
        layers: modules of which "gamma", "beta", "running_mean" and "running_var" are written too,
            a list over channels each; groups are pooled.
        facts: what every line says beside, such as the run's seed.

    Raises:
        FileError: the file cannot be written.
    """

    def write(step: int, values: Values) -> None:
        rows: dict[str, dict[str, Any]] = {
            name: {key: list(map(_rounded, t.tolist())) for key, t in tables(module).items()}
            for name, module in (layers or {}).items()
        }
        others: dict[str, float | None] = {}
        for place, value in values.items():
            name, _, measure = place.rpartition("/")
            of = rows.setdefault(name, {}) if name else others
            of[measure] = _rounded(value)
        line = facts | {"step": step} | others | {"layers": rows}
        append_line(Path(path), json.dumps(line, allow_nan=False))

    return write


def tensorboard(
    writer: Any, prefix: str = "norms/", layers: Mapping[str, nn.Module] | None = None
) -> Sink:
    """Write scalars with a `torch.utils.tensorboard.SummaryWriter`, or anything with add_scalar.

    Args:
        writer: receives them.
        prefix: of their names.
        layers: modules of which gamma and beta are written as histograms too.
    """

    def write(step: int, values: Values) -> None:
        for name, value in values.items():
            writer.add_scalar(prefix + name, value, step)
        for name, channels in _histograms(layers):
            writer.add_histogram(prefix + name, channels.numpy(), step)

    return write


def wandb(
    run: Any = None, prefix: str = "norms/", layers: Mapping[str, nn.Module] | None = None
) -> Sink:
    """Write scalars to a run of Weights & Biases, one row per measured step.

    Their x-axis is the training step, written as `norms/step`: a row without a step of W&B's own
    cannot come too late, whatever the loop logs beside it.

    Args:
        run: what `wandb.init()` returned; None: the run that is active.
        prefix: of their names.
        layers: modules of which gamma and beta are written as histograms too.

    Raises:
        InputError: no run is active.
        MissingExtraError: wandb is not installed.
    """
    package = _package("wandb")
    run = package.run if run is None else run
    if run is None:
        raise InputError("no run of wandb is active; start one with wandb.init()")
    run.define_metric(f"{prefix}*", step_metric=f"{prefix}step")

    def write(step: int, values: Values) -> None:
        row: dict[str, Any] = {prefix + name: value for name, value in values.items()}
        for name, channels in _histograms(layers):
            row[prefix + name] = package.Histogram(channels.numpy())
        run.log(row | {f"{prefix}step": step})

    return write


def mlflow(run: Any = None, prefix: str = "norms/", client: Any = None) -> Sink:
    """Write scalars to a run of MLflow.

    Characters that MLflow does not take in names become _.

    Args:
        run: what `mlflow.start_run()` returned, or the id of a run; None: the active one.
        prefix: of their names.
        client: an `MlflowClient`; None: one for the tracking server that MLflow is set to.

    Raises:
        InputError: no run is active.
        MissingExtraError: mlflow is not installed.
    """
    package = _package("mlflow")
    run = package.active_run() if run is None else run
    if run is None:
        raise InputError("no run of MLflow is active; start one with mlflow.start_run()")
    number = run if isinstance(run, str) else run.info.run_id
    client = client or package.MlflowClient()
    metric = import_module("mlflow.entities").Metric

    def write(step: int, values: Values) -> None:
        now = int(time.time() * 1000)
        rows = [
            metric(re.sub(r"[^\w./ -]", "_", prefix + name), value, now, step)
            for name, value in values.items()
        ]
        for start in range(0, len(rows), MLFLOW_BATCH):
            client.log_batch(number, metrics=rows[start : start + MLFLOW_BATCH])

    return write


def logged(logger: Any, prefix: str = "norms/") -> Sink:
    """Call `logger.log_metrics({...}, step=step)`, or `logger.log`, once per measured step.

    So do a logger of Lightning, an `Accelerator` of accelerate, and many others.
    """
    put = getattr(logger, "log_metrics", None) or logger.log

    def write(step: int, values: Values) -> None:
        put({prefix + name: value for name, value in values.items()}, step=step)

    return write


def reported(trainer: Any, prefix: str = "norms/") -> Sink:
    """Write scalars to whatever a Trainer of transformers reports to.

    That is what `report_to` names, and callbacks that were made of its classes. Nothing is printed.
    """

    def write(step: int, values: Values) -> None:
        logs = {prefix + name: value for name, value in values.items()}
        handler = trainer.callback_handler
        for callback in handler.callbacks:
            if any(of.__module__.startswith(INTEGRATIONS) for of in type(callback).__mro__):
                callback.on_log(
                    trainer.args, trainer.state, trainer.control, model=handler.model, logs=logs
                )

    return write


def tables(module: nn.Module) -> dict[str, Tensor]:
    """Return what a layer keeps per channel, (C,) each; groups are pooled, with equal weight."""
    pooled = getattr(module, "pooled", None)
    state: dict[str, Tensor] = pooled() if callable(pooled) else module.state_dict()
    mean, var = state.get("running_mean"), state.get("running_var")
    if mean is not None and var is not None and mean.dim() == 2:
        total = Moments(mean.new_ones(len(mean)), mean, var).pool()
        state = state | {"running_mean": total.mean, "running_var": total.var(correction=0)}
    names = {"weight": "gamma", "bias": "beta"} | {n: n for n in ("running_mean", "running_var")}
    return {key: state[n].detach().cpu() for n, key in names.items() if n in state}


def _histograms(layers: Mapping[str, nn.Module] | None) -> Iterator[tuple[str, Tensor]]:
    """Gamma and beta of every layer, where they are finite: a histogram has no place for others."""
    for name, module in (layers or {}).items():
        for key, channels in tables(module).items():
            if key in ("gamma", "beta") and bool(channels.isfinite().all()):
                yield f"{name}/{key}", channels


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as problem:
        raise MissingExtraError(
            f"this sink needs {name}: pip install 'normscope[{name}]'"
        ) from problem


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
