"""One offline HTML file per record: verdict first, then evidence, then pictures to move.

Everything the page needs is in it. Its policy forbids every request and every script but the ones
that came with it; texts reach the document escaped or as text nodes, numbers as JSON.
"""

from typing import Any

from normscope.records import (
    Bench,
    Lesson,
    plain,
)
from normscope.report import findings, speed, story, tables
from normscope.report.bilingual import Text, said
from normscope.report.charts import speed as speed_charts
from normscope.report.html import Drawn, render
from normscope.report.messages import Lang


def render_lesson(lesson: Lesson, lang: Lang) -> str:
    """The interactive page of `explain --html`."""
    return _page("lesson.html.j2", lang, Drawn(), said("page.lesson.title"), lesson=lesson)


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


def _page(template: str, lang: Lang, drawn: Drawn, title: Text, **context: Any) -> str:
    lesson = context.get("lesson")
    drawn.data["lesson"] = None if lesson is None else plain(lesson)
    given = {"story": story, "findings": findings, "tables": tables}
    return render(template, lang, drawn, title, **given, **context)
