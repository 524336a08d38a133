"""normscope parity."""

from pathlib import Path
from typing import Annotated, Any

import typer

from normscope.cli.app import Shown, names
from normscope.cli.inputs import checked_spec
from normscope.errors import InputError
from normscope.files import shown

PROGRAMS = (".onnx", ".pt2", ".ts", ".torchscript")


def parity(
    show: Shown,
    first: Annotated[str, typer.Argument(metavar="A")],
    second: Annotated[str, typer.Argument(metavar="B")],
    weights: Path | None = None,
    weights_b: Path | None = None,
    shape: Annotated[str | None, typer.Option("--input")] = None,
    batch: str | None = None,
    modes: Annotated[str, typer.Option(show_default="those that both sides have")] = "",
    ignore: str = "",
) -> None:
    """Compare two forms of a network: which norm differs, and why.

    Args:
        first: The one that is right: pkg.module:factory, path/file.py:factory, timm:NAME,
            or a program: .onnx, .pt2 (torch.export) or .ts (TorchScript).
        second: The other, likewise.
        weights: A checkpoint for A, and for B without --weights-b.
        weights_b: A checkpoint for B.
        shape: Compare on a batch of normal random numbers of this shape, as 8,3,64,64.
        batch: Compare on the batch that this function returns: path/file.py:function.
        modes: Compare in these modes: eval, train, or eval,train.
        ignore: Differences that do not count, as momentum,dtype.
    """
    if (shape is None) == (batch is None):
        raise InputError(
            "name the inputs: --input with the shape of a batch, as 8,3,64,64, or --batch with a "
            "function that returns one"
        )
    for option, given, side in (("--weights", weights, first), ("--weights-b", weights_b, second)):
        if given is not None and side.endswith(PROGRAMS):
            raise InputError(f"{option} is for a model; {shown(side)} has its own weights")
    from normscope.cli.convert import batch_of
    from normscope.equivalence import parity as compared

    inputs: Any = batch_of(shape) if batch is None else _made(batch)
    record = compared(
        _side(first, weights),
        _side(second, weights if weights_b is None else weights_b),
        inputs,
        modes=names(modes) or None,
        ignore=names(ignore),
        passports=(_passport(weights), _passport(weights_b or weights)),
        names=(first, second),
    )
    show.present(record)
    if not record.ok:
        raise typer.Exit(1)


def _passport(weights: Path | None) -> Any:
    from normscope.equivalence import read_passport

    return None if weights is None else read_passport(weights)


def _side(spec: str, weights: Path | None) -> Any:
    """Return a loaded model, or the path of a program."""
    if spec.endswith(PROGRAMS):
        return spec
    from normscope.probe.load import load_model

    return load_model(spec, weights).eval()


def _made(spec: str) -> Any:
    from normscope.probe.load import made

    return made(*checked_spec("--batch", spec))
