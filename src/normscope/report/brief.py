"""A document cut to what has room in a notebook, and to the few lines of a repr."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from normscope.errors import shown
from normscope.report.bilingual import Words, read, said
from normscope.report.document import (
    Bars,
    Bells,
    Block,
    ChannelPlot,
    Chart,
    Details,
    Document,
    Figures,
    Finding,
    Interactive,
    Medium,
    Only,
    Paragraph,
    Section,
    Table,
    Terms,
    for_medium,
)
from normscope.report.messages import Lang
from normscope.report.terminal import wrapped

PICTURES = 6
ROWS = 60  # of one table
BESIDE = 3  # small pictures of one group
SHORT = 7  # rows and sentences of a section that is not folded
LINES, COLUMNS = 12, 96  # of a repr
NEXT = "See .save_html('page.html') and .to_frame()"


def brief(document: Document) -> Document:
    """Keep the answer, the tables and the first pictures; all else is on the page."""
    cutter = _Cutter()
    opening = tuple(cutter.blocks(document.opening))
    first, *others = map(cutter.section, document.sections)
    kept, folded = [first], list[Section]()
    for section in others:
        long = not _pictured(section.blocks) and _length(section.blocks) > SHORT
        (folded if long else kept).append(section)
    *before, last = kept
    details = (Details(section.title, section.blocks) for section in folded)
    last = replace(last, blocks=(*last.blocks, *details))
    return replace(document, opening=opening, sections=(*before, last), picture=None)


def lines(document: Document, lang: Lang) -> list[str]:
    """Say the verdict in at most `LINES` lines of at most `COLUMNS` characters."""
    facts = ", ".join(f"{read(name, lang)} {value}" for name, value in document.facts)
    texts = [read(document.title, lang), facts, *(read(t, lang) for t in _answer(document))]
    found = [line for text in texts if text for line in wrapped(shown(text), COLUMNS)]
    found = [line if len(line) <= COLUMNS else f"{line[: COLUMNS - 1]}…" for line in found]
    if len(found) > LINES - 1:
        found[LINES - 2 :] = ["…"]
    return [*found, NEXT]


def _answer(document: Document) -> Iterator[Words]:
    """Yield the texts of the first screen: of a finding with a headline, that alone."""
    first = document.opening or document.sections[0].blocks
    for block in for_medium(first, "terminal"):
        if isinstance(block, Paragraph):
            yield block.text
        elif isinstance(block, Finding):
            yield from (block.headline,) if block.headline is not None else block.details


class _Cutter:
    """What goes through it keeps its order; pictures are counted over the whole document."""

    def __init__(self) -> None:
        self.left = PICTURES

    def section(self, section: Section) -> Section:
        """Cut a section; of one with a part that scripts move, take what a terminal shows."""
        medium: Medium = "terminal" if _moved(section.blocks) else "page"
        return replace(section, blocks=tuple(self.blocks(section.blocks, medium)))

    def blocks(self, blocks: Sequence[Block], medium: Medium = "page") -> Iterator[Block]:
        for block in blocks:
            if isinstance(block, Only):
                # what a page alone says tells how to move its pictures
                kept = (b for b in block.blocks if medium != "page" or not isinstance(b, Paragraph))
                if block.medium == medium:
                    yield from self.blocks(tuple(kept), medium)
            elif isinstance(block, Section):
                yield self.section(block)
            elif isinstance(block, Table):
                yield _cut(block)
                if len(block.rows) > ROWS:
                    left = said("page.left_out", count=len(block.rows) - ROWS)
                    yield Paragraph(left, "quiet")
            elif isinstance(block, Figures):
                most = block.blocks[:BESIDE] if block.small else block.blocks
                inside = tuple(self.blocks(most))
                if inside:
                    yield replace(block, blocks=inside)
            elif isinstance(block, Details):
                yield from self.details(block)
            elif isinstance(block, Chart | ChannelPlot | Bars | Bells):
                yield from self.picture(block)
            elif not isinstance(block, Interactive | Terms):  # which only scripts can show
                yield block

    def details(self, block: Details) -> Iterator[Block]:
        """What is folded has no pictures; with a heading of its own it is one of many."""
        left, self.left = self.left, self.left if block.open else 0
        inside = tuple(self.blocks(block.blocks))
        self.left = self.left if block.open else left
        if inside and (block.open or not block.aside):
            yield replace(block, blocks=inside)

    def picture(self, block: Chart | ChannelPlot | Bars | Bells) -> Iterator[Block]:
        if self.left:
            self.left -= 1
            if isinstance(block, Chart | ChannelPlot):
                block = replace(block, table=_cut(block.table))
            yield block


def _moved(blocks: Sequence[Block]) -> bool:
    return any(
        _moved(block.blocks)
        if isinstance(block, Only | Figures)
        else isinstance(block, Interactive)
        for block in blocks
    )


def _pictured(blocks: Sequence[Block]) -> bool:
    return any(
        _pictured(block.blocks)
        if isinstance(block, Section | Figures)
        else isinstance(block, Chart | ChannelPlot | Bars | Bells)
        for block in blocks
    )


def _length(blocks: Sequence[Block]) -> int:
    return sum(
        len(block.rows)
        if isinstance(block, Table)
        else _length(block.blocks)
        if isinstance(block, Section | Figures)
        else 1
        for block in blocks
    )


def _cut(table: Table) -> Table:
    """Cut a table; without scripts it is not sorted, and its links would lead nowhere."""
    rows = tuple(tuple(replace(cell, link="") for cell in row) for row in table.rows[:ROWS])
    return replace(table, rows=rows, styles=table.styles[:ROWS], sortable=False)
