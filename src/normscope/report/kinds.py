"""Which document and which page a record has, by its kind."""

from collections.abc import Callable
from typing import Any

from normscope.records import Lesson, Record, Run
from normscope.report import (
    bench,
    conversion,
    diagnosis,
    difference,
    html,
    inspection,
    page,
    story,
    tables,
    verdict,
)
from normscope.report.bilingual import said
from normscope.report.brief import brief
from normscope.report.document import Document, Finding, Listing, Section
from normscope.report.messages import Lang


def document_of(record: Record) -> Document:
    """Make the document of a record of any kind."""
    return DOCUMENTS[record.kind](record)


def brief_of(record: Record) -> Document:
    """Make what of it has room in a notebook."""
    return brief(BRIEF.get(record.kind, document_of)(record))


def answer_of(record: Record) -> Document:
    """Make a document whose first section is that of the whole one; the others may lack."""
    return ANSWERS.get(record.kind, document_of)(record)


def page_of(record: Record, lang: Lang) -> str:
    """Write the page of a record of any kind."""
    write = PAGES.get(record.kind)
    return html.page(document_of(record), lang) if write is None else write(record, lang)


def _run(run: Run) -> Document:
    found = tuple(Finding(f.style, f.headline, (f.detail,)) for f in verdict.of_run(run))
    blocks = (tables.comparison(run),)
    return Document(
        said("page.run.title", data=run.config.data, net=run.config.net),
        (
            Section(said("page.nav.verdict"), found, "verdict"),
            Section(said("page.comparison.title"), blocks, "comparison"),
        ),
    )


def _lesson(lesson: Lesson) -> Document:
    answer = Finding("note", None, (story.verdict(lesson),))
    stages = tuple(
        Finding("note", story.title(lesson, stage), (story.sentence(lesson, stage),))
        for stage in lesson.stages
    )
    return Document(
        said("page.lesson.title"),
        (
            Section(said("page.nav.verdict"), (answer,), "verdict"),
            Section(said("page.stages.title"), (*stages, tables.lesson_stages(lesson)), "stages"),
            Section(
                said("lesson.answer.title"),
                (Listing(tuple(story.answer(lesson)), ordered=True),),
                "answer",
            ),
        ),
    )


DOCUMENTS: dict[str, Callable[[Any], Document]] = {
    "bench": bench.document,
    "conversion": conversion.document,
    "diagnosis": diagnosis.document,
    "difference": difference.document,
    "inspection": inspection.document,
    "lesson": _lesson,
    "repair": diagnosis.repaired,
    "run": _run,
}
BRIEF: dict[str, Callable[[Any], Document]] = {  # of those that take long to draw
    "inspection": inspection.brief,
}
ANSWERS: dict[str, Callable[[Any], Document]] = {"inspection": inspection.answer}
PAGES: dict[str, Callable[[Any, Lang], str]] = {  # of those whose page is more than its document
    "lesson": page.render_lesson,
    "run": lambda run, lang: page.render_run(run, None, lang),
}
