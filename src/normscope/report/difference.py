"""What differs between two inspections, as a document."""

import math

from normscope.records import Difference, LayerDifference
from normscope.report.bilingual import tr
from normscope.report.document import Block, Document, Only, Paragraph, Table, assembled, columns
from normscope.report.format import or_dash, signed

SHOWN = 20  # layers, those that moved most


def document(difference: Difference) -> Document:
    """Show the layers whose input moved most, and what that did to the classes."""
    first, second = (f"{m}, {d}" for m, d in zip(difference.models, difference.data, strict=True))
    ranked = sorted(difference.layers, key=lambda layer: (math.isnan(layer.moved), -layer.moved))
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
    sections: dict[str, tuple[Block, ...]] = {
        "compared": (both,),
        "layers": (Only("terminal", tuple(short)), Only("page", (_table(ranked),)), *below),
    }
    return assembled("lens.difference", tr("lens.difference.page"), sections)


def _table(layers: list[LayerDifference]) -> Table:
    between = {
        "fraction": lambda layer: signed(layer.stages[-1].lda[1] - layer.stages[-1].lda[0]),
        "separation": lambda layer: signed(_decades(*layer.stages[-1].separation)),
    }
    compared = any(math.isfinite(value) for layer in layers for value in layer.stages[-1].lda)
    plain = "{:.3f}".format
    return columns(
        "lens.difference.caption",
        "lens.difference",
        layers,
        {
            "lens.column.layer": lambda layer: layer.name,
            "moved": lambda layer: or_dash(layer.moved, plain),
            "statistics": lambda layer: or_dash(layer.statistics, plain),
            "gamma": lambda layer: or_dash(layer.gamma, plain),
            "beta": lambda layer: or_dash(layer.beta, plain),
            **(between if compared else {}),
            "firing": lambda layer: f"{100 * layer.firing:.1f}% #{layer.channel}",
        },
    )


def _decades(before: float, after: float) -> float:
    return math.log10(after / before) if before > 0 and after > 0 else math.nan
