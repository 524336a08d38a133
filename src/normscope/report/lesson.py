"""The lesson as a document: the question, the fear, three recoveries, when it comes true."""

from typing import Any

from normscope.records import Learning, Lesson, Recovery, Stage, plain
from normscope.report import playground, story
from normscope.report.bilingual import Text, said
from normscope.report.document import (
    Block,
    Cell,
    Details,
    Document,
    Interactive,
    Listing,
    Only,
    Paragraph,
    Section,
    Table,
    table,
)
from normscope.report.format import figure, number, share
from normscope.report.html import asset


def document(lesson: Lesson) -> Document:
    """Answer how a network can still classify after batch norm, in the numbers of a lesson."""
    count = sum(len(c.values) for c in lesson.stages[0].classes)
    return Document(
        title=said("page.lesson.title"),
        sections=(
            Section(
                said("lesson.section.question", count=count),
                (Paragraph(story.lead(lesson), "lead"), *_playground(lesson)),
                "play",
                said("lesson.nav.question"),
            ),
            Section(
                said("lesson.section.fear"),
                (
                    Paragraph(said("lesson.fear")),
                    Interactive("lesson_fear.html.j2"),
                    Paragraph(story.sentence(lesson, _stage(lesson, "standardised_per_class"))),
                ),
                "fear",
                said("lesson.nav.fear"),
            ),
            Section(
                said("lesson.section.recoveries"),
                (Paragraph(said("lesson.recoveries.how")), *_recoveries(lesson)),
                "recoveries",
                said("lesson.nav.recoveries"),
            ),
            Section(
                said("lesson.section.alone"),
                (Only("page", (Paragraph(said("lesson.alone")), playground.block("affine"))),),
                "alone",
                said("lesson.nav.alone"),
            ),
            Section(
                said("lesson.section.when"), (*_when(lesson),), "when", said("lesson.nav.when")
            ),
            Section(
                said("lesson.answer.title"),
                (Listing(tuple(story.answer(lesson)), ordered=True),),
                "answer",
                said("lesson.nav.answer"),
            ),
            Section(
                said("lesson.section.steps", count=len(lesson.stages)),
                (*_steps(lesson),),
                "steps",
                said("lesson.nav.steps"),
            ),
        ),
        footer=(said("page.lesson.footer", eps=number(lesson.eps)),),
    )


def _stage(lesson: Lesson, name: str) -> Stage:
    return story.by_name(lesson, name)


def _told(lesson: Lesson) -> list[dict[str, Any]]:
    """Each step with its name, title, sentence and score."""
    return [
        {
            "name": stage.name,
            "title": story.title(lesson, stage),
            "sentence": story.sentence(lesson, stage),
            "hits": story.hits(stage),
            "eta2": story.eta2(stage),
        }
        for stage in lesson.stages
    ]


# in this order: each file uses only what stands before it
SCRIPTS = (
    "learning",
    "tracks",
    "player",
    "example",
    "points",
    "settings",
    "bench",
    "tour",
    "recoveries",
    "cases",
    "composition",
    "steps",
    "lesson",
)


def _playground(lesson: Lesson) -> tuple[Block, ...]:
    part = Interactive(
        "lesson_playground.html.j2",
        values={"steps": _told(lesson)},
        data={"lesson": _data(lesson)},
        scripts=tuple(asset(f"scripts/{name}.js") for name in SCRIPTS),
        style=asset("lesson.css"),
    )
    return (part,)


def _data(lesson: Lesson) -> dict[str, Any]:
    """What the page's scripts read; the page learns again itself, so only the starts go along."""
    return {
        "eps": lesson.eps,
        "stages": plain(lesson.stages),
        "composition": plain(lesson.composition),
        "recoveries": [
            {
                "name": way.name,
                "steps": list(way.learning[0].steps),
                "starts": [
                    {
                        "seed": start.seed,
                        "gamma": list(start.gamma[0]),
                        "beta": list(start.beta[0]),
                        "templates": list(start.templates),
                        "below": _below(lesson, start),
                    }
                    for start in way.learning
                ],
            }
            for way in lesson.recoveries
        ],
    }


