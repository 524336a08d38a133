"""What a reader is shown, as plain data between the records and what shows them.

One file per record makes a `Document`. `terminal`, `html.page` and `html.fragment` show documents
and know no record. All texts are in both languages; names out of files are put in as they are,
and made harmless by what shows them.

    document = Document(
        title=tr("page.run.title", data="digits", net="mlp"),
        sections=(Section(tr("page.section.verdict"), (Finding("good", headline, details),)),),
    )
    terminal.show(document, "en", Console())  # without what is folded, and without pictures
    text = html.page(document, "en")  # one offline file
    text = html.fragment(document, "en")  # for a notebook

A new measure of layers is one more entry in `measures` with its message: rows, columns, terminal
and page follow. A new kind of block is a class here, a method of
`terminal` and a macro of `blocks.html.j2`; a new record is a file with `document(record)`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from normscope.report.bilingual import Text, Words, known, tr

Item = TypeVar("Item")
Spec = dict[str, Any]
BarStyle = Literal["", "good", "warn", "quiet"]
FindingStyle = Literal["good", "note", "warn", "error"]
Medium = Literal["terminal", "page"]
ROWS = 200  # of one table on a page; the record holds them all


@dataclass(frozen=True)
class Paragraph:
    """Prose; `lead` is the answer, `quiet` a remark, `notice` a caution."""

    text: Words
    style: Literal["", "lead", "quiet", "notice"] = ""
    icon: str = ""


@dataclass(frozen=True)
class Finding:
    """One conclusion: what was found where it can be said in short, and the details."""

    style: FindingStyle
    headline: Text | None
    details: tuple[Text, ...]


@dataclass(frozen=True)
class Listing:
    """Short texts one below the other."""

    items: tuple[Words, ...]
    ordered: bool = False


@dataclass(frozen=True)
class Cell:
    """A text, with how it looks and a remark beside it; of style `text` it may break in lines."""

    text: Words
    style: str = ""
    tag: Text | None = None
    icon: str = ""
    link: str = ""  # the id of what it leads to
    value: float | None = None  # what its column is sorted by


@dataclass(frozen=True)
class Table:
    """A caption, the heads of the columns, and rows whose first `keys` cells name the row."""

    caption: Text
    head: Sequence[Words]
    rows: tuple[tuple[Cell, ...], ...]
    styles: tuple[str, ...] = ()  # one per row, or none
    sortable: bool = False  # by any column; then all rows are shown
    keys: int = 1

    @property
    def columns(self) -> list[tuple[Words, str]]:
        """The heads, aligned as the cells of the first row are."""
        styles = [c.style for c in self.rows[0]] if self.rows else [""] * len(self.head)
        return [
            (name, style if style in ("measure", "text") else "")
            for name, style in zip(self.head, styles, strict=True)
        ]

    @property
    def shown(self) -> list[tuple[str, tuple[Cell, ...]]]:
        """The rows that fit on a page, each with its style."""
        styles = self.styles or ("",) * len(self.rows)
        pairs = list(zip(styles, self.rows, strict=True))
        return pairs if self.sortable else pairs[:ROWS]

    @property
    def left_out(self) -> int:
        """How many rows do not fit."""
        return 0 if self.sortable else max(0, len(self.rows) - ROWS)


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite picture with its name, how to read it, and the table of its numbers."""

    title: Words
    note: Text
    spec: Spec
    table: Table
    across: bool = False  # takes the whole width
    value: Words = ""  # the number that the picture is about, in large type


@dataclass(frozen=True)
class Term:
    """A symbol, what it means, and whether more of it is better."""

    symbol: str
    meaning: Text
    better: Literal["up", "down", ""] = ""


@dataclass(frozen=True)
class Terms:
    """A glossary: the page's script shows each meaning where its symbol stands in a text."""

    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Bar:
    """A name, shares of the axis from 0 to 1 (a second one is the state after), and their text."""

    name: Words
    shares: tuple[float, ...]
    text: Words
    style: BarStyle = ""


@dataclass(frozen=True)
class Bars:
    """Lengths to compare, on one axis."""

    title: Words
    note: Text
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Drawing:
    """A small picture that needs no script, from a Vega-Lite specification without texts."""

    title: Words
    note: Words
    spec: Spec
    key: tuple[Text, ...]  # the names of its series


@dataclass(frozen=True)
class NumberLine:
    """Values of several classes on one line, and the cuts that part them."""

    classes: tuple[tuple[float, ...], ...]
    cuts: tuple[float, ...] = ()
    digits: int = 4  # of the numbers beside it


@dataclass(frozen=True)
class ChannelPlot:
    """One channel, class by class, with its gate to move; `data` is for the page's script."""

    title: Text
    data: Mapping[str, Any]
    table: Table


