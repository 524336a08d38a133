"""normscope inspect."""

from collections.abc import Iterable, Sized
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normscope.cli.app import (
    LOCALE,
    Html,
    Json,
    LangOption,
    known_language,
    present,
    progress_bar,
    tell,
)
from normscope.cli.inputs import Inputs
from normscope.cli.options import with_options
from normscope.errors import FileError, InputError
from normscope.files import shown
from normscope.report.messages import Lang

if TYPE_CHECKING:
    from normscope.lens import InspectionState
    from normscope.records import Inspection


WORTH_TELLING = 256  # MiB of statistics


@with_options(Inputs)
def inspect(
    given: Inputs,
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Only for --merge and --compare: files that --save wrote."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples per batch of --data; a loader has its own.")
    ] = 256,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the record to this .json file, and all that was counted beside it."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the pass that --save began.")
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Put passes over parts of the data together.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show what differs between two passes.")
    ] = False,
    memory_limit: Annotated[
        int,
        typer.Option(
            min=1, help="Refuse to start if the statistics would take more MiB of memory."
        ),
    ] = 4096,
    html: Html = None,
    as_json: Json = False,
    lang: LangOption = LOCALE,
) -> None:
    """Show what each normalisation layer of a model does to each class of the data, in one pass."""
    language = known_language(lang)
    if bool(given.model) + merge + compare != 1 or bool(files) != (merge or compare):
        raise InputError("give --model, or --merge with files, or --compare with two files")
    if given.model is not None and not given.has_data:
        given = replace(given, data="digits")
    given.check()
    if compare:
        from normscope.report.difference import document

        record = _difference(files or [])
        present(record, document(record), language, as_json=as_json, html=html)
        return
    if save is not None and save.suffix != ".json":
        raise InputError(f"--save is {shown(save)}; name a .json file")
    if resume and save is None:
        raise InputError("--resume needs --save, the file that the pass was begun with")
    from normscope.experiment import ranks
    from normscope.lens import inspection
    from normscope.lens.state import SUFFIX

    stopped = False
    with ranks.world() as rank:
        if merge:
            seen = _merged(files or [])
        else:
            seen, stopped = _passed(
                given, batch_size, save if resume else None, as_json, language, memory_limit
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
    from normscope.report.inspection import document

    present(record, document(record), language, as_json=as_json, html=html)


def _passed(
    given: Inputs,
    batch_size: int,
    resume: Path | None,
    quiet: bool,
    language: Lang,
    memory_limit: int,
) -> tuple["InspectionState", bool]:
    """Run the pass; return what passed, and whether Ctrl-C came before the end."""
    from normscope.experiment import ranks
    from normscope.lens import InspectionState, accumulate, memory_needed

    model, model_name, data = given.loaded(batch_size, batch_size)
    assert data is not None, "checked before"
    names = (model_name, data.name)
    seen = InspectionState(*names, data.classes)
    if resume is not None:
        seen = _loaded(resume)
        if (seen.model, seen.data, seen.classes) != (*names, data.classes):
            raise InputError(
                f"{shown(resume)} was begun with {seen.model} on {seen.data}; give the same, "
                "or another --save"
            )
    if resume is not None and ranks.size() > 1:
        raise InputError("--resume continues a pass of one process; start it without torchrun")
    batches = _own(data.batches)
    if batches == []:
        return seen, False
    needed = memory_needed(model, len(data.classes or ())) >> 20
    if needed > WORTH_TELLING:
        classes = len(data.classes or ())
        tell(language, "cli.inspect.memory", mebibytes=f"{needed:,}", classes=classes)
    how = given.reading()
    if ranks.size() > 1 and isinstance(data.batches, Sized):
        how["batch_limit"] = given.batches or len(data.batches)  # a rank's turns have no length
    with progress_bar(quiet) as progress:

        def show(images: int) -> None:
            progress(images, data.samples or 0, model_name)
            if ranks.asked_to_stop():
                raise KeyboardInterrupt

        show(int(seen.counts.sum()))
        try:
            accumulate(
                model, batches, into=seen, on_progress=show, memory_limit=memory_limit << 20,
                **how,
            )  # fmt: skip
        except KeyboardInterrupt:
            if int((seen.counts > 0).sum()) < 2 or seen.incomplete:
                raise
            return seen, True
    if data.total is not None and ranks.rank() == 0:
        tell(language, "cli.inspect.part", data=data.name, images=data.samples, total=data.total)
    return seen, False


def _own(batches: Iterable[Any]) -> list[Any] | Iterable[Any]:
    """Give every rank its turn; a rank for which there is none gets an empty list."""
    from normscope.experiment import ranks

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
