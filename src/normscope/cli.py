"""The command line: parse, call, render, exit code. Every command is a library call.

Exit codes: 0 fine, 1 findings or a failed verification, 2 wrong use, 130 interrupted.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from normscope.errors import InputError, NormscopeError
from normscope.records import Lesson, Run, RunConfig
from normscope.report.messages import LANGUAGES, Lang, locale_language, say

if TYPE_CHECKING:
    from normscope.train.fit import Progress

app = typer.Typer(
    name="normscope",
    help="Shows what batch normalisation does to your classes, trains the scale and shift that "
    "map them back, and measures every normalisation layer of a model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
LangOption = Annotated[
    str, typer.Option("--lang", help="en or zh; the default follows the locale.")
]
_LOCALE = locale_language()


def main() -> None:
    """Run the command line; an error that a user can mend is one sentence and exit code 2."""
    try:
        app()
    except NormscopeError as problem:
        if not problem.told:
            Console(stderr=True, highlight=False).print(
                f"normscope: {problem}", markup=False, soft_wrap=True
            )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def explain(
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="The values of one class: 50,52,54,56. Give it per class."),
    ] = None,
    gamma: Annotated[str | None, typer.Option(help="One scale per class: 5,2.")] = None,
    beta: Annotated[str | None, typer.Option(help="One shift per class: 10,3.")] = None,
    eps: Annotated[float, typer.Option(help="Added to the variance.")] = 0.0,
    seeds: Annotated[int, typer.Option(help="Random starts of gamma and beta.")] = 20,
    html: Annotated[Path | None, typer.Option(help="Write the interactive page here.")] = None,
    as_json: Json = False,
    lang: LangOption = _LOCALE,
) -> None:
    """How classes stay apart although every channel gets mean 0 and variance 1, in numbers."""
    language = _language(lang)
    arguments: dict[str, Any] = {}
    if classes:
        arguments["classes"] = [_numbers("--class", text) for text in classes]
        arguments["gamma"] = arguments["beta"] = None
    if gamma is not None:
        arguments["gamma"] = _numbers("--gamma", gamma)
    if beta is not None:
        arguments["beta"] = _numbers("--beta", beta)

    from normscope.lesson import lesson

    record = lesson(eps=eps, seeds=seeds, **arguments)
    if html is not None:
        from normscope.files import write_whole
        from normscope.report.page import render_lesson

        write_whole(html, render_lesson(record, language))
    if as_json:
        sys.stdout.write(record.to_json() + "\n")
    else:
        from normscope.report.text import print_lesson

        print_lesson(record, language, Console())
    if html is not None:
        _say(language, "cli.page", path=html)


@app.command()
def train(
    data: Annotated[
        str,
        typer.Option(
            help="digits, iris, wine, breast_cancer, a .npz, .csv or .parquet file, a folder of "
            "class folders of images, or path/file.py:factory."
        ),
    ] = "digits",
    net: Annotated[str, typer.Option(help="mlp or cnn.")] = "mlp",
    norm: Annotated[
        str, typer.Option(help="Normalisations to compare, with commas; a wrong one lists all.")
    ] = "batch,none,noaffine",
    epochs: Annotated[int, typer.Option(min=1)] = 20,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 0.1,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    domains: Annotated[
        str, typer.Option(help="Versions of the data, with commas: clean,contrast,invert,noise.")
    ] = "",
    every: Annotated[int, typer.Option(min=1, help="Steps between two telemetry lines.")] = 10,
    sweep: Annotated[bool, typer.Option(help="Find the learning rates that train.")] = True,
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/latest"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")
    ] = False,
    as_json: Json = False,
    lang: LangOption = _LOCALE,
) -> None:
    """Train one network under several normalisations and compare them, class by class."""
    language = _language(lang)
    from normscope.train import fit, ranks

    config = RunConfig(
        data=data,
        net=net,
        norms=_names(norm),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        seeds=seeds,
        domains=_names(domains),
        every=every,
        sweep=fit.SWEEP if sweep else (),
    )
    with ranks.world() as rank, _progress(as_json or rank > 0) as progress:
        run = fit.train(
            config,
            out,
            resume=resume,
            overwrite=overwrite,
            tensorboard=tensorboard,
            on_progress=progress,
        )
    if rank > 0:  # rank 0 writes and tells
        raise typer.Exit(0 if run.complete else 130)
    if run.complete:
        run = _inspected(run, out)
    _finish(run, out, as_json, language)
    if not run.complete:
        _say(language, "cli.stopped", path=out)
        raise typer.Exit(130)


@app.command()
def inspect(
    model: Annotated[
        str,
        typer.Option(help="pkg.module:factory, path/file.py:factory, timm:NAME, or a run folder."),
    ],
    weights: Annotated[
        Path | None, typer.Option(help="safetensors or a weights-only file.")
    ] = None,
    data: Annotated[str, typer.Option(help="As for train.")] = "digits",
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    html: Annotated[Path | None, typer.Option(help="Write the page here.")] = None,
    as_json: Json = False,
    lang: LangOption = _LOCALE,
) -> None:
    """What each normalisation layer of a model does to each class of a data set, in one pass."""
    language = _language(lang)
    from normscope.lens import inspect as look
    from normscope.train import fit
    from normscope.train.data import batches, load

    if Path(model).is_dir():
        run, network, source = fit.load_run(Path(model))
        name = f"{run.config.net}, {run.config.norms[0]}"
    else:
        from normscope.weights import load_model

        network, source, name = load_model(model, weights), load(data), model
    record = look(
        network,
        batches(source, batch_size),
        classes=source.classes,
        model_name=name,
        data_name=source.name,
    )
    if html is not None:
        from normscope.files import write_whole
        from normscope.report.page import render_inspection

        write_whole(html, render_inspection(record, language))
    if as_json:
        sys.stdout.write(record.to_json() + "\n")
    else:
        from normscope.report.text import print_inspection

        print_inspection(record, language, Console())
    if html is not None:
        _say(language, "cli.page", path=html)


@app.command()
def convert(
    model: Annotated[
        str, typer.Option(help="pkg.module:factory, path/file.py:factory, or timm:NAME.")
    ],
    to: Annotated[
        str,
        typer.Option(
            help="torch, sync, batch, ghost, renorm, frozen, conditional, mode, or group."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Write the converted weights here, as safetensors.")],
    weights: Annotated[
        Path | None, typer.Option(help="safetensors or a weights-only file.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Of the new layers, as ghost_size=16; repeatable.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Names of layers, as 'encoder.*'; repeatable.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave layers that cannot be converted.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare before and after; write only if equal.")
    ] = False,
    shape: Annotated[
        str | None, typer.Option("--input", help="Shape of the batch to verify on, as 8,3,64,64.")
    ] = None,
    as_json: Json = False,
    lang: LangOption = _LOCALE,
) -> None:
    """Make a model's batch norms another member of the family, without loss, and prove it."""
    language = _language(lang)
    from normscope import conversion
    from normscope.records import Converted
    from normscope.weights import load_model, write_weights

    options, batch = _options(option or []), _batch(shape) if verify else None
    network = load_model(model, weights)
    done = conversion.convert(network, to, only=only or [], partial=partial, **options)
    record = Converted(
        model=model,
        to=to,
        changed=done.changed,
        kept=done.kept,
        refused=done.refused,
        comparisons=() if batch is None else done.verify(batch).comparisons,
    )
    if as_json:
        sys.stdout.write(record.to_json() + "\n")
    else:
        from normscope.report.text import print_conversion

        print_conversion(record, language, Console())
    if not record.ok:
        raise typer.Exit(1)
    notes = {"model": model, "to": to, "options": json.dumps(options)}
    write_weights(out, network.state_dict(), {"normscope.convert": json.dumps(notes)})
    _say(language, "cli.weights", path=out)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder, or its run.json.")],
    html: Annotated[Path | None, typer.Option(help="Write the page here.")] = None,
    as_json: Json = False,
    lang: LangOption = _LOCALE,
) -> None:
    """Show a finished run again: the tables here, the page in a file."""
    language = _language(lang)
    from normscope.files import read_text

    path = run / "run.json" if run.is_dir() else run
    record = Run.from_json(read_text(path, "run record"))
    _finish(record, path.parent, as_json, language, html)


