"""normscope report, and what train shows at its end."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from normscope.cli.app import (
    LOCALE,
    Console,
    Html,
    Json,
    LangOption,
    known_language,
    present,
    tell,
)
from normscope.errors import InputError
from normscope.files import read_json, read_text, shown
from normscope.records import (
    Bench,
    Converted,
    Diagnosis,
    Difference,
    Inspection,
    Lesson,
    Repaired,
    Run,
)
from normscope.records.base import Record
from normscope.report.messages import Lang

RECORDS = (Bench, Converted, Diagnosis, Difference, Lesson, Repaired, Run)


def report(
    saved: Annotated[
        Path, typer.Argument(help="A run folder, or a record that --save or --json wrote.")
    ],
    html: Html = None,
    as_json: Json = False,
    lang: LangOption = LOCALE,
) -> None:
    """Show a saved record again: the text here, the page in a file."""
    language = known_language(lang)
    path = saved / "run.json" if saved.is_dir() else saved
    record = _read(path)
    if isinstance(record, Run):
        finish(record, path.parent, as_json, language, html)
        return
    from normscope.report import document_of

    present(record, document_of(record), language, as_json=as_json, html=html)


def _read(path: Path) -> Record:
    """Read a record of any kind."""
    content = read_json(path)
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind == Inspection.kind:  # may have tables beside it
        return Inspection.load(path)
    for known in RECORDS:
        if kind == known.kind:
            return known.from_json(read_text(path, f"{kind} record"))
    kinds = ", ".join(sorted((Inspection.kind, *(known.kind for known in RECORDS))))
    raise InputError(f"{shown(path)} is no record that can be shown; its kind must be {kinds}")


def finish(run: Run, folder: Path, as_json: bool, language: Lang, html: Path | None = None) -> None:
    """Write the page of a run and show its tables."""
    from normscope.files import write_whole
    from normscope.report import run as report
    from normscope.report.html import page

    document, path = report.document(run), html or folder / "report.html"
    write_whole(path, page(document, language))
    if as_json:
        sys.stdout.write(run.to_json() + "\n")
        return
    from normscope.report import inspection, terminal

    console = Console()
    terminal.show(document, language, console)
    if run.inspection is not None:
        terminal.show(inspection.document(run.inspection), language, console)
    tell(language, "cli.page", path=path)
