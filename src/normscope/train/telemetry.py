"""What each normalisation layer does while a network is trained: one JSON line every few steps.

A line is {"norm", "seed", "step", "loss", "layers": {name: {"gamma", "beta", "running_mean",
"running_var", "gradient", "drift", "drift_after"}}}; numbers that do not exist yet are null.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normscope.errors import FileError, NormscopeError
from normscope.files import append_line, read_text, shown, write_whole
from normscope.functional import moments
from normscope.moments import Moments
from normscope.records import Numbers, Table, Trace
from normscope.train import ranks
from normscope.train.loop import Network
from normscope.train.nets import norm_layers

Line = dict[str, Any]

PROBE = 256  # training samples, always the same, on which drift is measured
PROBE_EPOCH = 0  # epochs count from 1, so the probe's order is none of theirs
DIGITS = 5  # significant, of what a line holds
AGAIN = "start again with --overwrite"
TABLES = ("gamma", "beta", "running_mean", "running_var")
STATISTICS = ("count", "mean", "m2")


class Recorder:
    """Measures one network at its normalisation layers and keeps what the next line needs.

    Drift is measured on a fixed part of the training samples, in training mode, so that it shows
    how the network moved and not which samples came: per channel the Wasserstein-2 distance
    between two Gaussians, before and now, in standard deviations of before,

        sqrt((mean' - mean)^2 + (std' - std)^2) / std,

    averaged over the channels that vary. `drift` is that of the layer's input, `drift_after` of
    its output. Measuring leaves the network as it was.

    Args:
        network: in training.
        path: the file of lines.
    """

    def __init__(self, network: Network, path: Path) -> None:
        self.network = network
        self.path = path
        self.layers = norm_layers(network.model)
        batches = network.batches(PROBE_EPOCH, PROBE)
        # one batch, or one of each domain where a batch holds one domain
        self.probe = batches if network.norm.separate else batches[:1]
        self._last: dict[str, Moments] = {}

    def record(self, loss: float | None) -> Line:
        """Append a line for the network as it is; gradients are those of the last step."""
        now = self._observe()
        layers = {name: self._layer(name, module, now) for name, module in self.layers.items()}
        self._last = now
        line: Line = {
            "norm": self.network.design.norm,
            "seed": self.network.seed,
            "step": self.network.step,
            "loss": _rounded(math.nan if loss is None else loss),
            "layers": layers,
        }
        ranks.first(lambda: append_line(self.path, json.dumps(line, allow_nan=False)))
        return line

    def state(self) -> dict[str, Tensor]:
        """What the next line is compared with."""
        return {
            f"{name}.{part}": getattr(last, part)
            for name, last in self._last.items()
            for part in STATISTICS
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        names = {key.rpartition(".")[0] for key in state}
        self._last = {n: Moments(*(state[f"{n}.{part}"] for part in STATISTICS)) for n in names}

    def _layer(self, name: str, module: nn.Module, now: dict[str, Moments]) -> Line:
        tables = _tables(module)
        values: Line = {key: _list(tables.get(key)) for key in TABLES}
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        size = math.sqrt(sum(g.square().sum().item() for g in gradients))
        values["gradient"] = _rounded(size if gradients else math.nan)
        for key, place in (("drift", f"{name}.before"), ("drift_after", f"{name}.after")):
            last = self._last.get(place)
            values[key] = _rounded(math.nan if last is None else drift(last, now[place]))
        return values

    def _observe(self) -> dict[str, Moments]:
        """Moments of what enters and leaves each layer, over the probe."""
        seen: dict[str, Moments] = {}

        def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                for place, x in ((f"{name}.before", args[0]), (f"{name}.after", output)):
                    new = ranks.pooled(moments(x))
                    seen[place] = seen[place] + new if place in seen else new

            return hook

        handles = [m.register_forward_hook(watch(name)) for name, m in self.layers.items()]
        try:
            with torch.no_grad(), _buffers_kept(self.network.model):
                for rows in self.probe:
                    self.network.forward(ranks.share(rows))
        finally:
            for handle in handles:
                handle.remove()
        return seen


def drift(before: Moments, after: Moments) -> float:
    """Mean over channels of the Gaussian Wasserstein-2 distance, in stds of `before`.

    Constant channels of `before` are left out; NaN where all are constant.
    """
    old, new = before.var(correction=0).sqrt(), after.var(correction=0).sqrt()
    distance = torch.hypot(after.mean - before.mean, new - old)
    varies = old > 1e-12 * before.mean.abs()
    return (distance[varies] / old[varies]).mean().item()


def read_lines(path: Path) -> list[Line]:
    """All whole lines; a last one that a crash cut short is left out.

    Raises:
        FileError: a line before the last is broken.
    """
    if not path.exists() or path.stat().st_size == 0:
        return []
    rows = read_text(path, "telemetry file").split("\n")
    lines = []
    for number, row in enumerate(rows, start=1):
        try:
            lines.append(json.loads(row))
        except json.JSONDecodeError as problem:
            if number < len(rows):
                raise FileError(f"{shown(path)}: line {number} is broken; {AGAIN}") from problem
    return lines


def keep_lines(path: Path, wanted: Callable[[Line], bool]) -> None:
    """Cut the file back to the lines that are wanted, as one whole write."""
    with _understood(path):
        kept = [json.dumps(line, allow_nan=False) for line in read_lines(path) if wanted(line)]
    write_whole(path, "".join(line + "\n" for line in kept))


def traces(path: Path) -> tuple[Trace, ...]:
    """The file's lines layer by layer, in the order in which norms and layers came first.

    Raises:
        FileError: a line that is broken or lacks a number.
    """
    grouped: dict[tuple[str, str], list[tuple[int, Line]]] = {}
    with _understood(path):
        for line in read_lines(path):
            for layer, values in line["layers"].items():
                grouped.setdefault((line["norm"], layer), []).append((line["step"], values))
        return tuple(_trace(*place, rows) for place, rows in grouped.items())


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        if isinstance(problem, NormscopeError):
            raise
        raise FileError(f"{shown(path)} holds other lines than a run writes; {AGAIN}") from problem


def _trace(norm: str, layer: str, rows: list[tuple[int, Line]]) -> Trace:
    def table(key: str) -> Table:
        return tuple(tuple(map(_float, values[key])) for _, values in rows if values[key])

    def column(key: str) -> Numbers:
        return tuple(_float(values[key]) for _, values in rows)

    return Trace(
        norm=norm,
        layer=layer,
        step=tuple(step for step, _ in rows),
        gamma=table("gamma"),
        beta=table("beta"),
        running_mean=table("running_mean"),
        running_var=table("running_var"),
        gradient=column("gradient"),
        drift=column("drift"),
        drift_after=column("drift_after"),
    )


def _tables(module: nn.Module) -> dict[str, Tensor]:
    """What a layer keeps per channel, (C,) each; where it keeps it per group, groups pooled."""
    pooled = getattr(module, "pooled", None)
    state: dict[str, Tensor] = pooled() if callable(pooled) else module.state_dict()
    mean, var = state.get("running_mean"), state.get("running_var")
    if mean is not None and var is not None and mean.dim() == 2:
        total = Moments(mean.new_ones(len(mean)), mean, var).pool()  # groups weigh the same
        state = state | {"running_mean": total.mean, "running_var": total.var(correction=0)}
    names = ("weight", "bias", "running_mean", "running_var")
    return {key: state[n] for key, n in zip(TABLES, names, strict=True) if n in state}


def _list(values: Tensor | None) -> list[float | None]:
    return [] if values is None else [_rounded(value) for value in values.tolist()]


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _float(value: float | None) -> float:
    return math.nan if value is None else value


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Running statistics come back as they were, after an exception too."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, content in kept:
            buffer.copy_(content)
