"""Where telemetry goes: a CSV file, TensorBoard, or anything with log(dict)."""

from pathlib import Path
from typing import Any

from normscope.errors import InputError
from normscope.files import append_line, shown, write_whole
from normscope.lens.watch import Sink, Values

HEAD = "step,layer,measure,value"


def csv(path: str | Path) -> Sink:
    """Lines of step, layer, measure and value; a file that is there is continued.

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
        rows = []
        for name, value in values.items():
            layer, _, measure = name.rpartition("/")
            quoted = '"' + layer.replace('"', '""') + '"' if set(layer) & set(',"\n') else layer
            rows.append(f"{step},{quoted},{measure},{value!r}")
        if rows:
            append_line(file, "\n".join(rows))

    return write


def tensorboard(writer: Any, prefix: str = "norms/") -> Sink:
    """Scalars of a `torch.utils.tensorboard.SummaryWriter`, or anything with add_scalar."""

    def write(step: int, values: Values) -> None:
        for name, value in values.items():
            writer.add_scalar(prefix + name, value, step)

    return write


def logged(run: Any, prefix: str = "norms/") -> Sink:
    """One `run.log({...}, step=step)` per measured step, as Weights & Biases takes it."""

    def write(step: int, values: Values) -> None:
        run.log({prefix + name: value for name, value in values.items()}, step=step)

    return write
