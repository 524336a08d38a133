"""An inspection as text."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normscope.records import Inspection
from normscope.report import findings
from normscope.report.messages import Lang, say
from normscope.report.story import percent
from normscope.report.text.prose import grid, paragraph, title

LETTERS = {"input": "x", "normalised": "z", "scaled_shifted": "y", "activated": "a"}


def print_inspection(inspection: Inspection, lang: Lang, console: Console) -> None:
    """The verdict, the two families of measures layer by layer, the self-test, the remarks."""
    for text in findings.verdict(inspection):
        paragraph(console, text.read(lang), "bold")
    console.print()
    paragraph(console, say(lang, "lens.legend"), "dim")
    title(console, say(lang, "lens.information.title"))
    console.print(_information(inspection, lang))
    paragraph(console, say(lang, "lens.information.caption"), "dim")
    title(console, say(lang, "lens.geometry.title"))
    console.print(_geometry(inspection, lang))
    paragraph(console, say(lang, "lens.geometry.caption"), "dim")
    console.print()
    for text in findings.remarks(inspection):
        paragraph(console, text.read(lang), mark="- ")
    paragraph(console, findings.self_test(inspection).read(lang), "bold")


def _information(inspection: Inspection, lang: Lang) -> Table:
    heads = [say(lang, "lens.column.layer"), say(lang, "lens.column.activation")]
    table = grid([*heads, *(f"{m} {s}" for m in ("η²", "J") for s in LETTERS.values())], texts=2)
    for layer in inspection.layers:
        stages = [findings.stage(layer, name) for name in LETTERS]
        eta2 = ["-" if s is None else f"{s.eta2_mean:.3f}" for s in stages]
        fraction = ["-" if s is None else f"{s.lda_fraction:.3f}" for s in stages]
        table.add_row(Text(layer.name), layer.activation or "-", *eta2, *fraction)
    return table


def _geometry(inspection: Inspection, lang: Lang) -> Table:
    heads = [f"{m} {s}" for m in ("NCM", "κ") for s in LETTERS.values()]
    table = grid([say(lang, "lens.column.layer"), *heads, say(lang, "lens.column.spread")])
    for layer in inspection.layers:
        stages = [findings.stage(layer, name) for name in LETTERS]
        nearest = ["-" if s is None else percent(s.nearest_mean_accuracy) for s in stages]
        condition = ["-" if s is None else f"{s.condition:.1e}" for s in stages]
        table.add_row(
            Text(layer.name), *nearest, *condition, percent(findings.firing_spread(layer))
        )
    return table
