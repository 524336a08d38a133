"""normscope convert."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from normscope.cli.app import Shown
from normscope.cli.inputs import Key
from normscope.errors import InputError
from normscope.records import NormKind as To


def convert(
    show: Shown,
    model: Annotated[
        str,
        typer.Option(
            help="The model: path/file.py:function that makes it, pkg.module:function, or "
            "timm:NAME."
        ),
    ],
    to: Annotated[
        To,
        typer.Option(
            help="The kind that the batch norms become; torch and sync are PyTorch's own."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Write the converted weights here, as safetensors.")],
    weights: Annotated[
        Path | None, typer.Option(help="Its checkpoint: safetensors, or a weights-only file.")
    ] = None,
    key: Key = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="An argument of the new layers, as ghost_size=16; may be given several times."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only layers of this name, as 'encoder.*'; may be given several times."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave layers that cannot be converted as they are.")
    ] = False,
    fuse: Annotated[
        bool,
        typer.Option(
            "--fuse", help="Let the layers also compute the activations and sums that follow them."
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare the model before and after; write only if it computes the same.",
        ),
    ] = False,
    shape: Annotated[
        str | None, typer.Option("--input", help="Shape of the batch to verify on, as 8,3,64,64.")
    ] = None,
) -> None:
    """Replace batch norms by another kind without loss, and prove it.

    Example: normscope convert --model timm:resnet18 --to frozen --out new.safetensors
    """
    from normscope import conversion
    from normscope.probe.load import load_model, write_weights

    options, batch = _options(option or []), batch_of(shape) if verify else None
    network = load_model(model, weights, key)
    done = conversion.convert(network, to, only=only or [], partial=partial, fuse=fuse, **options)
    if batch is not None:
        done.verify(batch)
    record = replace(done.record, model=model)
    from normscope.report.conversion import document

    show.present(record, document(record))
    if not record.ok:
        raise typer.Exit(1)
    notes = {"model": model, "to": to, "options": json.dumps(options)}
    write_weights(out, network.state_dict(), {"normscope.convert": json.dumps(notes)})
    show.tell("cli.weights", path=out)


def _options(pairs: list[str]) -> dict[str, Any]:
    """Read name=value as keyword arguments; what is no JSON value is a string."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.isidentifier():
            raise InputError(f"--option is {pair!r}; write name=value, as ghost_size=16")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def batch_of(shape: str | None) -> Any:
    """Draw standard normal numbers in the shape that was asked for."""
    import torch

    sizes = (shape or "").split(",")
    if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise InputError(f"--input is {shape!r}; the shape of a batch is needed: --input 8,3,64,64")
    return torch.randn([int(size) for size in sizes], generator=torch.Generator().manual_seed(0))
