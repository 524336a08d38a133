"""A diagnosis, a repair and a check's explanation as text."""

from rich.console import Console

from normscope.records import Diagnosis, Repaired
from normscope.report import checkup
from normscope.report.bilingual import read, said
from normscope.report.messages import Lang, say
from normscope.report.text.prose import paragraph, print_table

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
        where = read(checkup.place(group), lang)
        paragraph(console, f"{where}: {checkup.evidence(first).read(lang)}", mark="  ")
        do = checkup.advice(first.code, first.facts.get("kind", ""))
        paragraph(console, do.read(lang), mark="  ")
    if record.causes and record.worst not in (None, "info"):
        print_table(console, lang, checkup.causes(record), 2, said("doctor.section.causes"))
    if record.by_layer and record.worst not in (None, "info"):
        print_table(console, lang, checkup.layers(record), 1, said("doctor.section.layers"))
    if record.skipped:
        print_table(console, lang, checkup.skipped(record), 2, said("doctor.section.skipped"))
    console.print()


def print_repair(record: Repaired, lang: Lang, console: Console) -> None:
    """What was tried, what held-out samples said, and what was kept."""
    for number, text in enumerate(checkup.outcome(record)):
        paragraph(console, text.read(lang), "" if number else "bold")
    if record.trials:
        print_table(console, lang, checkup.trials(record), 3, said("doctor.section.trials"))
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
