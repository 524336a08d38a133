"""Parts of every command: the application, shared options, messages and output."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer
from rich import console
from rich.segment import Segment

from normscope.cli.help import Group
from normscope.cli.language import spoken
from normscope.errors import InputError
from normscope.files import shown
from normscope.progress import Progress, bar
from normscope.report.messages import Lang, say

if TYPE_CHECKING:
    from normscope.records.base import Record

Bar = AbstractContextManager[Progress]
OUTPUT = "Output"

app = typer.Typer(
    name="normscope",
    cls=Group,
    help="Shows what batch normalisation does to the classes of a network, layer by layer; finds "
    "what is wrong with normalisation layers, and repairs it.\n\nnormscope COMMAND -h explains a "
    "command; normscope alone shows what to try first.",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 fine, 1 something was found or is not equal, 2 wrong use, 130 stopped.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Console(console.Console):
    """A console of Rich that prints control characters of names in files visibly."""

    def render(self, *args: Any, **kwargs: Any) -> Iterator[Segment]:
        """Render like Rich, with every text in printable characters."""
        for segment in super().render(*args, **kwargs):
            text = segment.text if segment.control else shown(segment.text, keep="\n")
            yield segment if text == segment.text else Segment(text, segment.style)


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """The option of every command: the language.

    Attributes:
        lang: Language of texts and pages: English or Chinese.
    """

    PANEL: ClassVar = OUTPUT

    lang: Annotated[Lang, typer.Option(default_factory=spoken, show_default="that of your locale")]

    def tell(self, key: str, **values: object) -> None:
        """Write one message to stderr."""
        tell(self.lang, key, **values)


@dataclass(frozen=True, kw_only=True)
class Printed(Spoken):
    """Options of commands that print a record: also as JSON.

    Attributes:
        as_json: Print the record as JSON instead of text.
    """

    as_json: Annotated[bool, typer.Option("--json")] = False

    def bar(self, batches: int | None = None, *, quiet: bool = False) -> "Bar":
        """Show a progress bar on a terminal, and none with --json; see `progress_bar`."""
        return progress_bar(self.as_json or quiet, batches)


@dataclass(frozen=True, kw_only=True)
class Shown(Printed):
    """Options of commands that show a record: as text, as JSON, as a page.

    Attributes:
        html: Also write a page to open in a browser, to this file.
    """

    html: Path | None = None

    def present(self, *records: "Record") -> None:
        """Print what a command found on stdout, and write its page if --html names a file.

        One record, or a diagnosis and the repair after it.
        """
        from normscope.report import document_of

        document = document_of(*records)
        if self.html is not None:
            from normscope.files import write_whole
            from normscope.report.html import page

            write_whole(self.html, page(document, self.lang))
        if self.as_json:
            from normscope.records.kinds import json_of

            sys.stdout.write(json_of(*records) + "\n")
        else:
            from normscope.report.terminal import show

            show(document, self.lang, Console())
        if self.html is not None:
            self.tell("cli.page", path=self.html)


def progress_bar(quiet: bool, batches: int | None = None) -> Bar:
    """Show a progress bar on a terminal, without delay; see `progress.bar`.

    Args:
        quiet: show nothing.
        batches: the number of steps, where it is known.
    """
    wanted = False if quiet else None
    return bar(wanted, batches or 0, patience=0, console=Console(stderr=True))


def numbers(option: str, text: str) -> list[float]:
    """Split an option at its commas into numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as problem:
        raise InputError(
            f"{option} is {text!r}; numbers with commas between them are needed: 50,52,54"
        ) from problem


def names(text: str) -> tuple[str, ...]:
    """Split a text at its commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def tell(language: Lang, key: str, **values: object) -> None:
    """Print one message on stderr."""
    # on stderr: with --json stdout is one document
    Console(stderr=True, highlight=False).print(
        say(language, key, **values), markup=False, soft_wrap=True
    )
