"""Documents in a terminal of any width, in English or Chinese.

Prose breaks at spaces, and Chinese between characters. A table that is wider than the terminal
is folded: each row is a block of its own, of heads with their values. No number and no word of
a cell is ever split; a name that is longer than a line stands on one of its own and runs over.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text as Styled

from normscope.errors import shown
from normscope.report import document as doc
from normscope.report.bilingual import Words, read, tr
from normscope.report.charts import numberline
from normscope.report.messages import Lang, say

WIDEST = 100  # prose is easier to read in lines of this length than over a whole wide terminal
GAP = 2  # cells between two columns
NARROWEST = 20  # cells that a column of sentences needs to be read

WIDE = r"\u2e80-\u9fff\uff00-\uffef"  # Chinese characters and punctuation
PIECE = re.compile(rf"[（“]*(?:[{WIDE}]|[^ {WIDE}“”]+)[，。；：、）”？！]*| +|.")

STYLES: Final = {"": "", "lead": "bold", "quiet": "dim", "notice": "yellow"}
COLOURS: Final = {"good": "green bold", "note": "bold", "warn": "yellow bold", "error": "red bold"}


def show(document: doc.Document, lang: Lang, console: Console) -> None:
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

    def document(self, document: doc.Document) -> None:
        self.section(doc.Section(document.title, document.opening))  # the question, the answer
        for place, section in enumerate(document.sections):
            self.section(section, heading=place > 0 or bool(document.opening))
        if document.footer:
            self.console.print()
        for words in document.footer:
            paragraph(self.console, self.words(words), "dim")
        self.console.print()

    def section(self, section: doc.Section, heading: bool = True) -> None:
        blocks = [b for b in doc.for_medium(section.blocks, "terminal") if _printed(b)]
        if not blocks:
            return
        if heading:
            title(self.console, self.words(section.title))
        for place, block in enumerate(blocks):
            if isinstance(block, doc.Table) and place:
                self.console.print()
            self.block(block, section)

    def block(self, block: doc.Block, section: doc.Section) -> None:
        if isinstance(block, doc.Paragraph):
            paragraph(self.console, self.words(block.text), STYLES[block.style])
        elif isinstance(block, doc.Finding):
            self.finding(block)
        elif isinstance(block, doc.Listing):
            for place, item in enumerate(block.items, 1):
                mark = f"{place}. " if block.ordered else "- "
                paragraph(self.console, self.words(item), mark=mark)
        elif isinstance(block, doc.Table):
            self.table(block, captioned=block.caption != section.title)
        elif isinstance(block, doc.NumberLine):
            self.line(block)
        elif isinstance(block, doc.Sound):
            seconds = f"{block.seconds:.1f}"
            line = tr("page.sound.line", name=block.name, seconds=seconds)
            paragraph(self.console, self.words(line), mark="  ")
        elif isinstance(block, doc.Section):
            self.section(block)
        elif isinstance(block, doc.Figures):
            for part in block.blocks:
                self.block(part, section)

    def line(self, line: doc.NumberLine) -> None:
        if len(line.classes) <= len(numberline.SIGNS):
            styled = numberline.text(line, min(self.console.width, WIDEST))
            self.console.print(styled, no_wrap=True, overflow="ignore", crop=False)

    def finding(self, finding: doc.Finding) -> None:
        details = [self.words(detail) for detail in finding.details]
        if finding.headline is None:
            for place, detail in enumerate(details):
                paragraph(self.console, detail, "" if place else "bold")
            return
        self.console.print()
        paragraph(self.console, self.words(finding.headline), COLOURS[finding.style])
        for detail in details:
            paragraph(self.console, detail, mark="  ")

    def table(self, table: doc.Table, captioned: bool) -> None:
        if captioned:
            paragraph(self.console, self.words(table.caption), "dim")
        remarks: list[str] = []
        body = [[self.cell(cell, remarks) for cell in row] for row in table.rows]
        columns = []
        for c, head in enumerate(table.head):
            prose = any(row[c].style == "text" for row in table.rows)
            cells = [row[c] for row in body]
            columns.append(_Column(self.words(head), cells, prose, left=prose or c < table.keys))
        widths = _widths(columns, self.console.width)
        if widths is not None:
            lines = _aligned(columns, widths)
        else:
            lines = _folded(columns, self.console.width)
            if not self.explained:
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

    def cell(self, cell: doc.Cell, remarks: list[str]) -> str:
        text = self.words(cell.text)
        if cell.tag is None:
            return text
        remark = self.words(cell.tag)
        if remark not in remarks:
            remarks.append(remark)
        return text + "*" * (remarks.index(remark) + 1)


def _printed(block: doc.Block) -> bool:
    if isinstance(block, doc.Figures):
        return any(map(_printed, block.blocks))
    return isinstance(
        block,
        doc.Paragraph
        | doc.Finding
        | doc.Listing
        | doc.Table
        | doc.NumberLine
        | doc.Section
        | doc.Sound,
    )


# --- tables -----------------------------------------------------------------------------------

Line = tuple[int | None, str, str]  # of which row, the text, how it looks


@dataclass
class _Column:
    """A column of texts: sentences break as prose does, heads at spaces, all others nowhere."""

    head: str
    cells: list[str]
    prose: bool
    left: bool

    @cached_property
    def full(self) -> int:
        return max(map(cell_len, self.cells), default=0)

    @cached_property
    def least(self) -> int:
        """The width that it needs; what breaks in many short lines reads worse than a block."""
        if not self.prose:
            return max(_longest(self.head), self.full)
        words = max(map(_longest, self.cells), default=0)
        return max(_longest(self.head), words, min(self.full, NARROWEST))

    def justified(self, text: str, width: int) -> str:
        air = " " * (width - cell_len(text))
        return text + air if self.left else air + text


def _longest(text: str) -> int:
    """Measure the longest word; Chinese counts as one, as far as it has no spaces."""
    return max(map(cell_len, text.split(" ")), default=0)


def _widths(columns: list[_Column], room: int) -> list[int] | None:
    """Choose the width of every column; None where they cannot stand side by side."""
    wanted = [max(cell_len(column.head), column.full) for column in columns]
    room -= GAP * (len(columns) - 1)
    if sum(wanted) <= room:
        return wanted
    widths = [column.least for column in columns]
    if sum(widths) > room:
        return None
    while sum(widths) < room:
        open_ = [c for c, width in enumerate(widths) if width < wanted[c]]
        widths[min(open_, key=lambda c: widths[c] / wanted[c])] += 1
    return widths


def _aligned(columns: list[_Column], widths: list[int]) -> Iterator[Line]:
    """Lay a table out in columns: names and prose to the left, numbers to the right."""

    def joined(texts: Iterable[str]) -> str:
        cells = zip(columns, texts, widths, strict=True)
        return (" " * GAP).join(column.justified(text, width) for column, text, width in cells)

    heads = [_at_spaces(c.head, width)[::-1] for c, width in zip(columns, widths, strict=True)]
    for texts in reversed(list(zip_longest(*heads, fillvalue=""))):
        yield None, joined(texts), "bold"
    yield None, "─" * (sum(widths) + GAP * (len(widths) - 1)), ""
    for place, row in enumerate(zip(*(column.cells for column in columns), strict=True)):
        cells = [
            list(wrapped(text, width)) or [""] if column.prose else [text]
            for column, text, width in zip(columns, row, widths, strict=True)
        ]
        for texts in zip_longest(*cells, fillvalue=""):
            yield place, joined(texts), ""


def _folded(columns: list[_Column], room: int) -> Iterator[Line]:
    """Lay each row out as a block: its name, then heads with their values, aligned by column."""
    name, *others = columns
    shelves: list[list[_Column]] = [[]]
    used = GAP
    for column in (column for column in others if not column.prose):
        need = cell_len(column.head) + 1 + column.full + GAP
        if used + need > room + GAP and shelves[-1]:
            shelves.append([])
            used = GAP
        shelves[-1].append(column)
        used += need
    if name.head:
        yield None, f"▸ {name.head}", "dim"
    for place, text in enumerate(name.cells):
        for at, line in enumerate(wrapped(text, room - GAP)):
            yield place, (" " * GAP if at else "▸ ") + line, "bold"
        for shelf in shelves:
            pairs = (
                f"{c.head if c.cells[place] else ' ' * cell_len(c.head)} "
                + c.justified(c.cells[place], c.full)
                for c in shelf
            )
            if any(column.cells[place] for column in shelf):
                yield place, " " * GAP + (" " * GAP).join(pairs), ""
        for column in (column for column in others if column.prose and column.cells[place]):
            for line in wrapped(f"{column.head}: {column.cells[place]}", room - GAP):
                yield place, " " * GAP + line, ""


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
