"""A document cut to what has room in a notebook, and to the few lines of a repr."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from normscope.errors import shown
from normscope.report import document as doc
from normscope.report.bilingual import Words, read, tr
from normscope.report.document import Block, Document, Only, Section, Table, within
from normscope.report.messages import Lang
from normscope.report.terminal import wrapped

PICTURES = 6
ROWS = 60  # of one table
BESIDE = 3  # small pictures of one group
SHORT = 7  # rows and sentences of a section that is not folded
LINES, COLUMNS = 12, 96  # of a repr
NEXT = "See .save_html('page.html') and .to_frame()"
Picture = doc.Chart | doc.ChannelPlot | doc.Bars | doc.Drawing


def brief(document: Document) -> Document:
    """Keep the answer, the tables and the first pictures; all else is on the page."""
    cutter = _Cutter()
    opening = tuple(cutter.blocks(document.opening))
    first, *others = map(cutter.section, document.sections)
    kept, folded = [first], list[Section]()
    for section in others:
        (folded if _is_long(section) else kept).append(section)
    *before, last = kept
    details = (doc.Details(section.title, section.blocks) for section in folded)
    last = replace(last, blocks=(*last.blocks, *details))
    return replace(document, opening=opening, sections=(*before, last), picture=None)


def _is_long(section: Section) -> bool:
    """Tell whether a section is folded: one without pictures that takes much room."""
    blocks = list(within(section.blocks, (Section, doc.Figures)))
    room = sum(
        len(block.rows) if isinstance(block, Table) else not isinstance(block, Section)
        for block in blocks
    )
    return room > SHORT and not any(isinstance(block, Picture) for block in blocks)


def lines(document: Document, lang: Lang) -> list[str]:
    """Say the verdict in at most `LINES` lines of at most `COLUMNS` characters."""
    facts = ", ".join(f"{read(name, lang)} {read(value, lang)}" for name, value in document.facts)
    texts = [read(document.title, lang), facts, *(read(t, lang) for t in _answer(document))]
    found = [line for text in texts if text for line in wrapped(shown(text), COLUMNS)]
    found = [line if len(line) <= COLUMNS else f"{line[: COLUMNS - 1]}…" for line in found]
    if len(found) > LINES - 1:
        found[LINES - 2 :] = ["…"]
    return [*found, NEXT]


def _answer(document: Document) -> Iterator[Words]:
    """Yield the texts of the first screen: of a finding with a headline, that alone."""
    first = document.opening or document.sections[0].blocks
    for block in doc.for_medium(first, "terminal"):
        if isinstance(block, doc.Paragraph):
            yield block.text
        elif isinstance(block, doc.Finding):
            yield from (block.headline,) if block.headline is not None else block.details


class _Cutter:
    """Cuts blocks in their order; pictures are counted over the whole document."""

    def __init__(self) -> None:
        self.left = PICTURES

    def section(self, section: Section) -> Section:
        """Cut a section; of one with a part that scripts move, take what a terminal shows."""
        inside = within(section.blocks, (Only, doc.Figures))
        moved = any(isinstance(block, doc.Interactive) for block in inside)
        blocks = self.blocks(section.blocks, "terminal" if moved else "page")
        return replace(section, blocks=tuple(blocks))

    def blocks(self, blocks: Iterable[Block], medium: doc.Medium = "page") -> Iterator[Block]:
        for block in blocks:
            if isinstance(block, Only):
                # what a page alone says tells how to move its pictures
                own = [b for b in block.blocks if medium != "page" or not _is_prose(b)]
                yield from self.blocks(own if block.medium == medium else (), medium)
            elif isinstance(block, Section):
                yield self.section(block)
            elif isinstance(block, Table):
                yield _cut(block)
                if len(block.rows) > ROWS:
                    left = tr("page.left_out", count=len(block.rows) - ROWS)
                    yield doc.Paragraph(left, "quiet")
            elif isinstance(block, doc.Figures):
                most = block.blocks[:BESIDE] if block.small else block.blocks
                inside = tuple(self.blocks(most))
                yield from (replace(block, blocks=inside),) if inside else ()
            elif isinstance(block, doc.Details):
                yield from self.details(block)
            elif isinstance(block, Picture):
                yield from self.picture(block)
            elif not isinstance(block, doc.Interactive | doc.Terms):  # which only scripts can show
                yield block

    def details(self, block: doc.Details) -> Iterator[Block]:
        """Cut what is folded, without pictures; with a heading of its own it is one of many."""
        left = self.left
        self.left = left if block.open else 0
        inside = tuple(self.blocks(block.blocks))
        self.left = self.left if block.open else left
        if inside and (block.open or not block.aside):
            yield replace(block, blocks=inside)

    def picture(self, block: Picture) -> Iterator[Block]:
        if self.left:
            self.left -= 1
            if isinstance(block, doc.Chart | doc.ChannelPlot):
                block = replace(block, table=_cut(block.table))
            yield block


def _is_prose(block: Block) -> bool:
    return isinstance(block, doc.Paragraph)


def _cut(table: Table) -> Table:
    """Cut a table; without scripts it is not sorted, and its links would lead nowhere."""
    rows = tuple(tuple(replace(cell, link="") for cell in row) for row in table.rows[:ROWS])
    return replace(table, rows=rows, styles=table.styles[:ROWS], sortable=False)
