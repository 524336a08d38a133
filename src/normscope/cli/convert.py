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
    model: str,
    to: To,
    out: Path,
    weights: Path | None = None,
    key: Key = None,
    option: list[str] | None = None,
    only: list[str] | None = None,
    partial: bool = False,
    fuse: bool = False,
    verify: bool = False,
    shape: Annotated[str | None, typer.Option("--input")] = None,
) -> None:
    """Replace batch norms by another kind without loss, and prove it.

    Example: normscope convert --model timm:resnet18 --to frozen --out new.safetensors

    Args:
        model: The model: path/file.py:function that makes it, pkg.module:function, or
            timm:NAME.
        to: The kind that the batch norms become; torch and sync are PyTorch's own.
        out: Write the converted weights here, as safetensors.
        weights: Its checkpoint: safetensors, or a weights-only file.
        option: An argument of the new layers, as ghost_size=16; may be given several times.
        only: Only layers of this name, as 'encoder.*'; may be given several times.
        partial: Leave layers that cannot be converted as they are.
        fuse: Let the layers also compute the activations and sums that follow them.
        verify: Compare the model before and after; write only if it computes the same.
        shape: Shape of the batch to verify on, as 8,3,64,64.
    """
    from normscope import conversion
    from normscope.probe.load import load_model, write_weights

    options, batch = _options(option or []), batch_of(shape) if verify else None
    network = load_model(model, weights, key)
    done = conversion.convert(network, to, only=only or [], partial=partial, fuse=fuse, **options)
    if batch is not None:
        done.verify(batch)
    record = replace(done.record, model=model)
    show.present(record)
    if not record.ok:
        raise typer.Exit(1)
    notes = {"model": model, "to": to, "options": json.dumps(options)}
    write_weights(out, network.state_dict(), {"normscope.convert": json.dumps(notes)})
    show.tell("cli.weights", path=out)


def _options(pairs: list[str]) -> dict[str, Any]:
    """Read name=value pairs as keyword arguments; a value that is not JSON is a string."""
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
    """Draw a batch of standard normal numbers in the shape of --input."""
    import torch

    sizes = (shape or "").split(",")
    if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise InputError(f"--input is {shape!r}; the shape of a batch is needed: --input 8,3,64,64")
    return torch.randn([int(size) for size in sizes], generator=torch.Generator().manual_seed(0))
