"""A progress bar for long calls, in notebooks and on terminals; none in a log.

One bar is shown at a time: what a long call calls has none of its own.
"""

import html
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich import progress
from rich.console import Console

from normscope.errors import shown

Progress = Callable[[int, int, str], None]  # done, in all (0: unknown), what is next
PATIENCE = 0.5  # seconds before a bar of a library call appears
OFTEN = 0.1  # seconds between two updates in a notebook

_active: list[object] = []  # the bar that is shown, if any


@contextmanager
def bar(
    wanted: bool | None = None,
    total: int = 0,
    *,
    patience: float | None = None,
    console: Console | None = None,
) -> Iterator[Progress]:
    """Show a bar with the remaining time while the body runs, then remove it.

    It is called with how many steps are done, of how many (0: unknown), and a text. A step back
    begins another part, whose time is measured anew.

    Args:
        wanted: None: in a notebook, or where stderr is a terminal.
        total: stands for an unknown number of steps.
        patience: seconds in which it does not yet appear; None: PATIENCE.
        console: of rich, where the bar is drawn; None: stderr.
    """
    if wanted is False or _active:
        yield lambda done, total, message: None
        return
    drawn: _Notebook | _Terminal | None = None
    if in_notebook():
        drawn = _Notebook()
    else:
        console = console or Console(stderr=True)
        # FORCE_COLOR makes a terminal of a log
        if wanted or (sys.stderr.isatty() and not console.is_dumb_terminal):
            drawn = _Terminal(console)
    if drawn is None:
        yield lambda done, total, message: None
        return
    begun, bar_ = monotonic(), drawn
    wait = PATIENCE if patience is None else patience

    def show(done: int, of: int, message: str) -> None:
        if monotonic() - begun >= wait:
            bar_.show(done, of or total, shown(message))

    _active.append(bar_)
    try:
        yield show
    finally:
        _active.remove(bar_)
        bar_.close()


def wanted(progress: bool | None, on_progress: object) -> bool | None:
    """Decide whether a call shows a bar: not where the caller has an `on_progress` of its own."""
    return False if progress is None and on_progress is not None else progress


@contextmanager
def steps(
    progress: bool | None, on_progress: Progress | None, total: int = 0
) -> Iterator[Progress]:
    """Report steps to the bar and to the caller's function."""
    with bar(wanted(progress, on_progress), total) as show:

        def told(done: int, of: int, message: str) -> None:
            show(done, of, message)
            if on_progress is not None:
                on_progress(done, of, message)

        yield told


def in_notebook() -> bool:
    """Return whether this runs in the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def expected(batches: Iterable[Any] | None, limit: int | None = None) -> int:
    """Return how many batches will be read; 0 if unknown."""
    try:
        count = len(batches)  # type: ignore[arg-type]
    except Exception:  # a loader over an iterable data set has a length that raises
        return limit or 0
    return min(count, limit or count)


class _Terminal:
    """A bar of Rich, which is removed when it is closed."""

    def __init__(self, console: Console) -> None:
        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(elapsed_when_finished=True),
        )
        self.bars = progress.Progress(*columns, console=console, transient=True)
        self.task = self.bars.add_task("", total=None)

    def show(self, done: int, total: int, message: str) -> None:
        self.bars.start()
        if done < self.bars.tasks[self.task].completed:
            self.bars.reset(self.task)
        self.bars.update(self.task, completed=done, total=total or None, description=message)

    def close(self) -> None:
        self.bars.stop()


class _Notebook:
    """An HTML progress bar in the output of a cell, without widgets."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.begun = self.last = monotonic()
        self.done = 0

    def show(self, done: int, total: int, message: str) -> None:
        now = monotonic()
        if done < self.done:
            self.begun = now
        self.done = done
        if self.handle is not None and now - self.last < OFTEN and done != total:
            return
        self.last = now
        self._write(_cell(done, total, message, now - self.begun))

    def close(self) -> None:
        if self.handle is not None:
            self._write("")

    def _write(self, text: str) -> None:
        from IPython.display import HTML, display  # there is one: a notebook asks

        if self.handle is None:
            self.handle = display(HTML(text), display_id=True)
        else:
            self.handle.update(HTML(text))


def _cell(done: int, total: int, message: str, seconds: float) -> str:
    known = f' value="{done}" max="{total}"' if total else ""
    count = f"{done}/{total}" if total else str(done)
    left = f", {seconds * (total - done) / done:.0f} s" if total and done else ""
    return f"<progress{known}></progress> {html.escape(message)} {count}{left}"
