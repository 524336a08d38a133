"""One offline HTML file per record: verdict first, then evidence, then pictures to move.

Everything the page needs is in it. Its policy forbids every request and every script but the ones
that came with it; texts reach the document escaped or as text nodes, numbers as JSON.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import count
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from normscope.files import shown
from normscope.records import (
    Bench,
    Diagnosis,
    Inspection,
    Layer,
    Lesson,
    Repaired,
    Run,
    Trace,
    plain,
)
from normscope.report import channels, checkup, findings, ranking, speed, story, tables, verdict
from normscope.report.bilingual import Text, said
from normscope.report.charts import layers as layer_charts
from normscope.report.charts import speed as speed_charts
from normscope.report.charts import training as training_charts
from normscope.report.charts.base import CONFIG, Chart
from normscope.report.messages import Lang, catalogue
from normscope.report.playground import Network

LAYERS = 24  # with pictures of their own; all others have their numbers

# in this order one script: each file uses only what stands before it, the last one starts
SCRIPTS = ("numbers", "draw", "playground", "replay", "composition", "channels", "sort", "page")


def render_lesson(lesson: Lesson, lang: Lang) -> str:
    """The interactive page of `explain --html`."""
    return _page("lesson.html.j2", lang, _Drawn(), said("page.lesson.title"), lesson=lesson)


def render_playground(lang: Lang) -> str:
    """The page of `playground`: a small network that trains in it."""
    return _page("network_page.html.j2", lang, _Drawn(), said("network.title"), part=Network())


def render_inspection(inspection: Inspection, lang: Lang) -> str:
    """The report of `inspect`: what every layer did to every class."""
    drawn = _Drawn()
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
        _Drawn(),
        said(name, model=diagnosis.model),
        conclusions=checkup.conclusions(diagnosis),
        diagnosis=diagnosis,
        repaired=repaired,
    )


def render_run(run: Run, lesson: Lesson | None, lang: Lang) -> str:
    """The report of `train`; the lesson's playground is a part of it where one is given."""
    drawn = _Drawn()
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
    drawn = _Drawn()
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


class _Drawn:
    """The charts and channels of one page, numbered in the order in which they were added."""

    def __init__(self) -> None:
        self.charts: list[Chart] = []
        self.channels: list[dict[str, Any]] = []

    def add(self, chart: Chart) -> tuple[int, Chart]:
        self.charts.append(chart)
        return len(self.charts) - 1, chart

    def add_channel(self, drawing: dict[str, Any]) -> int:
        self.channels.append(drawing)
        return len(self.channels) - 1


@dataclass(frozen=True)
class LayerView:
    """What the section of one layer shows."""

    place: int
    layer: Layer
    numbers: tables.Table | None  # where there are no pictures
    firing: tuple[int, Chart] | None
    cards: list[tuple[int, channels.Chosen, tables.Table]]


def _layers(inspection: Inspection, drawn: _Drawn) -> dict[str, Any]:
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


def _parameters(run: Run, drawn: _Drawn) -> list[tuple[Trace, list[tuple[int, Chart]]]]:
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


def _drifts(run: Run, drawn: _Drawn) -> list[tuple[int, Chart]]:
    """Drift with and without batch norm where both were trained, otherwise of what was."""
    norms = list(dict.fromkeys(t.norm for t in run.traces))
    compared = [n for n in ("batch", "none") if n in norms] if "batch" in norms else norms[:2]
    traces = [t for t in run.traces if t.norm in compared]
    names = list(dict.fromkeys(t.layer for t in traces))[:LAYERS]
    return [
        drawn.add(training_charts.drift([t for t in traces if t.layer == name], name))
        for name in names
    ]


def _page(template: str, lang: Lang, drawn: _Drawn, title: Text, **context: Any) -> str:
    lesson = context.get("lesson")
    data: dict[str, Any] = {
        "lang": lang,
        "messages": {k: v for k, v in catalogue().items() if k.startswith("live.")},
        "charts": [_printable(plain(chart.spec)) for chart in drawn.charts],
        "chartConfig": CONFIG,
        "channels": [_printable(plain(channel)) for channel in drawn.channels],
        "lesson": None if lesson is None else plain(lesson),
    }
    own = [_asset(f"scripts/{name}.js") for name in SCRIPTS]
    style = _asset("page.css")
    part: Network | None = context.get("part")
    if part is not None:
        own.insert(-1, part.script)
        style += part.style
        data["messages"] |= part.messages
        data["network"] = part.data
    scripts = [_asset("vendor/vega.js")] if drawn.charts else []
    # strict mode and a scope of its own
    scripts.append('"use strict";\n{\n' + "\n".join(own) + "}\n")
    return (
        _environment(lang)
        .get_template(template)
        .render(
            lang=lang,
            title=title,
            policy=_policy(scripts, style),
            style=Markup(style),
            scripts=[Markup(script) for script in scripts],
            data=Markup(_json(data)),
            story=story,
            findings=findings,
            tables=tables,
            checkup=checkup,
            **context,
        )
    )


def _policy(scripts: list[str], style: str) -> str:
    """Nothing may be loaded, and only the scripts and the style sheet of this page may run."""
    allowed = " ".join(map(_hash, scripts))
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _printable(value: Any) -> Any:
    """The same value; control characters, line separators and lone surrogates are spelled out."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


def _json(value: Any) -> str:
    """JSON that can stand inside a script element whatever the texts in it are."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda m: f"\\u{ord(m[0]):04x}", text)


@cache
def _asset(name: str) -> str:
    return files("normscope.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _templates() -> dict[str, str]:
    folder = files("normscope.report").joinpath("assets", "templates")
    return {part.name: part.read_text(encoding="utf-8") for part in folder.iterdir()}


def _environment(lang: Lang) -> Environment:
    environment = Environment(
        loader=DictLoader(_templates()),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else _printable(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def both(text: Text) -> Markup:
        """The attributes from which the page switches an element's text."""
        return Markup('data-en="{}" data-zh="{}"').format(shown(text.en), shown(text.zh))

    def put(text: str | Text) -> Markup:
        if isinstance(text, Text):
            return Markup("<span {}>{}</span>").format(both(text), shown(text.read(lang)))
        return Markup("{}").format(shown(text))

    environment.filters |= {"both": both, "put": put}
    environment.filters["read"] = lambda text: text.read(lang)
    environment.globals["text"] = said
    environment.globals["say"] = lambda key, **values: put(said(key, **values))
    environment.globals["number_next"] = count().__next__
    return environment
