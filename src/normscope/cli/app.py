"""What every command shares: the application, its options, how it reads and tells."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import console
from rich.segment import Segment

from normscope.errors import InputError
from normscope.files import json_text, shown
from normscope.report.messages import LANGUAGES, Lang, locale_language, say

if TYPE_CHECKING:
    from normscope.records.base import Record
    from normscope.report.document import Document
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

Html = Annotated[Path | None, typer.Option(help="Write the page here.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
LangOption = Annotated[
    str, typer.Option("--lang", help="en or zh; the default follows the locale.")
]
LOCALE = locale_language()


class Console(console.Console):
    """Rich's console; names that come out of files cannot give the terminal orders."""

    def render(self, *args: Any, **kwargs: Any) -> Iterator[Segment]:
        """As rich, with every text in printable characters."""
        for segment in super().render(*args, **kwargs):
            text = segment.text if segment.control else shown(segment.text, keep="\n")
            yield segment if text == segment.text else Segment(text, segment.style)


def present(
    record: "Record | dict[str, Any]",
    document: "Document",
    language: Lang,
    *,
    as_json: bool,
    html: Path | None = None,
) -> None:
    """Show a record on stdout, as text or as JSON, and write its page where that is asked for."""
    if html is not None:
        from normscope.files import write_whole
        from normscope.report.html import page

        write_whole(html, page(document, language))
    if as_json:
        text = json_text(record) if isinstance(record, dict) else record.to_json()
        sys.stdout.write(text + "\n")
    else:
        from normscope.report.terminal import show

        show(document, language, Console())
    if html is not None:
        tell(language, "cli.page", path=html)


@contextmanager
def progress_bar(quiet: bool, batches: int | None = None) -> Iterator["Progress"]:
    """Show a bar with the time left on stderr, on a terminal only.

    It is called with how many steps are done, of how many (0: unknown), and a text. A step back
    begins another part, whose time is measured anew.

    Args:
        quiet: show nothing.
        batches: stands for an unknown number of steps.
    """
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
    )
    console = Console(stderr=True)
    # FORCE_COLOR makes a terminal of a log
    quiet = quiet or not sys.stderr.isatty() or console.is_dumb_terminal
    with progress.Progress(*columns, console=console, disable=quiet, transient=True) as bars:
        task = bars.add_task("", total=None)

        def show(done: int, total: int, message: str) -> None:
            if done < bars.tasks[task].completed:
                bars.reset(task)
            bars.update(task, completed=done, total=total or batches, description=message)

        yield show


def known_language(lang: str) -> Lang:
    """The language, or one sentence on which there are."""
    for known in LANGUAGES:
        if lang == known:
            return known
    raise InputError(f"--lang is {lang!r}; it can be {' or '.join(LANGUAGES)}")


def numbers(option: str, text: str) -> list[float]:
    """What an option holds, as numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as problem:
        raise InputError(
            f"{option} is {text!r}; numbers with commas between them are needed: 50,52,54"
        ) from problem


def names(text: str) -> tuple[str, ...]:
    """The parts of a text with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def tell(language: Lang, key: str, **values: object) -> None:
    """One message on stderr."""
    # on stderr: with --json stdout is one document
    Console(stderr=True, highlight=False).print(
        say(language, key, **values), markup=False, soft_wrap=True
    )
