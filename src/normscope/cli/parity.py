"""normscope parity."""

from pathlib import Path
from typing import Annotated, Any

import typer

from normscope.cli.app import Shown, names
from normscope.cli.inputs import FUNCTION, checked_spec
from normscope.errors import InputError
from normscope.files import shown

PROGRAMS = (".onnx", ".pt2", ".ts", ".torchscript")
SIDE = (
    "pkg.module:factory, path/file.py:factory, timm:NAME, or a program: .onnx, .pt2 (torch.export) "
    "or .ts (TorchScript)."
)


def parity(
    show: Shown,
    first: Annotated[str, typer.Argument(metavar="A", help=f"The one that is right: {SIDE}")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other, likewise.")],
    weights: Annotated[
        Path | None, typer.Option(help="A checkpoint for A, and for B without --weights-b.")
    ] = None,
    weights_b: Annotated[
        Path | None, typer.Option("--weights-b", help="A checkpoint for B.")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="Compare on a batch of normal random numbers of this shape, as 8,3,64,64.",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(help=f"Compare on the batch that this function returns: {FUNCTION}."),
    ] = None,
    modes: Annotated[
        str,
        typer.Option(
            show_default="those that both sides have",
            help="Compare in these modes: eval, train, or eval,train.",
        ),
    ] = "",
    ignore: Annotated[
        str, typer.Option(help="Differences that do not count, as momentum,dtype.")
    ] = "",
) -> None:
    """Compare two forms of a network: which norm differs, and why."""
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
    from normscope.report import document_of

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
    show.present(record, document_of(record))
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
