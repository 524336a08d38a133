"""normscope report, and what train shows at its end."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from normscope.cli.app import LOCALE, Console, Html, Json, LangOption, known_language, present, tell
from normscope.records import CHECKUP, Run
from normscope.report.messages import Lang


def report(
    file: Annotated[
        Path,
        typer.Argument(
            help="What --save, --json or record.save() wrote, of any command; or a run folder."
        ),
    ],
    html: Html = None,
    as_json: Json = False,
    lang: LangOption = LOCALE,
) -> None:
    """Show what any command saved: as text here, as a page with --html."""
    language = known_language(lang)
    from normscope.records import load_all
    from normscope.report import document_of

    record, *others = load_all(file)
    if isinstance(record, Run):
        folder = file if file.is_dir() else file.parent
        finish(record, folder, as_json, language, html)
        return
    shown: Any = record
    if others:  # as it was written
        shown = {"kind": CHECKUP, **{r.kind: json.loads(r.to_json()) for r in (record, *others)}}
    present(shown, document_of(record, *others), language, as_json=as_json, html=html)


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
