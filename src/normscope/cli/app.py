"""What every command shares: the application, its options, how it reads and tells."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import console
from rich.segment import Segment

from normscope.errors import InputError
from normscope.files import json_text, shown
from normscope.progress import Progress, bar
from normscope.report.messages import LANGUAGES, Lang, locale_language, say

if TYPE_CHECKING:
    from normscope.records.base import Record
    from normscope.report.document import Document

app = typer.Typer(
    name="normscope",
    help="Shows what batch normalisation does to the classes of a network, layer by layer; finds "
    "what is wrong with normalisation layers, and repairs it.",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 fine, 1 something was found or is not equal, 2 wrong use, 130 stopped.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Html = Annotated[
    Path | None, typer.Option(help="Also write a page to open in a browser, to this file.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON instead of text.")]
LangOption = Annotated[str, typer.Option("--lang", help="Language of texts: en or zh.")]
LOCALE = locale_language()


class Console(console.Console):
    """Rich's console; names that come out of files cannot give the terminal orders."""

    def render(self, *args: Any, **kwargs: Any) -> Iterator[Segment]:
        """Render as rich does, with every text in printable characters."""
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


def progress_bar(quiet: bool, batches: int | None = None) -> AbstractContextManager[Progress]:
    """Show a bar on a terminal, at once; see `progress.bar`.

    Args:
        quiet: show nothing.
        batches: stands for an unknown number of steps.
    """
    wanted = False if quiet else None
    return bar(wanted, batches or 0, patience=0, console=Console(stderr=True))


def known_language(lang: str) -> Lang:
    """Return the language, or say in one sentence which there are."""
    for known in LANGUAGES:
        if lang == known:
            return known
    raise InputError(f"--lang is {lang!r}; it can be {' or '.join(LANGUAGES)}")


def numbers(option: str, text: str) -> list[float]:
    """Read an option as numbers."""
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
