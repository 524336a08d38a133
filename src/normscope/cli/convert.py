"""normscope convert."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from normscope.cli.app import LOCALE, Html, Json, LangOption, known_language, present, tell
from normscope.cli.inputs import Key
from normscope.errors import InputError


def convert(
    model: Annotated[
        str, typer.Option(help="pkg.module:factory, path/file.py:factory, or timm:NAME.")
    ],
    to: Annotated[
        str,
        typer.Option(
            help="torch, sync, batch, ghost, renorm, evalnorm, frozen, conditional, mode, or group."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Write the converted weights here, as safetensors.")],
    weights: Annotated[
        Path | None, typer.Option(help="safetensors or a weights-only file.")
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
        bool, typer.Option("--partial", help="Leave layers that cannot be converted.")
    ] = False,
    fuse: Annotated[
        bool,
        typer.Option("--fuse", help="Let the layers do the activations and sums behind them too."),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare before and after; write only if equal.")
    ] = False,
    shape: Annotated[
        str | None, typer.Option("--input", help="Shape of the batch to verify on, as 8,3,64,64.")
    ] = None,
    html: Html = None,
    as_json: Json = False,
    lang: LangOption = LOCALE,
) -> None:
    """Make a model's batch norms another member of the family, without loss, and prove it."""
    language = known_language(lang)
    from normscope import conversion
    from normscope.probe.load import load_model, write_weights

    options, batch = _options(option or []), batch_of(shape) if verify else None
    network = load_model(model, weights, key)
    done = conversion.convert(network, to, only=only or [], partial=partial, fuse=fuse, **options)
    if batch is not None:
        done.verify(batch)
    record = replace(done.record, model=model)
    from normscope.report.conversion import document

    present(record, document(record), language, as_json=as_json, html=html)
    if not record.ok:
        raise typer.Exit(1)
    notes = {"model": model, "to": to, "options": json.dumps(options)}
    write_weights(out, network.state_dict(), {"normscope.convert": json.dumps(notes)})
    tell(language, "cli.weights", path=out)


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
