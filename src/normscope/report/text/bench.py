"""A benchmark as text."""

from rich.console import Console

from normscope.records import Bench
from normscope.report import speed
from normscope.report.messages import Lang, say
from normscope.report.text.prose import paragraph, print_table


def print_bench(bench: Bench, lang: Lang, console: Console) -> None:
    """The verdict, every time, every error, how it was measured."""
    for finding in speed.of_bench(bench):
        paragraph(console, finding.detail.read(lang), "bold")
    for table in speed.by_part(bench):
        print_table(console, lang, table)
    if bench.accuracies:
        print_table(console, lang, speed.errors(bench), texts=4)
    console.print()
    for text in speed.absent(bench):
        paragraph(console, text.read(lang), "dim")
    paragraph(console, say(lang, "bench.how", checked=bench.checked, repeats=bench.repeats), "dim")
    facts = ", ".join(f"{name} {value}" for name, value in bench.environment.items())
    paragraph(console, facts, "dim")
