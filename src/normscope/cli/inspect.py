"""normscope inspect."""

from collections.abc import Iterable, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normscope.cli.app import Shown
from normscope.cli.inputs import Inputs
from normscope.errors import FileError, InputError
from normscope.files import shown
from normscope.records.kinds import fitting

if TYPE_CHECKING:
    from normscope.lens import InspectionState


WORTH_TELLING = 256  # MiB of statistics
PASSES = "Saved passes"


def inspect(
    given: Inputs,
    show: Shown,
    files: Annotated[list[Path] | None, typer.Argument()] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    save: Annotated[Path | None, typer.Option(rich_help_panel=PASSES)] = None,
    resume: Annotated[bool, typer.Option(rich_help_panel=PASSES)] = False,
    merge: Annotated[bool, typer.Option(rich_help_panel=PASSES)] = False,
    compare: Annotated[bool, typer.Option(rich_help_panel=PASSES)] = False,
    memory_limit: Annotated[int, typer.Option(min=1)] = 4096,
) -> None:
    """Show what each norm layer does to each class of the data.

    Example: normscope inspect --model net.py:model --loader net.py:loader --html page.html

    Args:
        files: Only for --merge and --compare: files that --save wrote.
        batch_size: Samples per batch of --data; a loader has its own.
        save: Write the record to this .json file, and all that was counted beside it.
        resume: Continue the pass that --save began.
        merge: Merge passes over parts of the data into one.
        compare: Show what differs between two passes.
        memory_limit: Refuse to start where the statistics would take more MiB of memory.
    """
    if bool(given.model) + merge + compare != 1 or bool(files) != (merge or compare):
        raise InputError("give --model, or --merge with files, or --compare with two files")
    if given.model is not None and not given.has_data:
        given = replace(given, data="digits")
    given.check()
    if compare:
        record = _difference(files or [])
        show.present(record)
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
            seen, stopped = _passed(given, batch_size, save if resume else None, show, memory_limit)
            if ranks.size() > 1:
                seen.all_reduce()
    if rank > 0:  # rank 0 writes and tells
        raise typer.Exit(130 if stopped else 0)
    with _fitting(files[0] if files else save if resume else None):
        if save is not None:
            seen.save(save.with_suffix(SUFFIX))
        found = inspection(seen, release=True)
    if save is not None:
        found.save(save)
    show.present(found)
    if save is not None:
        show.tell("cli.saved", path=save)
    if stopped:
        show.tell("cli.inspect.stopped", images=found.images)
        raise typer.Exit(130)


def _passed(
    given: Inputs, batch_size: int, resume: Path | None, show: Shown, memory_limit: int
) -> tuple["InspectionState", bool]:
    """Run the model over the data; return the statistics, and whether Ctrl-C ended it early."""
    from normscope.experiment import ranks
    from normscope.lens import InspectionState, accumulate, memory_needed
    from normscope.lens.classes import TERCILES

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
    if given.labels == TERCILES and ranks.size() > 1:
        raise InputError(
            "--labels terciles reads all targets first, in one process; start it without torchrun"
        )
    batches = _own(data.batches)
    if batches == []:
        return seen, False
    needed = memory_needed(model, len(data.classes or ())) >> 20
    if needed > WORTH_TELLING:
        classes = len(data.classes or ())
        show.tell("cli.inspect.memory", mebibytes=f"{needed:,}", classes=classes)
    how = given.reading()
    if ranks.size() > 1 and isinstance(data.batches, Sized):
        how["batch_limit"] = given.batches or len(data.batches)  # a rank's turns have no length
    with show.bar() as progress:

        def told(images: int) -> None:
            progress(images, data.samples or 0, model_name)
            if ranks.asked_to_stop():
                raise KeyboardInterrupt

        told(seen.images)
        try:
            with _fitting(resume):
                accumulate(
                    model, batches, into=seen, on_progress=told, memory_limit=memory_limit << 20,
                    **how,
                )  # fmt: skip
        except KeyboardInterrupt:
            if not seen.images or seen.incomplete:
                raise
            return seen, True
    if data.total is not None and ranks.rank() == 0:
        show.tell("cli.inspect.part", data=data.name, images=data.samples, total=data.total)
    return seen, False


def _own(batches: Iterable[Any]) -> list[Any] | Iterable[Any]:
    """Return the batches of this rank; an empty list where there are too few."""
    from normscope.experiment import ranks

    if ranks.size() == 1:
        return batches
    mine = islice(batches, ranks.rank(), None, ranks.size())
    first = next(mine, None)
    return [] if first is None else chain([first], mine)


def _fitting(path: Path | None) -> AbstractContextManager[None]:
    return nullcontext() if path is None else fitting(path, "pass")


def _loaded(path: Path) -> "InspectionState":
    from normscope.lens import InspectionState
    from normscope.lens.state import beside

    return InspectionState.load(beside(path))


def _merged(files: list[Path]) -> "InspectionState":
    first, *rest = map(_loaded, files)
    for path, other in zip(files[1:], rest, strict=True):
        with fitting(path, "pass"):
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
