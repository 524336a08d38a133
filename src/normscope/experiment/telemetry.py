"""The telemetry of a run: what the lens's monitor measures, one JSON line every few steps.

A line is {"norm", "seed", "step", "loss", "layers": {name: {measure: value}}}, see
`lens.sinks.jsonl`; its record is one `Trace` per layer.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from normscope.errors import FileError
from normscope.experiment import ranks
from normscope.experiment.loop import Trainer
from normscope.experiment.nets import norm_layers
from normscope.files import read_text, shown, write_whole
from normscope.lens import Monitor
from normscope.lens.monitor import Sink
from normscope.records import Numbers, Table, Trace

Line = dict[str, Any]

PROBE = 256  # training samples, always the same, on which layers are measured
PROBE_EPOCH = 0  # epochs count from 1, so the probe's order is none of theirs
AGAIN = "start again with --overwrite"


class Telemetry:
    """Measures a network in training mode on a fixed part of its training samples.

    Args:
        trainer: of the network; ranks share the samples.
        sinks: called on rank 0; more may be appended.
    """

    def __init__(self, trainer: Trainer, sinks: list[Sink]) -> None:
        def write(step: int, values: dict[str, float]) -> None:
            ranks.first(lambda: [sink(step, values) for sink in sinks])

        model, self._trainer = trainer.model, trainer
        self.monitor = Monitor(model, norm_layers(model), sinks=(write,), merge=ranks.pooled)
        batches = trainer.batches(PROBE_EPOCH, PROBE)
        # one batch, or one of each domain where a batch holds one domain
        self._batches = batches if trainer.norm.separate else batches[:1]

    def record(self, loss: float | None = None) -> None:
        """Measure the network as it is; gradients are those of the last step."""
        known = {} if loss is None else {"loss": loss}
        self.monitor.measure(self._run, self._trainer.step, **known)

    def _run(self) -> None:
        for rows in self._batches:
            self._trainer.forward(ranks.share(rows))


@contextmanager
def events(folder: Path, step: int) -> Iterator[Any]:
    """Open TensorBoard events; those after `step` are replaced."""
    from torch.utils.tensorboard import SummaryWriter

    try:
        with SummaryWriter(folder, purge_step=step + 1) as writer:
            yield writer
    except OSError as problem:  # of the writer: all else that is written raises FileError
        raise FileError(
            f"events cannot be written to {shown(folder)}: {problem.strerror}; "
            "make room or leave --tensorboard out"
        ) from problem


def read_lines(path: Path) -> list[Line]:
    """Return all whole lines; a last one that a crash cut short is left out.

    Raises:
        FileError: a line before the last is none of a run.
    """
    if not path.exists() or path.stat().st_size == 0:
        return []
    rows = read_text(path, "telemetry file").split("\n")
    lines = []
    for number, row in enumerate(rows, start=1):
        try:
            line = json.loads(row)
            _ = line["norm"], line["seed"], line["step"], line["layers"].items()
            lines.append(line)
        except (ValueError, TypeError, LookupError, AttributeError) as problem:
            if number < len(rows):
                raise FileError(
                    f"{shown(path)}: line {number} is none that a run writes; {AGAIN}"
                ) from problem
    return lines


def keep_lines(path: Path, wanted: Callable[[Line], bool]) -> None:
    """Cut the file back to the lines that are wanted, as one whole write."""
    lines = [json.dumps(line, allow_nan=False) for line in read_lines(path) if wanted(line)]
    write_whole(path, "".join(line + "\n" for line in lines))


def traces(path: Path) -> tuple[Trace, ...]:
    """Return the file's lines layer by layer, in the order in which norms and layers came first."""
    grouped: dict[tuple[str, str], list[tuple[int, Line]]] = {}
    for line in read_lines(path):
        for layer, values in line["layers"].items():
            grouped.setdefault((line["norm"], layer), []).append((line["step"], values))
    return tuple(_trace(*place, rows) for place, rows in grouped.items())


def _trace(norm: str, layer: str, rows: list[tuple[int, Line]]) -> Trace:
    def known(value: float | None) -> float:
        return math.nan if value is None else value

    def column(key: str) -> Numbers:
        return tuple(known(values.get(key)) for _, values in rows)

    names = ("gamma", "beta", "running_mean", "running_var")
    tables: dict[str, Table] = {
        key: tuple(tuple(map(known, values[key])) for _, values in rows if key in values)
        for key in names
    }
    return Trace(
        norm=norm,
        layer=layer,
        step=tuple(step for step, _ in rows),
        gradient=tuple(map(math.hypot, column("gamma_grad"), column("beta_grad"))),
        drift=column("shift_in"),
        drift_after=column("shift_out"),
        **tables,
    )
