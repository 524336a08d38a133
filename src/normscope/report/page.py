"""One offline HTML file per record: verdict first, then evidence, then pictures to move.

Everything the page needs is in it. Its policy forbids every request and every script but the ones
that came with it; texts reach the document escaped or as text nodes, numbers as JSON.
"""

from typing import Any

from normscope.records import (
    Lesson,
    Run,
    Trace,
)
from normscope.report import findings, inspection, playground, story, tables, verdict
from normscope.report.bilingual import Text, said
from normscope.report.charts import training as training_charts
from normscope.report.document import ChannelPlot, Chart, Document, Section, parts
from normscope.report.html import Drawn, render
from normscope.report.messages import Lang

LAYERS = 24  # with pictures of their own; all others have their numbers


def render_playground(lang: Lang) -> str:
    """The page of `playground`: a small network that trains in it."""
    drawn = Drawn()
    part = playground.block()
    drawn.take(part)
    return render("network_page.html.j2", lang, drawn, said("network.title"), **part.values)


def render_run(run: Run, lesson: Lesson | None, lang: Lang) -> str:
    """The report of `train`; the lesson's playground is a part of it where one is given."""
    drawn = Drawn()
    pictures = () if run.inspection is None else inspection.pictures(run.inspection)
    context = {
        "run": run,
        "lesson": lesson,
        "inspection": run.inspection,
        "conclusions": verdict.of_run(run),
        "norms": [(row.norm, tables.norm_name(row.norm)) for row in run.rows],
        "comparison_table": tables.comparison(run),
        "comparison": drawn.add(training_charts.comparison(run)),
        "curves": [drawn.add(chart) for chart in training_charts.learning_curves(run)],
        "sweep": drawn.add(training_charts.sweep(run)) if run.sweeps else None,
        "domains": drawn.add(training_charts.domains(run))
        if any(row.by_domain for row in run.rows)
        else None,
        "parameters": _parameters(run, drawn),
        "drifts": _drifts(run, drawn),
        "evidence": () if run.inspection is None else inspection.evidence(run.inspection),
        "pictures": pictures,
    }
    for block in parts(Document(Text("", ""), (Section(Text("", ""), pictures),))):
        if isinstance(block, Chart):
            drawn.add(block)
        elif isinstance(block, ChannelPlot):
            drawn.add_channel(block.data)
    title = said("page.run.title", data=run.config.data, net=run.config.net)
    return _page("run.html.j2", lang, drawn, title, **context)


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
    given = {"story": story, "findings": findings, "tables": tables}
    return render(template, lang, drawn, title, **given, **context)
