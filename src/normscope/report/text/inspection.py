"""An inspection as text."""

import math

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
    title(console, say(lang, "lens.gate.title"))
    console.print(_gates(inspection, lang))
    paragraph(console, say(lang, "lens.gate.caption"), "dim")
    if any(math.isfinite(layer.stages[0].condition_eta2) for layer in inspection.layers):
        title(console, say(lang, "lens.domain.title"))
        console.print(_domains(inspection, lang))
        paragraph(console, say(lang, "lens.domain.caption"), "dim")
    if inspection.work:
        title(console, say(lang, "lens.work.title"))
        console.print(_work(inspection, lang))
        paragraph(console, say(lang, "lens.work.caption"), "dim")
    console.print()
    for found in (findings.composition(inspection), findings.collapsed(inspection)):
        if found is not None:
            paragraph(console, found.read(lang), mark="- ")
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


def _gates(inspection: Inspection, lang: Lang) -> Table:
    heads = [f"D {s}" for s in LETTERS.values()]
    names = ("information", "gate", "best", "efficiency", "signal")
    table = grid(
        [say(lang, "lens.column.layer"), *heads, *(say(lang, f"lens.column.{n}") for n in names)]
    )
    for layer in inspection.layers:
        stages = [findings.stage(layer, name) for name in LETTERS]
        separation = ["-" if s is None else f"{s.separation:.3g}" for s in stages]
        bits = (layer.information, layer.gate_information, layer.best_information)
        efficiency = findings.mean_known(map(layer.efficiency, range(layer.channels)))
        table.add_row(
            Text(layer.name),
            *separation,
            *(f"{findings.mean_known(values):.3f}" for values in bits),
            percent(efficiency) if math.isfinite(efficiency) else "-",
            percent(layer.signal) if math.isfinite(layer.signal) else "-",
        )
    return table


def _domains(inspection: Inspection, lang: Lang) -> Table:
    heads = [
        f"{say(lang, f'lens.domain.{of}')} {s}"
        for of in ("class", "condition")
        for s in LETTERS.values()
    ]
    table = grid([say(lang, "lens.column.layer"), *heads])
    for layer in inspection.layers:
        stages = [findings.stage(layer, name) for name in LETTERS]
        by_class = ["-" if s is None else f"{s.eta2_mean:.3f}" for s in stages]
        known = [s if s is not None and math.isfinite(s.condition_eta2) else None for s in stages]
        table.add_row(
            Text(layer.name),
            *by_class,
            *("-" if s is None else f"{s.condition_eta2:.3f}" for s in known),
        )
    return table


def _work(inspection: Inspection, lang: Lang) -> Table:
    table = grid([say(lang, "lens.work.by"), "Δη²", "ΔJ", "ΔNCM", "Δlog D", "Δlog κ"])
    for by, total in findings.work(inspection).items():
        table.add_row(
            say(lang, f"lens.work.{by}"),
            *(f"{round(v, 3) + 0.0:+.3f}" for v in (total.eta2, total.lda, total.nearest_mean)),
            *(f"{round(v, 2) + 0.0:+.2f}" for v in (total.separation, total.condition)),
        )
    return table
