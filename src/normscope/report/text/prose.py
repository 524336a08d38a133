"""Headings, tables and paragraphs of a width that reads well."""

import re
from collections.abc import Iterator

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from normscope.report.bilingual import Words, read
from normscope.report.messages import Lang
from normscope.report.tables import Table

WIDEST = 100  # prose is easier to read in lines of this length than over a whole wide terminal
GAP = 2  # cells between two columns
NARROW = 9  # characters of a column of numbers, where room is short

WIDE = r"\u2e80-\u9fff\uff00-\uffef"  # Chinese characters and punctuation
PIECE = re.compile(rf"[（“]*(?:[{WIDE}]|[^ {WIDE}“”]+)[，。；：、）”？！]*| +|.")


def title(console: Console, text: str) -> None:
    """A heading, with a line of air above."""
    console.print()
    paragraph(console, text, "bold cyan")


def grid(heads: list[str], texts: int = 1) -> Grid:
    """A table of numbers, to the right; its first columns hold `texts`, to the left."""
    table = Grid(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    for place, head in enumerate(heads):
        table.add_column(Text(head), justify="left" if place < texts else "right", overflow="fold")
    return table


def print_table(
    console: Console, lang: Lang, table: Table, texts: int = 1, heading: Words | None = None
) -> None:
    """A table under a heading, else its caption; where room is short, numbers break, names not."""
    title(console, read(table.caption if heading is None else heading, lang))
    heads = [read(head, lang) for head in table.head]
    body = [[read(cell.text, lang) for cell in row] for row in table.rows]
    lines = grid(heads, texts)
    for row in body:
        lines.add_row(*map(Text, row))
    widths = [max(map(cell_len, column)) for column in zip(heads, *body, strict=True)]
    room = console.width - sum(widths[:texts]) - GAP * (len(widths) - 1)
    limits = range(max(widths), NARROW, -1)
    fits = (n for n in limits if sum(min(width, n) for width in widths[texts:]) <= room)
    limit = next(fits, NARROW)
    for column in lines.columns[texts:]:
        column.max_width = limit
    console.print(lines)


def paragraph(console: Console, text: str, style: str = "", mark: str = "") -> None:
    """Prose in lines of readable length; `mark` stands before the first, the others align."""
    lines = wrapped(text, min(console.width, WIDEST) - len(mark))
    for place, line in enumerate(lines):
        indented = (mark if place == 0 else " " * len(mark)) + line
        console.print(Text(indented, style), no_wrap=True, overflow="ignore", crop=False)


def wrapped(text: str, width: int) -> Iterator[str]:
    """Break prose into lines of at most `width` cells.

    Chinese breaks between any two characters, except before closing and after opening
    punctuation; everything else at spaces only.
    """
    line = ""
    for piece in PIECE.findall(text):
        if line and cell_len(line + piece.rstrip()) > width:
            yield line.rstrip()
            line = ""
        line += piece if line else piece.lstrip()
    if line:
        yield line.rstrip()
