"""One offline HTML file per record: verdict first, then evidence, then pictures to move.

Everything the page needs is in it. Its policy forbids every request and every script but the ones
that came with it; texts reach the document escaped or as text nodes, numbers as JSON.
"""

from dataclasses import dataclass
from typing import Any

from normscope.records import (
    Bench,
    Diagnosis,
    Inspection,
    Layer,
    Lesson,
    Repaired,
    plain,
)
from normscope.report import channels, checkup, findings, ranking, speed, story, tables, verdict
from normscope.report.bilingual import Text, said
from normscope.report.charts import layers as layer_charts
from normscope.report.charts import speed as speed_charts
from normscope.report.document import Chart, Table
from normscope.report.html import Drawn, render
from normscope.report.messages import Lang

LAYERS = 24  # with pictures of their own; all others have their numbers

# in this order one script: each file uses only what stands before it, the last one starts
SCRIPTS = ("numbers", "draw", "playground", "replay", "composition", "channels", "sort", "page")


def render_lesson(lesson: Lesson, lang: Lang) -> str:
    """The interactive page of `explain --html`."""
    return _page("lesson.html.j2", lang, Drawn(), said("page.lesson.title"), lesson=lesson)


def render_inspection(inspection: Inspection, lang: Lang) -> str:
    """The report of `inspect`: what every layer did to every class."""
    drawn = Drawn()
    return _page(
        "inspection.html.j2",
        lang,
        drawn,
        said("page.inspection.title", model=inspection.model, data=inspection.data),
        conclusions=verdict.of_inspection(inspection),
        inspection=inspection,
        **_layers(inspection, drawn),
    )


def render_diagnosis(diagnosis: Diagnosis, lang: Lang, repaired: Repaired | None = None) -> str:
    """The report of `diagnose`, or of `repair` where that followed."""
    name = "doctor.title" if repaired is None else "doctor.repair.title"
    return _page(
        "diagnosis.html.j2",
        lang,
        Drawn(),
        said(name, model=diagnosis.model),
        conclusions=checkup.conclusions(diagnosis),
        diagnosis=diagnosis,
        repaired=repaired,
    )


def render_bench(bench: Bench, lang: Lang) -> str:
    """The report of `bench`: speed, memory and accuracy beside other ways."""
    drawn = Drawn()
    return _page(
        "bench.html.j2",
        lang,
        drawn,
        said("bench.title"),
        bench=bench,
        conclusions=speed.of_bench(bench),
        charts=[drawn.add(chart) for chart in speed_charts.drawn(bench)],
        times=speed.timings(bench),
        absent=speed.absent(bench),
    )


@dataclass(frozen=True)
class LayerView:
    """What the section of one layer shows."""

    place: int
    layer: Layer
    numbers: Table | None  # where there are no pictures
    firing: tuple[int, Chart] | None
    cards: list[tuple[int, channels.Chosen, Table]]


def _layers(inspection: Inspection, drawn: Drawn) -> dict[str, Any]:
    classes = channels.shown_classes(inspection)
    views = []
    drawn_too = set(ranking.pictured(inspection, LAYERS))
    for place, layer in enumerate(inspection.layers):
        if place not in drawn_too:
            views.append(LayerView(place, layer, tables.layer_index([layer]), None, []))
            continue
        chosen = channels.choose(layer)
        gated = layer.activation is not None and classes and len(layer.firing)
        chart = layer_charts.firing(layer, inspection, classes) if gated else None
        cards = [
            (
                drawn.add_channel(channels.drawing(layer, c, inspection)),
                c,
                tables.channel(layer, inspection, c.channel, classes),
            )
            for c in chosen
        ]
        numbered = drawn.add(chart) if chart else None
        views.append(LayerView(place, layer, None, numbered, cards))
    few = len(inspection.layers) <= LAYERS
    return {
        "ranking": ranking.ranking(inspection),
        "index": tables.layer_index(inspection.layers) if few else None,
        "separability": drawn.add(layer_charts.separability(inspection))
        if inspection.layers
        else None,
        "layer_views": views,
        "layers_left_out": max(0, len(inspection.layers) - LAYERS),
        "first_open": min(drawn_too, default=-1),
        "classes_left_out": sum(n > 0 for n in inspection.counts) - len(classes),
    }


def _page(template: str, lang: Lang, drawn: Drawn, title: Text, **context: Any) -> str:
    lesson = context.get("lesson")
    drawn.data["lesson"] = None if lesson is None else plain(lesson)
    parts = {"story": story, "findings": findings, "tables": tables, "checkup": checkup}
    return render(template, lang, drawn, title, **parts, **context)
