"""Documents in a terminal of any width, in English or Chinese.

Prose breaks at spaces, and Chinese between characters. A table that is wider than the terminal
is folded: each row is a block of its own, of heads with their values. No number and no word of
a cell is ever split; a name that is longer than a line stands on one of its own and runs over.
"""

import re
from collections.abc import Iterator
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text as Styled

from normscope.errors import shown
from normscope.report.bilingual import Words, read, said
from normscope.report.charts import numberline
from normscope.report.document import (
    Block,
    Cell,
    Document,
    Figures,
    Finding,
    Listing,
    NumberLine,
    Paragraph,
    Section,
    Sound,
    Table,
    for_medium,
)
from normscope.report.messages import Lang, say

WIDEST = 100  # prose is easier to read in lines of this length than over a whole wide terminal
GAP = 2  # cells between two columns
NARROWEST = 20  # cells that a column of sentences needs to be read

WIDE = r"\u2e80-\u9fff\uff00-\uffef"  # Chinese characters and punctuation
PIECE = re.compile(rf"[（“]*(?:[{WIDE}]|[^ {WIDE}“”]+)[，。；：、）”？！]*| +|.")

STYLES: Final = {"": "", "lead": "bold", "quiet": "dim", "notice": "yellow"}
COLOURS: Final = {"good": "green bold", "note": "bold", "warn": "yellow bold", "error": "red bold"}


def show(document: Document, lang: Lang, console: Console) -> None:
    """Print a document: the answer first, without pictures and what is folded."""
    _Printer(lang, console).document(document)


class _Printer:
    """The blocks of a document, each printed in its way."""

    def __init__(self, lang: Lang, console: Console) -> None:
        self.lang, self.console = lang, console
        self.explained = False  # what a folded table is

    def words(self, words: Words) -> str:
        """Read words in the language of this document, harmless for a terminal."""
        return shown(read(words, self.lang))

    def document(self, document: Document) -> None:
        opening = Section(document.title, document.opening)
        self.section(opening, heading=False)
        for place, section in enumerate(document.sections):
            self.section(section, heading=place > 0 or bool(document.opening))
        if document.footer:
            self.console.print()
        for words in document.footer:
            paragraph(self.console, self.words(words), "dim")
        self.console.print()

    def section(self, section: Section, heading: bool = True) -> None:
        blocks = [b for b in for_medium(section.blocks, "terminal") if _printed(b)]
        if not blocks:
            return
        if heading:
            title(self.console, self.words(section.title))
        for place, block in enumerate(blocks):
            if isinstance(block, Table) and place:
                self.console.print()
            self.block(block, section)

    def block(self, block: Block, section: Section) -> None:
        if isinstance(block, Paragraph):
            paragraph(self.console, self.words(block.text), STYLES[block.style])
        elif isinstance(block, Finding):
            self.finding(block)
        elif isinstance(block, Listing):
            for place, item in enumerate(block.items, 1):
                mark = f"{place}. " if block.ordered else "- "
                paragraph(self.console, self.words(item), mark=mark)
        elif isinstance(block, Table):
            self.table(block, captioned=block.caption != section.title)
        elif isinstance(block, NumberLine):
            self.line(block)
        elif isinstance(block, Sound):
            seconds = f"{block.seconds:.1f}"
            line = said("page.sound.line", name=block.name, seconds=seconds)
            paragraph(self.console, self.words(line), mark="  ")
        elif isinstance(block, Section):
            self.section(block)
        elif isinstance(block, Figures):
            for part in block.blocks:
                self.block(part, section)

    def line(self, line: NumberLine) -> None:
        if len(line.classes) <= len(numberline.SIGNS):
            styled = numberline.text(line, min(self.console.width, WIDEST))
            self.console.print(styled, no_wrap=True, overflow="ignore", crop=False)

    def finding(self, finding: Finding) -> None:
        details = [self.words(detail) for detail in finding.details]
        if finding.headline is None:
            for place, detail in enumerate(details):
                paragraph(self.console, detail, "" if place else "bold")
            return
        self.console.print()
        paragraph(self.console, self.words(finding.headline), COLOURS[finding.style])
        for detail in details:
            paragraph(self.console, detail, mark="  ")

    def table(self, table: Table, captioned: bool) -> None:
        if captioned:
            paragraph(self.console, self.words(table.caption), "dim")
        remarks: list[str] = []
        body = [[self.cell(cell, remarks) for cell in row] for row in table.rows]
        heads = [self.words(head) for head in table.head]
        prose = [any(row[c].style == "text" for row in table.rows) for c in range(len(heads))]
        widths = _widths(heads, body, prose, self.console.width)
        folded = widths is None
        lines = (
            _folded(heads, body, prose, table.keys, self.console.width)
            if widths is None
            else _aligned(heads, body, prose, table.keys, widths)
        )
        if folded and not self.explained:
            paragraph(self.console, say(self.lang, "table.folded"), "dim")
            self.explained = True
        bold = [style == "best" for style in table.styles]
        for place, line, style in lines:
            strong = "bold" if place is not None and bold and bold[place] else style
            self.console.print(
                Styled(line.rstrip(), strong), no_wrap=True, overflow="ignore", crop=False
            )
        for place, remark in enumerate(remarks, 1):
            paragraph(self.console, remark, "dim", mark="*" * place + " ")

    def cell(self, cell: Cell, remarks: list[str]) -> str:
        text = self.words(cell.text)
        if cell.tag is None:
            return text
        remark = self.words(cell.tag)
        if remark not in remarks:
            remarks.append(remark)
        return text + "*" * (remarks.index(remark) + 1)


