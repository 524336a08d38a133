"""normscope report, and what train shows at its end."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from normscope.cli.app import LOCALE, Console, Html, Json, LangOption, known_language, tell
from normscope.records import Run
from normscope.report.messages import Lang


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, or its run.json.")],
    html: Html = None,
    as_json: Json = False,
    lang: LangOption = LOCALE,
) -> None:
    """Show a finished run again: the tables here, the page in a file."""
    language = known_language(lang)
    from normscope.files import read_text

    path = run / "run.json" if run.is_dir() else run
    record = Run.from_json(read_text(path, "run record"))
    finish(record, path.parent, as_json, language, html)


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
