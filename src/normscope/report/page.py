"""One offline HTML file per record: verdict first, then evidence, then pictures to move.

Everything the page needs is in it. Its policy forbids every request and every script but the ones
that came with it; texts reach the document escaped or as text nodes, numbers as JSON.
"""

from dataclasses import dataclass
from typing import Any

from normscope.records import (
    Bench,
    Inspection,
    Layer,
    Lesson,
    Run,
    Trace,
    plain,
)
from normscope.report import channels, findings, ranking, speed, story, tables, verdict
from normscope.report.bilingual import Text, said
from normscope.report.charts import layers as layer_charts
from normscope.report.charts import speed as speed_charts
from normscope.report.charts import training as training_charts
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


def render_run(run: Run, lesson: Lesson | None, lang: Lang) -> str:
    """The report of `train`; the lesson's playground is a part of it where one is given."""
    drawn = Drawn()
    inspected = {} if run.inspection is None else _layers(run.inspection, drawn)
    return _page(
        "run.html.j2",
        lang,
        drawn,
        said("page.run.title", data=run.config.data, net=run.config.net),
        run=run,
        lesson=lesson,
        inspection=run.inspection,
        conclusions=verdict.of_run(run),
        norms=[(row.norm, tables.norm_name(row.norm)) for row in run.rows],
        comparison_table=tables.comparison(run),
        comparison=drawn.add(training_charts.comparison(run)),
        curves=[drawn.add(chart) for chart in training_charts.learning_curves(run)],
        sweep=drawn.add(training_charts.sweep(run)) if run.sweeps else None,
        domains=drawn.add(training_charts.domains(run))
        if any(row.by_domain for row in run.rows)
        else None,
        parameters=_parameters(run, drawn),
        drifts=_drifts(run, drawn),
        **inspected,
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


def _parameters(run: Run, drawn: Drawn) -> list[tuple[Trace, list[tuple[int, Chart]]]]:
    """Gamma and beta over training, for the first normalisation that has them."""
    moving = [t for t in run.traces if any(t.gamma) and any(t.beta)]
    shown = [t for t in moving if t.norm == moving[0].norm][:LAYERS] if moving else []
    return [
        (
            trace,
            [
                drawn.add(training_charts.parameter(trace, "γ")),
                drawn.add(training_charts.parameter(trace, "β")),
            ],
        )
        for trace in shown
    ]


def _drifts(run: Run, drawn: Drawn) -> list[tuple[int, Chart]]:
    """Drift with and without batch norm where both were trained, otherwise of what was."""
    norms = list(dict.fromkeys(t.norm for t in run.traces))
    compared = [n for n in ("batch", "none") if n in norms] if "batch" in norms else norms[:2]
    traces = [t for t in run.traces if t.norm in compared]
    names = list(dict.fromkeys(t.layer for t in traces))[:LAYERS]
    return [
        drawn.add(training_charts.drift([t for t in traces if t.layer == name], name))
        for name in names
    ]


def _page(template: str, lang: Lang, drawn: Drawn, title: Text, **context: Any) -> str:
    lesson = context.get("lesson")
    drawn.data["lesson"] = None if lesson is None else plain(lesson)
    parts = {"story": story, "findings": findings, "tables": tables}
    return render(template, lang, drawn, title, **parts, **context)
