"""What differs between two inspections, as a document."""

import math

from normscope.records import Difference, LayerDifference
from normscope.report.bilingual import tr
from normscope.report.document import Block, Document, Only, Paragraph, Section, Table, columns
from normscope.report.format import signed

SHOWN = 20  # layers, those that moved most


def document(difference: Difference) -> Document:
    """Show the layers whose input moved most, and what that did to the classes."""
    first, second = (f"{m}, {d}" for m, d in zip(difference.models, difference.data, strict=True))
    ranked = sorted(difference.layers, key=lambda layer: -_known(layer.moved))
    both = Paragraph(tr("lens.difference.both", first=first, second=second))
    short: list[Block] = [_table(ranked[:SHOWN])]
    if len(ranked) > SHOWN:
        more = tr("lens.difference.more", count=len(ranked) - SHOWN)
        short.append(Paragraph(more, "quiet"))
    only = {"only_first": difference.only_first, "only_second": difference.only_second}
    below: list[Block] = [
        Paragraph(tr(f"lens.difference.{key}", layers=", ".join(names)))
        for key, names in only.items()
        if names
    ]
    blocks: tuple[Block, ...] = (
        Only("terminal", tuple(short)),
        Only("page", (_table(ranked),)),
        *below,
    )
    sections = (
        Section(tr("lens.difference.compared"), (both,), "compared"),
        Section(tr("lens.difference.title"), blocks, "layers"),
    )
    return Document(tr("lens.difference.page"), sections)


def _table(layers: list[LayerDifference]) -> Table:
    between = {
        "fraction": lambda layer: signed(layer.stages[-1].lda[1] - layer.stages[-1].lda[0]),
        "separation": lambda layer: signed(_decades(*layer.stages[-1].separation)),
    }
    compared = any(math.isfinite(value) for layer in layers for value in layer.stages[-1].lda)
    return columns(
        "lens.difference.caption",
        "lens.difference",
        layers,
        {
            "lens.column.layer": lambda layer: layer.name,
            "moved": lambda layer: _plain(layer.moved),
            "statistics": lambda layer: _plain(layer.statistics),
            "gamma": lambda layer: _plain(layer.gamma),
            "beta": lambda layer: _plain(layer.beta),
            **(between if compared else {}),
            "firing": lambda layer: f"{100 * layer.firing:.1f}% #{layer.channel}",
        },
    )


def _plain(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _known(value: float) -> float:
    return -1.0 if math.isnan(value) else value


def _decades(before: float, after: float) -> float:
    return math.log10(after / before) if before > 0 and after > 0 else math.nan