@app.command()
def env(as_json: Json = False) -> None:
    """Versions and settings that matter for a report of a problem."""
    from normscope.train.fit import environment

    facts = environment()
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        for name, value in facts.items():
            typer.echo(f"{name:14} {value}")


def _inspected(run: Run, out: Path) -> Run:
    from normscope.files import write_whole
    from normscope.lens import inspect as look
    from normscope.train import fit
    from normscope.train.data import batches

    _, model, data = fit.load_run(out)
    record = look(
        model,
        batches(data, 256),
        classes=data.classes,
        model_name=f"{run.config.net}, {run.config.norms[0]}",
        data_name=data.name,
    )
    run = replace(run, inspection=record)
    write_whole(out / "run.json", run.to_json())
    return run


def _finish(
    run: Run, folder: Path, as_json: bool, language: Lang, html: Path | None = None
) -> None:
    from normscope.files import write_whole
    from normscope.report.page import render_run

    page = html or folder / "report.html"
    write_whole(page, render_run(run, _worked_example(), language))
    if as_json:
        sys.stdout.write(run.to_json() + "\n")
        return
    from normscope.report.text import print_inspection, print_run

    console = Console()
    print_run(run, language, console)
    if run.inspection is not None:
        print_inspection(run.inspection, language, console)
    _say(language, "cli.page", path=page)


def _worked_example() -> Lesson:
    from normscope.lesson import lesson

    return lesson()


@contextmanager
def _progress(quiet: bool) -> Iterator["Progress"]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    quiet = quiet or not console.is_terminal
    with Progress(*columns, console=console, disable=quiet, transient=True) as bars:
        task = bars.add_task("", total=None)

        def show(done: int, total: int, message: str) -> None:
            bars.update(task, completed=done, total=total, description=message)

        yield show


def _language(lang: str) -> Lang:
    for known in LANGUAGES:
        if lang == known:
            return known
    raise InputError(f"--lang is {lang!r}; it can be {' or '.join(LANGUAGES)}")


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as problem:
        raise InputError(
            f"{option} is {text!r}; numbers with commas between them are needed: 50,52,54"
        ) from problem


def _options(pairs: list[str]) -> dict[str, Any]:
    """name=value as keyword arguments; what is no JSON value is a string."""
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


def _batch(shape: str | None) -> Any:
    """Standard normal numbers in the shape that was asked for."""
    import torch

    sizes = (shape or "").split(",")
    if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise InputError(
            f"--input is {shape!r}; --verify needs the shape of a batch: --input 8,3,64,64"
        )
    return torch.randn([int(size) for size in sizes], generator=torch.Generator().manual_seed(0))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _say(language: Lang, key: str, **values: object) -> None:
    # on stderr: with --json stdout is one document
    Console(stderr=True, highlight=False).print(
        say(language, key, **values), markup=False, soft_wrap=True
    )
