"""A diagnosis, a repair and a check's explanation as text."""

from rich.console import Console
from rich.text import Text as Cells

from normscope.records import Diagnosis, Repaired
from normscope.report import checkup
from normscope.report.bilingual import Text
from normscope.report.messages import Lang, say
from normscope.report.tables import Table
from normscope.report.text.prose import grid, paragraph, title

NARROW = 9  # characters of a column of numbers, where room is short
COLOURS = {"error": "red", "warning": "yellow", "info": "dim"}


def print_diagnosis(record: Diagnosis, lang: Lang, console: Console) -> None:
    """The verdict, the findings with what to do, the causes, and what was not checked."""
    for number, text in enumerate(checkup.verdict(record)):
        paragraph(console, text.read(lang), "" if number else "bold")
    for group in checkup.grouped(record.findings):
        first = group[0]
        console.print()
        grade = say(lang, f"doctor.severity.{first.severity}")
        head = f"{first.code} {grade}: {checkup.title(first.code).read(lang)}"
        paragraph(console, head, COLOURS[first.severity] + " bold")
        where = checkup.place(group)
        where = where.read(lang) if isinstance(where, Text) else where
        paragraph(console, f"{where}: {checkup.evidence(first).read(lang)}", mark="  ")
        paragraph(console, checkup.advice(first.code).read(lang), mark="  ")
    if record.causes and record.worst not in (None, "info"):
        _section(console, lang, "doctor.section.causes", checkup.causes(record), texts=2)
    if record.by_layer and record.worst not in (None, "info"):
        _section(console, lang, "doctor.section.layers", checkup.layers(record), texts=1)
    if record.skipped:
        _section(console, lang, "doctor.section.skipped", checkup.skipped(record), texts=2)
    console.print()


def print_repair(record: Repaired, lang: Lang, console: Console) -> None:
    """What was tried, what held-out samples said, and what was kept."""
    for number, text in enumerate(checkup.outcome(record)):
        paragraph(console, text.read(lang), "" if number else "bold")
    if record.trials:
        _section(console, lang, "doctor.section.trials", checkup.trials(record), texts=3)
    for code in record.advice:
        console.print()
        paragraph(console, f"{code}: {checkup.title(code).read(lang)}", "yellow bold")
        paragraph(console, say(lang, "doctor.repair.advice"), mark="  ")
        paragraph(console, checkup.advice(code).read(lang), mark="  ")
    console.print()


def print_explanation(code: str, text: str, lang: Lang, console: Console) -> None:
    """What a check looks for, why, and what to do."""
    paragraph(console, f"{code}: {checkup.title(code).read(lang)}", "bold")
    console.print()
    paragraph(console, text)


def _section(console: Console, lang: Lang, key: str, table: Table, texts: int) -> None:
    title(console, say(lang, key))
    heads = [h.read(lang) if isinstance(h, Text) else h for h in table.head]
    lines = grid(heads, texts=texts)
    for row in table.rows:
        cells = [c.text.read(lang) if isinstance(c.text, Text) else c.text for c in row]
        lines.add_row(*(Cells(cell) for cell in cells))
    wanted = console.measure(lines, options=console.options.update(width=1000)).maximum
    if wanted > console.width:
        # numbers go below each other rather than names apart
        for column in lines.columns[texts:]:
            column.max_width = NARROW
    console.print(lines)
