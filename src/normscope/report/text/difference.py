"""What differs between two inspections, as text."""

import math

from rich.console import Console
from rich.text import Text

from normscope.records import Difference
from normscope.report.messages import Lang, say
from normscope.report.text.prose import grid, paragraph, title

SHOWN = 20  # layers, those that moved most


def print_difference(difference: Difference, lang: Lang, console: Console) -> None:
    """The layers whose input moved most, and what that did to the classes."""
    first, second = (f"{m}, {d}" for m, d in zip(difference.models, difference.data, strict=True))
    title(console, say(lang, "lens.difference.title"))
    paragraph(console, say(lang, "lens.difference.both", first=first, second=second))
    heads = ("moved", "statistics", "gamma", "beta", "fraction", "separation", "firing")
    columns = [say(lang, f"lens.difference.{head}") for head in heads]
    table = grid([say(lang, "lens.column.layer"), *columns])
    ranked = sorted(difference.layers, key=lambda layer: -_known(layer.moved))
    for layer in ranked[:SHOWN]:
        last = layer.stages[-1]
        changes = (last.lda[1] - last.lda[0], _decades(*last.separation))
        table.add_row(
            Text(layer.name),
            *(f"{v:.3f}" for v in (layer.moved, layer.statistics, layer.gamma, layer.beta)),
            *(f"{v:+.3f}" for v in changes),
            f"{100 * layer.firing:.1f}% #{layer.channel}",
        )
    console.print(table)
    if len(ranked) > SHOWN:
        paragraph(console, say(lang, "lens.difference.more", count=len(ranked) - SHOWN), "dim")
    for key in ("only_first", "only_second"):
        names = getattr(difference, key)
        if names:
            paragraph(console, say(lang, f"lens.difference.{key}", layers=", ".join(names)))
    paragraph(console, say(lang, "lens.difference.caption"), "dim")


def _known(value: float) -> float:
    return -1.0 if math.isnan(value) else value


def _decades(before: float, after: float) -> float:
    return math.log10(after / before) if before > 0 and after > 0 else math.nan
