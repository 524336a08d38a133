"""What differs between two inspections, as a document."""

import math

from normscope.records import Difference, LayerDifference
from normscope.report.bilingual import Words, said
from normscope.report.document import Block, Document, Only, Paragraph, Section, Table, table
from normscope.report.format import signed

SHOWN = 20  # layers, those that moved most


def document(difference: Difference) -> Document:
    """Show the layers whose input moved most, and what that did to the classes."""
    first, second = (f"{m}, {d}" for m, d in zip(difference.models, difference.data, strict=True))
    ranked = sorted(difference.layers, key=lambda layer: -_known(layer.moved))
    both = Paragraph(said("lens.difference.both", first=first, second=second))
    below: list[Block] = []
    if len(ranked) > SHOWN:
        more = Paragraph(said("lens.difference.more", count=len(ranked) - SHOWN), "quiet")
        below.append(Only("terminal", (more,)))
    for key in ("only_first", "only_second"):
        names = getattr(difference, key)
        if names:
            below.append(Paragraph(said(f"lens.difference.{key}", layers=", ".join(names))))
    blocks = (
        Only("terminal", (_table(ranked[:SHOWN]),)),
        Only("page", (_table(ranked),)),
        *below,
    )
    sections = (
        Section(said("lens.difference.compared"), (both,), "compared"),
        Section(said("lens.difference.title"), blocks, "layers"),
    )
    return Document(said("lens.difference.page"), sections)


def _table(layers: list[LayerDifference]) -> Table:
    names = ("moved", "statistics", "gamma", "beta", "fraction", "separation", "firing")
    rows: list[list[Words]] = [
        [
            layer.name,
            *(_plain(v) for v in (layer.moved, layer.statistics, layer.gamma, layer.beta)),
            signed(layer.stages[-1].lda[1] - layer.stages[-1].lda[0]),
            signed(_decades(*layer.stages[-1].separation)),
            f"{100 * layer.firing:.1f}% #{layer.channel}",
        ]
        for layer in layers
    ]
    head = [said("lens.column.layer"), *(said(f"lens.difference.{name}") for name in names)]
    return table(said("lens.difference.caption"), head, rows)


def _plain(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _known(value: float) -> float:
    return -1.0 if math.isnan(value) else value


def _decades(before: float, after: float) -> float:
    return math.log10(after / before) if before > 0 and after > 0 else math.nan