def _printed(block: Block) -> bool:
    if isinstance(block, Figures):
        return any(map(_printed, block.blocks))
    return isinstance(block, Paragraph | Finding | Listing | Table | NumberLine | Section | Sound)


# --- tables -----------------------------------------------------------------------------------

Line = tuple[int | None, str, str]  # of which row, the text, how it looks


def _widths(
    heads: list[str], body: list[list[str]], prose: list[bool], room: int
) -> list[int] | None:
    """Choose the width of every column; None where they cannot stand side by side.

    Heads break at spaces, cells of sentences anywhere that prose does, all others nowhere.
    """
    columns = list(zip(*body, strict=True)) if body else [()] * len(heads)
    full = [max(map(cell_len, column), default=0) for column in columns]
    least = [
        max(_longest(head), max(map(_longest, column), default=0) if p else whole)
        for head, column, whole, p in zip(heads, columns, full, prose, strict=True)
    ]
    wanted = [max(cell_len(head), whole) for head, whole in zip(heads, full, strict=True)]
    left = room - GAP * (len(heads) - 1)
    if sum(wanted) <= left:
        return wanted
    # what breaks in many short lines reads worse than a folded table
    least = [
        max(few, min(whole, NARROWEST)) if p else few
        for few, whole, p in zip(least, full, prose, strict=True)
    ]
    if sum(least) > left:
        return None
    widths, spare = least, left - sum(least)
    while spare and (open_ := [c for c in range(len(heads)) if widths[c] < wanted[c]]):
        thinnest = min(open_, key=lambda c: widths[c] / wanted[c])
        widths[thinnest] += 1
        spare -= 1
    return widths


def _longest(text: str) -> int:
    """Measure the longest word; Chinese counts as one, as far as it has no spaces."""
    return max(map(cell_len, text.split(" ")), default=0)


def _aligned(
    heads: list[str], body: list[list[str]], prose: list[bool], keys: int, widths: list[int]
) -> Iterator[Line]:
    """Lay a table out in columns: the first ones and prose to the left, numbers to the right."""
    left = [c < keys or prose[c] for c in range(len(heads))]

    def lines(cells: list[list[str]], bottom: bool = False) -> Iterator[str]:
        height = max(map(len, cells))
        padded = [
            [""] * (height - len(cell)) + cell if bottom else cell + [""] * (height - len(cell))
            for cell in cells
        ]
        for parts in zip(*padded, strict=True):
            yield (" " * GAP).join(
                _justified(part, width, to_left=to_left)
                for part, width, to_left in zip(parts, widths, left, strict=True)
            )

    for line in lines([_at_spaces(h, w) for h, w in zip(heads, widths, strict=True)], bottom=True):
        yield None, line, "bold"
    yield None, "─" * (sum(widths) + GAP * (len(widths) - 1)), ""
    for place, row in enumerate(body):
        cells = [
            list(wrapped(text, width)) or [""] if p else [text]
            for text, width, p in zip(row, widths, prose, strict=True)
        ]
        for line in lines(cells):
            yield place, line, ""


def _folded(
    heads: list[str], body: list[list[str]], prose: list[bool], keys: int, room: int
) -> Iterator[Line]:
    """Lay each row out as a block: its name, then heads with their values, aligned by column."""
    beside = [c for c in range(1, len(heads)) if not prose[c]]
    widths = {c: max((cell_len(row[c]) for row in body), default=0) for c in beside}
    shelves: list[list[int]] = []
    used = room
    for c in beside:
        need = cell_len(heads[c]) + 1 + widths[c] + GAP
        if used + need > room + GAP or not shelves:
            shelves.append([])
            used = GAP
        shelves[-1].append(c)
        used += need
    if heads[0]:
        yield None, f"▸ {heads[0]}", "dim"
    for place, row in enumerate(body):
        for at, line in enumerate(wrapped(row[0], room - GAP)):
            yield place, (" " * GAP if at else "▸ ") + line, "bold"
        for shelf in shelves:
            pairs = (
                f"{heads[c] if row[c] else ' ' * cell_len(heads[c])} "
                + _justified(row[c], widths[c], to_left=c < keys)
                for c in shelf
            )
            if any(row[c] for c in shelf):
                yield place, " " * GAP + (" " * GAP).join(pairs), ""
        for c in (c for c in range(1, len(heads)) if prose[c] and row[c]):
            for line in wrapped(f"{heads[c]}: {row[c]}", room - GAP):
                yield place, " " * GAP + line, ""


def _justified(text: str, width: int, *, to_left: bool) -> str:
    air = " " * (width - cell_len(text))
    return text + air if to_left else air + text


def _at_spaces(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and cell_len(lines[-1]) + 1 + cell_len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


# --- prose ------------------------------------------------------------------------------------


def title(console: Console, text: str) -> None:
    """Print a heading, with a line of air above."""
    console.print()
    paragraph(console, text, "bold cyan")


def paragraph(console: Console, text: str, style: str = "", mark: str = "") -> None:
    """Print prose in lines of readable length; after `mark` before the first all are aligned."""
    lines = wrapped(text, min(console.width, WIDEST) - len(mark))
    for place, line in enumerate(lines):
        indented = (mark if place == 0 else " " * len(mark)) + line
        console.print(Styled(indented, style), no_wrap=True, overflow="ignore", crop=False)


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