def _below(lesson: Lesson, start: Learning) -> int:
    """How many standardised values are below the gate with which a shared gamma and beta start."""
    values = [v for c in _stage(lesson, "joint").classes for v in c.values]
    return sum(start.gamma[0][0] * v + start.beta[0][0] <= 0 for v in values)


def _recoveries(lesson: Lesson) -> list[Block]:
    ways = [
        {
            "name": way.name,
            "title": said(f"lesson.recovery.{way.name}"),
            "what": said(f"lesson.recovery.{way.name}.what"),
            "lines": story.recovery(lesson, way),
        }
        for way in lesson.recoveries
    ]
    seeds = [start.seed for start in lesson.recoveries[0].learning]
    return [
        Interactive("lesson_recoveries.html.j2", {"ways": ways, "seeds": seeds}),
        Details(said("page.lesson.learning.caption"), tuple(map(_learning, lesson.recoveries))),
    ]


def _learning(way: Recovery) -> Table:
    """Where each random start of a way of learning ended."""

    def row(start: Learning) -> list[Text | str]:
        ends = (start.loss[0], start.loss[-1])
        reached = (start.accuracy[0], start.accuracy[-1])
        return [str(start.seed), *(figure(v, 3) for v in ends), *(share(v) for v in reached)]

    names = ("start", "loss_first", "loss_last", "accuracy_first", "accuracy_last")
    head = [said(f"page.head.{name}") for name in names]
    return table(said(f"lesson.recovery.{way.name}"), head, [row(s) for s in way.learning])


def _when(lesson: Lesson) -> list[Block]:
    unlabelled = _stage(lesson, "unlabelled")
    blocks: list[Block] = [
        Paragraph(said("lesson.when")),
        Interactive("lesson_cases.html.j2", {"trap": story.sentence(lesson, unlabelled)}),
    ]
    if not lesson.composition:
        return [*blocks, Paragraph(said("lesson.composition.none"))]
    law = (
        Paragraph(said("page.composition.how")),
        Interactive("lesson_composition.html.j2"),
        Details(said("page.lesson.composition.caption"), (_composition(lesson),)),
    )
    return [*blocks, Section(said("page.composition.title"), law)]


def _composition(lesson: Lesson) -> Table:
    """The share of class signal left, predicted and measured."""
    head = [said(f"page.head.{name}") for name in ("r", "m", "predicted", "measured")]
    rows = [
        [number(c.r), str(c.m), figure(c.predicted), figure(c.measured)] for c in lesson.composition
    ]
    return table(said("page.lesson.composition.caption"), head, rows)


def _steps(lesson: Lesson) -> list[Block]:
    blocks: list[Block] = [
        Paragraph(said("lesson.steps.how")),
        Interactive("lesson_steps.html.j2", {"steps": _told(lesson)}),
        Details(said("page.lesson.stages.caption"), (_stages(lesson),)),
    ]
    if lesson.posteriors:
        blocks.append(Details(said("page.posteriors.title"), (_posteriors(lesson),)))
    return blocks


def _stages(lesson: Lesson) -> Table:
    """Every class at every stage."""
    rows, styles = [], []
    for stage in lesson.stages:
        for k, c in enumerate(stage.classes, 1):
            values = ", ".join(number(v) for v in c.values[:12])
            values += ", …" if len(c.values) > 12 else ""
            rows.append(
                (
                    Cell(story.title(lesson, stage) if k == 1 else "", "name"),
                    Cell(str(k)),
                    Cell(values, "text"),
                    *(Cell(figure(v)) for v in (c.mean, c.var, c.min, c.max, c.gamma, c.beta)),
                )
            )
            styles.append("first" if k == 1 else "")
    names = ("stage", "class", "values", "mean", "variance", "min", "max", "gamma", "beta")
    head = [said(f"page.head.{name}") for name in names]
    return Table(said("page.lesson.stages.caption"), head, tuple(rows), tuple(styles))


def _posteriors(lesson: Lesson) -> Table:
    """The probability of every class for every value."""
    classes = range(len(lesson.stages[0].classes))
    rows = [
        [number(p.value), str(p.truth + 1), *(figure(v, 3) for v in p.probability)]
        for p in lesson.posteriors
    ]
    head = [said("page.head.value"), said("page.head.truth")]
    head += [said("page.head.of_class", k=k + 1) for k in classes]
    return table(said("page.lesson.posteriors.caption"), head, rows)
