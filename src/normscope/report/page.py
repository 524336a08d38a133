"""The lesson's page: it has templates of its own, and scripts that move what they show."""

from normscope.records import Lesson, plain
from normscope.report import story, tables
from normscope.report.bilingual import said
from normscope.report.html import Drawn, render
from normscope.report.messages import Lang


def render_lesson(lesson: Lesson, lang: Lang) -> str:
    """The interactive page of `explain --html`."""
    drawn = Drawn(data={"lesson": plain(lesson)})
    title = said("page.lesson.title")
    return render("lesson.html.j2", lang, drawn, title, lesson=lesson, story=story, tables=tables)
