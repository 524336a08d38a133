"""A benchmark as text."""

from rich.console import Console
from rich.text import Text

from normscope.records import Bench
from normscope.report import speed
from normscope.report.messages import Lang, say
from normscope.report.tables import Table, Words
from normscope.report.text.prose import grid, paragraph, title


def print_bench(bench: Bench, lang: Lang, console: Console) -> None:
    """The verdict, every time, every error, how it was measured."""
    for finding in speed.of_bench(bench):
        paragraph(console, finding.detail.read(lang), "bold")
    for table in speed.by_part(bench):
        _print(table, 1, lang, console)
    if bench.accuracies:
        _print(speed.errors(bench), 4, lang, console)
    console.print()
    for text in speed.absent(bench):
        paragraph(console, text.read(lang), "dim")
    paragraph(console, say(lang, "bench.how", checked=bench.checked, repeats=bench.repeats), "dim")
    facts = ", ".join(f"{name} {value}" for name, value in bench.environment.items())
    paragraph(console, facts, "dim")


def _print(table: Table, texts: int, lang: Lang, console: Console) -> None:
    title(console, table.caption.read(lang))
    drawn = grid([_read(head, lang) for head in table.head], texts=texts)
    for row in table.rows:
        drawn.add_row(*(Text(_read(cell.text, lang)) for cell in row))
    console.print(drawn)


def _read(words: Words, lang: Lang) -> str:
    return words if isinstance(words, str) else words.read(lang)
