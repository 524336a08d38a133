"""Tables that rich lays out, and the prose of `terminal`."""

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from normscope.report.bilingual import Words, read
from normscope.report.document import Table
from normscope.report.messages import Lang
from normscope.report.terminal import GAP as GAP
from normscope.report.terminal import WIDEST as WIDEST
from normscope.report.terminal import paragraph as paragraph
from normscope.report.terminal import title as title

NARROW = 9  # characters of a column of numbers, where room is short


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
