"""normscope inspect."""

import sys
from collections.abc import Iterable, Sized
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from normscope.cli.app import (
    LOCALE,
    Console,
    Html,
    Json,
    Key,
    LangOption,
    Model,
    known_language,
    progress_bar,
    tell,
)
from normscope.errors import FileError, InputError
from normscope.files import shown
from normscope.report.messages import Lang

if TYPE_CHECKING:
    from torch import nn

    from normscope.lens import InspectionState
    from normscope.records import Inspection

WORTH_TELLING = 256  # MiB of statistics


def inspect(
    files: Annotated[
        list[Path] | None, typer.Argument(help="For --merge and --compare: what --save wrote.")
    ] = None,
    model: Model = None,
    weights: Annotated[
        Path | None, typer.Option(help="safetensors or a weights-only file.")
    ] = None,
    key: Key = None,
    data: Annotated[
        str, typer.Option(help="As for train; a factory may also return a loader of batches.")
    ] = "digits",
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    save: Annotated[
        Path | None,
        typer.Option(help="Write the record here, and all that was counted beside it."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the pass that --save began.")
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Put passes over parts of the data together.")
    ] = False,
    memory_limit: Annotated[
        int, typer.Option(min=1, help="MiB that the statistics may take.")
    ] = 4096,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show what differs between two passes.")
    ] = False,
    html: Html = None,
    as_json: Json = False,
    lang: LangOption = LOCALE,
) -> None:
    """What each normalisation layer of a model does to each class of a data set, in one pass."""
    language = known_language(lang)
    if bool(model) + merge + compare != 1 or bool(files) != (merge or compare):
        raise InputError("give --model, or --merge with files, or --compare with two files")
    if compare:
        from normscope.report.text import print_difference

        record = _difference(files or [])
        if as_json:
            sys.stdout.write(record.to_json() + "\n")
        else:
            print_difference(record, language, Console())
        return
    if save is not None and save.suffix != ".json":
        raise InputError(f"--save is {shown(save)}; name a .json file")
    if resume and save is None:
        raise InputError("--resume needs --save, the file that the pass was begun with")
    from normscope.lens import inspection
    from normscope.lens.state import SUFFIX
    from normscope.train import ranks

    stopped = False
    with ranks.world() as rank:
        if merge:
            seen = _merged(files or [])
        else:
            assert model is not None, "one of the three was given"
            seen, stopped = _passed(
                model,
                weights,
                key,
                data,
                batch_size,
                save if resume else None,
                as_json,
                language,
                memory_limit,
            )
            if ranks.size() > 1:
                seen.all_reduce()
    if rank > 0:  # rank 0 writes and tells
        raise typer.Exit(130 if stopped else 0)
    if save is not None:
        seen.save(save.with_suffix(SUFFIX))
    found = inspection(seen, release=True)
    if save is not None:
        found.save(save)
    _show(found, html, as_json, language)
    if save is not None:
        tell(language, "cli.saved", path=save)
    if stopped:
        tell(language, "cli.inspect.stopped", images=sum(found.counts))
        raise typer.Exit(130)


def _show(record: "Inspection", html: Path | None, as_json: bool, language: Any) -> None:
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
        tell(language, "cli.page", path=html)