@dataclass(frozen=True)
class Interactive:
    """A part of a page that has a template of its own and a script that moves it."""

    template: str  # its name in assets/templates
    values: Mapping[str, Any] = field(default_factory=dict)  # that the template uses
    data: Mapping[str, Any] = field(default_factory=dict)  # that the scripts read, by name
    scripts: tuple[str, ...] = ()  # the sources that move it, each using what stands before it
    style: str = ""
    messages: tuple[str, ...] = ()  # how the keys begin of the sentences that the scripts say


@dataclass(frozen=True)
class Sound:
    """A sound to play, with the name of what it is a sound of; `sounds.sound` makes it."""

    name: Words
    source: str  # a data URI
    seconds: float


@dataclass(frozen=True)
class Figures:
    """Pictures beside one another where there is room."""

    blocks: tuple["Block", ...]
    small: bool = False


@dataclass(frozen=True)
class Details:
    """What a page shows folded, and a terminal leaves out."""

    title: Words
    blocks: tuple["Block", ...]
    aside: Words = ""  # beside the title; with one, the title is a heading in a box
    id: str = ""
    open: bool = False


@dataclass(frozen=True)
class Only:
    """What one medium shows and the other has no room for."""

    medium: Medium
    blocks: tuple["Block", ...]


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it; one in another has a smaller heading."""

    title: Text
    blocks: tuple["Block", ...]
    id: str = ""  # the page's list of contents leads to it
    nav: Text | None = None  # its name there; none: the title


Block = (
    Paragraph
    | Finding
    | Listing
    | Table
    | Chart
    | Bars
    | Drawing
    | NumberLine
    | ChannelPlot
    | Interactive
    | Sound
    | Terms
    | Figures
    | Details
    | Only
    | Section
)


@dataclass(frozen=True)
class Document:
    """All that is shown of one record; the opening, else the first section, holds the answer."""

    title: Text
    sections: tuple[Section, ...]
    facts: tuple[tuple[Text, Words], ...] = ()
    footer: tuple[Words, ...] = ()
    opening: tuple[Block, ...] = ()  # under the title, on the first screen
    picture: Interactive | None = None  # beside the opening


def table(
    caption: Text,
    head: Sequence[Words],
    rows: Iterable[Iterable[Words | Cell]],
    keys: int = 1,
    **more: Any,
) -> Table:
    """Make a table; what is no cell yet becomes a plain one."""
    cells = tuple(tuple(c if isinstance(c, Cell) else Cell(c) for c in row) for row in rows)
    return Table(caption, head, cells, keys=keys, **more)


def columns(
    caption: str | Text,
    heads: str,
    items: Iterable[Item],
    of: Mapping[str, Callable[[Item], Words | Cell]],
    keys: int = 1,
    **more: Any,
) -> Table:
    """Make a table of items, a row each, from what stands in each column.

    Args:
        caption: its text, or the key of its message.
        heads: how the keys of the messages of the heads begin; the name of the column follows.
        items: what the rows tell.
        of: the name of each column, or the key of its head, and what it says of an item.
        keys: how many cells name a row.
        more: further fields of the table.
    """
    title = tr(caption) if isinstance(caption, str) else caption
    rows = [[cell(item) for cell in of.values()] for item in items]
    head = [tr(name if "." in name else f"{heads}.{name}") for name in of]
    return table(title, head, rows, keys, **more)


def assembled(
    prefix: str,
    title: Text,
    sections: Mapping[str, Iterable[Block]],
    facts: Mapping[str, Words] | None = None,
    **more: Any,
) -> Document:
    """Make a document of sections and facts that are called by their messages.

    Those are PREFIX.fact.NAME, PREFIX.nav.NAME if there is one, and PREFIX.section.NAME, else
    page.section.NAME. A section without blocks is left out.
    """
    made = []
    for name, blocks in sections.items():
        heading = tr(known(f"{prefix}.section.{name}", f"page.section.{name}"))
        nav = known(f"{prefix}.nav.{name}", "")
        if inside := tuple(blocks):
            made.append(Section(heading, inside, name, tr(nav) if nav else None))
    named = tuple((tr(f"{prefix}.fact.{name}"), value) for name, value in (facts or {}).items())
    return Document(title, tuple(made), named, **more)


def parts(document: Document) -> Iterator[Block]:
    """Yield every block of a page, those inside of others too, in the order they stand in."""
    yield from within(document.opening, (Section, Details, Figures), "page")
    if document.picture is not None:
        yield document.picture
    yield from within(document.sections, (Section, Details, Figures), "page")


def within(
    blocks: Iterable[Block], kinds: tuple[type, ...], medium: Medium | None = None
) -> Iterator[Block]:
    """Yield blocks, and what stands inside of those of some kinds; of one medium, or all."""
    for block in blocks if medium is None else for_medium(blocks, medium):
        yield block
        if isinstance(block, kinds):
            yield from within(getattr(block, "blocks", ()), kinds, medium)


def for_medium(blocks: Iterable[Block], medium: Medium) -> Iterator[Block]:
    """Yield the blocks that a medium shows."""
    for block in blocks:
        if not isinstance(block, Only):
            yield block
        elif block.medium == medium:
            yield from for_medium(block.blocks, medium)
