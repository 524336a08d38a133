"""normscope report, and what train shows at its end."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from normscope.cli.app import Console, Printed, Shown
from normscope.records import Run
from normscope.records.kinds import fitting


def report(
    show: Shown,
    file: Annotated[Path, typer.Argument()],
) -> None:
    """Show again what a command saved, as text or as a page.

    Args:
        file: What --save, --json or record.save() wrote, of any command; or a run folder.
    """
    from normscope.records import load_all

    record, *others = load_all(file)
    with fitting(file, "record"):
        if isinstance(record, Run):
            folder = file if file.is_dir() else file.parent
            finish(record, folder, show, show.html)
            return
        show.present(record, *others)


def finish(run: Run, folder: Path, show: Printed, html: Path | None = None) -> None:
    """Write the page of a run and show its tables."""
    from normscope.files import write_whole
    from normscope.report import run as report
    from normscope.report.html import page

    document, path = report.document(run), html or folder / "report.html"
    write_whole(path, page(document, show.lang))
    if show.as_json:
        sys.stdout.write(run.to_json() + "\n")
        return
    from normscope.report import inspection, terminal

    console = Console()
    terminal.show(document, show.lang, console)
    if run.inspection is not None:
        terminal.show(inspection.document(run.inspection), show.lang, console)
    show.tell("cli.page", path=path)