def _passed(
    model: str,
    weights: Path | None,
    key: str | None,
    data: str,
    batch_size: int,
    resume: Path | None,
    quiet: bool,
    language: Lang,
    memory_limit: int,
) -> tuple["InspectionState", bool]:
    """What passed, and whether Ctrl-C came before the end."""
    from normscope.lens import InspectionState, accumulate, memory_needed
    from normscope.train import ranks

    given = _sources(model, weights, key, data, batch_size)
    seen = InspectionState(*given.names, given.classes)
    if resume is not None:
        seen = _loaded(resume)
        if (seen.model, seen.data, seen.classes) != (*given.names, given.classes):
            raise InputError(
                f"{shown(resume)} was begun with {seen.model} on {seen.data}; give the same, "
                "or another --save"
            )
    if resume is not None and ranks.size() > 1:
        raise InputError("--resume continues a pass of one process; start it without torchrun")
    if given.batches == []:
        return seen, False
    needed = memory_needed(given.model, len(given.classes or ())) >> 20
    if needed > WORTH_TELLING:
        tell(
            language,
            "cli.inspect.memory",
            mebibytes=f"{needed:,}",
            classes=len(given.classes or ()),
        )
    with progress_bar(quiet) as progress:

        def show(images: int) -> None:
            progress(images, given.images, given.names[0])
            if ranks.asked_to_stop():
                raise KeyboardInterrupt

        show(int(seen.counts.sum()))
        try:
            accumulate(
                given.model,
                given.batches,
                into=seen,
                on_progress=show,
                memory_limit=memory_limit << 20,
            )
        except KeyboardInterrupt:
            if int((seen.counts > 0).sum()) < 2 or seen.incomplete:
                raise
            return seen, True
    if given.part is not None and ranks.rank() == 0:
        tell(language, "cli.inspect.part", **given.part)
    return seen, False


class Sources(NamedTuple):
    """What is inspected, on what.

    Attributes:
        model: the network.
        batches: of this rank.
        classes: their names, where the data has some.
        names: what model and data are called.
        images: how many there are, where the data can say.
        part: for the message on which part of the data they are; None: all of it.
    """

    model: "nn.Module"
    batches: Iterable[Any]
    classes: tuple[str, ...] | None
    names: tuple[str, str]
    images: Any
    part: dict[str, object] | None = None


def _sources(
    model: str, weights: Path | None, key: str | None, data: str, batch_size: int
) -> Sources:
    from normscope.train.data import Data, batches, load

    if Path(model).is_dir():
        from normscope.train import fit

        run, network, source = fit.load_run(Path(model))
        name = f"{run.config.net}, {run.config.norms[0]}"
    else:
        from normscope.probe.load import load_model

        network, name = load_model(model, weights, key), model
        made = _loader(data)
        if made is not None and not isinstance(made, (Data, tuple)):
            held = getattr(made, "dataset", None)
            labels = getattr(made, "classes", None) or getattr(held, "classes", None)
            classes = tuple(map(str, labels)) if labels else None
            images = len(held) if isinstance(held, Sized) else None
            return Sources(network, _own(made), classes, (name, data), images)
        source = load(data)
    found = batches(source, batch_size)
    total = len(source.test_x)
    images = total // max(1, len(source.domains))  # each is shown in every domain
    part = {"data": source.name, "images": images, "total": images + len(source.train_x)}
    return Sources(network, _own(found), source.classes, (name, source.name), total, part)


def _loader(data: str) -> Any:
    """What a factory of data makes, if it is one and gives batches; None for all else."""
    from normscope.probe.load import made
    from normscope.train.data import Data
    from normscope.train.sources import is_factory

    if not is_factory(data):
        return None
    place, _, name = data.rpartition(":")
    value = made(place, name, finished=(Data,))
    return value if hasattr(value, "__iter__") and not isinstance(value, (tuple, list)) else None


def _own(batches: Iterable[Any]) -> list[Any] | Iterable[Any]:
    """Every rank takes its turn; a rank for which there is none gets an empty list."""
    from normscope.train import ranks

    if ranks.size() == 1:
        return batches
    mine = islice(batches, ranks.rank(), None, ranks.size())
    first = next(mine, None)
    return [] if first is None else chain([first], mine)


def _loaded(path: Path) -> "InspectionState":
    from normscope.lens import InspectionState
    from normscope.lens.state import beside

    return InspectionState.load(beside(path))


def _merged(files: list[Path]) -> "InspectionState":
    first, *rest = map(_loaded, files)
    for other in rest:
        first.merge(other)
    return first


def _difference(files: list[Path]) -> Any:
    from normscope.lens import compare
    from normscope.records import Inspection

    if len(files) != 2:
        raise InputError(f"--compare needs two files, not {len(files)}")
    if any(file.suffix != ".json" for file in files):
        raise FileError("--compare reads the .json records that --save wrote")
    return compare(*map(Inspection.load, files))
