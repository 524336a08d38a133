"""Where telemetry goes: a CSV or JSONL file, TensorBoard, or anything with log(dict)."""

import csv as table
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from normscope.errors import InputError
from normscope.files import append_line, shown, write_whole
from normscope.lens.monitor import Sink, Values
from normscope.moments import Moments

HEAD = "step,layer,measure,value"
DIGITS = 5  # significant, of the numbers in a JSONL line


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
        for name, module in (layers or {}).items():
            for key, channels in tables(module).items():
                if key in ("gamma", "beta") and bool(channels.isfinite().all()):
                    writer.add_histogram(f"{prefix}{name}/{key}", channels.numpy(), step)

    return write


def logged(run: Any, prefix: str = "norms/") -> Sink:
    """Call `run.log({...}, step=step)` once per measured step, as Weights & Biases takes it."""

    def write(step: int, values: Values) -> None:
        run.log({prefix + name: value for name, value in values.items()}, step=step)

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


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
