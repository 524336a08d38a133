"""A run as text."""

from dataclasses import replace

from rich.console import Console
from rich.text import Text

from normscope.records import Run
from normscope.report import tables, verdict
from normscope.report.bilingual import read
from normscope.report.document import Cell
from normscope.report.messages import Lang
from normscope.report.text.prose import grid, paragraph, title


def print_run(run: Run, lang: Lang, console: Console) -> None:
    """The verdict, then the comparison, by domain too where there are domains."""
    for finding in verdict.of_run(replace(run, inspection=None)):
        if finding.headline is not None:
            paragraph(console, finding.headline.read(lang), "bold")
        paragraph(console, finding.detail.read(lang))
    shown = [tables.comparison(run)]
    if run.config.domains:
        shown.append(tables.domains(run))
    for table in shown:
        title(console, table.caption.read(lang))
        drawn = grid([read(head, lang) for head in table.head])
        drawn.columns[0].no_wrap = True
        remarks: dict[str, None] = {}  # an ordered set
        for row in table.rows:
            remarks |= {cell.tag.read(lang): None for cell in row if cell.tag is not None}
            drawn.add_row(*(_cell(cell, list(remarks), lang) for cell in row))
        console.print(drawn)
        for place, remark in enumerate(remarks, start=1):
            paragraph(console, remark, "dim", mark="*" * place + " ")
    console.print()


def _cell(cell: Cell, remarks: list[str], lang: Lang) -> Text:
    stars = "" if cell.tag is None else "*" * (remarks.index(cell.tag.read(lang)) + 1)
    return Text(read(cell.text, lang) + stars)
