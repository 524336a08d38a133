"""An inspection as text."""

import math
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normscope.records import Inspection, Layer, StageMeasures
from normscope.report import findings
from normscope.report.bilingual import read
from normscope.report.messages import Lang, say
from normscope.report.story import percent
from normscope.report.text.prose import grid, paragraph, title

LETTERS = {
    "pre_activation": "p",
    "input": "x",
    "normalised": "z",
    "scaled_shifted": "y",
    "activated": "a",
}


def print_inspection(inspection: Inspection, lang: Lang, console: Console) -> None:
    """The verdict, the two families of measures layer by layer, the self-test, the remarks."""
    for text in findings.verdict(inspection):
        paragraph(console, text.read(lang), "bold")
    console.print()
    legend = [say(lang, "lens.legend")]
    if any(layer.pre_activation for layer in inspection.layers):
        legend.append(say(lang, "lens.legend.pre"))
    if any(layer.maps == "per_sample" for layer in inspection.layers):
        legend.append(say(lang, "lens.legend.per_sample"))
    for line in legend:
        paragraph(console, line, "dim")
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


def _letters(inspection: Inspection) -> dict[str, str]:
    """The stages that any layer has."""
    early = any(layer.pre_activation for layer in inspection.layers)
    return {n: letter for n, letter in LETTERS.items() if early or n != "pre_activation"}


def _row(layer: Layer, letters: Iterable[str], show: Callable[[StageMeasures], str]) -> list[str]:
    stages = (findings.stage(layer, name) for name in letters)
    return ["-" if s is None else show(s) for s in stages]


def _name(layer: Layer) -> Text:
    """The layer's name, marked where each sample has a map of its own."""
    return Text(layer.name + " *" * (layer.maps == "per_sample"))


def _information(inspection: Inspection, lang: Lang) -> Table:
    letters = _letters(inspection)
    heads = [say(lang, "lens.column.layer"), say(lang, "lens.column.activation")]
    table = grid([*heads, *(f"{m} {s}" for m in ("η²", "J") for s in letters.values())], texts=2)
    for layer in inspection.layers:
        table.add_row(
            _name(layer),
            Text(read(findings.follows(layer), lang)),
            *_row(layer, letters, lambda s: _figure(s.eta2_mean, ".3f")),
            *_row(layer, letters, lambda s: _figure(s.lda_fraction, ".3f")),
        )
    return table


def _geometry(inspection: Inspection, lang: Lang) -> Table:
    letters = _letters(inspection)
    heads = [f"{m} {s}" for m in ("NCM", "κ") for s in letters.values()]
    table = grid([say(lang, "lens.column.layer"), *heads, say(lang, "lens.column.spread")])
    for layer in inspection.layers:
        table.add_row(
            _name(layer),
            *_row(layer, letters, lambda s: _share(s.nearest_mean_accuracy)),
            *_row(layer, letters, lambda s: _figure(s.condition, ".1e")),
            _share(layer.firing_spread),
        )
    return table


def _gates(inspection: Inspection, lang: Lang) -> Table:
    letters = _letters(inspection)
    heads = [f"D {s}" for s in letters.values()]
    names = ("information", "gate", "best", "efficiency", "signal")
    table = grid(
        [say(lang, "lens.column.layer"), *heads, *(say(lang, f"lens.column.{n}") for n in names)]
    )
    for layer in inspection.layers:
        bits = (layer.information, layer.gate_information, layer.best_information)
        efficiency = findings.mean_known(map(layer.efficiency, range(layer.channels)))
        table.add_row(
            _name(layer),
            *_row(layer, letters, lambda s: _figure(s.separation, ".3g")),
            *(_figure(findings.mean_known(values), ".3f") for values in bits),
            _share(efficiency),
            _share(layer.signal),
        )
    return table


def _domains(inspection: Inspection, lang: Lang) -> Table:
    letters = _letters(inspection)
    heads = [
        f"{say(lang, f'lens.domain.{of}')} {s}"
        for of in ("class", "condition")
        for s in letters.values()
    ]
    table = grid([say(lang, "lens.column.layer"), *heads])
    for layer in inspection.layers:
        table.add_row(
            _name(layer),
            *_row(layer, letters, lambda s: _figure(s.eta2_mean, ".3f")),
            *_row(
                layer,
                letters,
                lambda s: _figure(s.condition_eta2, ".3f"),
            ),
        )
    return table


def _figure(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _share(value: float) -> str:
    return percent(value) if math.isfinite(value) else "-"


def _work(inspection: Inspection, lang: Lang) -> Table:
    table = grid([say(lang, "lens.work.by"), "Δη²", "ΔJ", "ΔNCM", "Δlog D", "Δlog κ"])
    for by, total in findings.work(inspection).items():
        table.add_row(
            say(lang, f"lens.work.{by}"),
            *(findings.signed(v) for v in (total.eta2, total.lda, total.nearest_mean)),
            *(findings.signed(v, 2) for v in (total.separation, total.condition)),
        )
    return table
