"""The lesson as a document: the question, the fear, three recoveries, when it comes true."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from normscope.records import ClassValues, Learning, Lesson, Stage, plain
from normscope.report import document as doc
from normscope.report import playground, story
from normscope.report.bilingual import Text, Words, joined, tr
from normscope.report.format import figure, number, percent, share
from normscope.report.html import asset

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
    "lesson",
)

MOST_CLASSES = 12  # rows of a table in a terminal; the page and the record hold them all
MOST_VALUES = 12  # of a class in a table
NAMED = 3  # classes whose gamma and beta are listed step by step


def document(lesson: Lesson) -> doc.Document:
    """Answer how a network can still classify after batch norm, in the numbers of a lesson."""
    count = sum(len(c.values) for c in lesson.stages[0].classes)
    part: dict[str, tuple[Text, list[doc.Block]]] = {
        "play": (tr("lesson.section.question", count=count), _question(lesson)),
        "fear": (tr("lesson.section.fear"), _fear(lesson)),
        "recoveries": (tr("lesson.section.recoveries"), _recoveries(lesson)),
        "alone": (
            tr("lesson.section.alone"),
            [doc.Only("page", (doc.Paragraph(tr("lesson.alone")), playground.block("affine")))],
        ),
        "when": (tr("lesson.section.when"), _when(lesson)),
        "answer": (
            tr("lesson.answer.title"),
            [doc.Listing(tuple(story.answer(lesson)), ordered=True)],
        ),
        "steps": (tr("lesson.section.steps", count=len(story.steps(lesson))), _steps(lesson)),
    }
    sections = tuple(
        doc.Section(title, tuple(blocks), name, tr(f"lesson.nav.{name}"))
        for name, (title, blocks) in part.items()
    )
    footer = (tr("page.lesson.footer", eps=number(lesson.eps)),)
    return doc.Document(tr("page.lesson.title"), sections, footer=footer)


def _question(lesson: Lesson) -> list[doc.Block]:
    steps = [
        {
            "name": stages[0].name,
            "title": title,
            "sentences": [story.sentence(lesson, stage) for stage in stages],
        }
        for title, stages in story.steps(lesson)
    ]
    moving = doc.Interactive(
        "lesson_playground.html.j2",
        values={"steps": steps},
        data={"lesson": _data(lesson)},
        scripts=tuple(asset(f"scripts/{name}.js") for name in SCRIPTS),
        style=asset("lesson.css"),
    )
    return [
        doc.Only("page", (doc.Paragraph(story.lead(lesson), "lead"), moving)),
        doc.Only("terminal", (doc.Paragraph(story.verdict(lesson), "lead"),)),
    ]


def _data(lesson: Lesson) -> dict[str, Any]:
    """Collect what the scripts read; the page learns again itself, so only the starts go along."""
    joint = [v for c in story.by_name(lesson, "joint").classes for v in c.values]

    def first(start: Learning) -> dict[str, Any]:
        gamma, beta = start.gamma[0], start.beta[0]
        # how many standardised values are below the gate with which a shared gamma and beta start
        below = sum(gamma[0] * v + beta[0] <= 0 for v in joint)
        same = {"seed": start.seed, "templates": list(start.templates)}
        return same | {"gamma": list(gamma), "beta": list(beta), "below": below}

    return {
        "eps": lesson.eps,
        "stages": plain(lesson.stages),
        "composition": plain(lesson.composition),
        "recoveries": [
            {
                "name": way.name,
                "steps": list(way.learning[0].steps),
                "starts": [first(start) for start in way.learning],
            }
            for way in lesson.recoveries
        ],
    }


def _fear(lesson: Lesson) -> list[doc.Block]:
    pair = (doc.Paragraph(tr("lesson.fear")), doc.Interactive("lesson_fear.html.j2"))
    feared = doc.Paragraph(story.sentence(lesson, story.by_name(lesson, "standardised_per_class")))
    return [doc.Only("page", pair), feared]


def _recoveries(lesson: Lesson) -> list[doc.Block]:
    ways: list[dict[str, Any]] = [
        {
            "name": way.name,
            "title": tr(f"lesson.recovery.{way.name}"),
            "what": tr(f"lesson.recovery.{way.name}.what"),
            "lines": story.recovery(lesson, way),
        }
        for way in lesson.recoveries
    ]
    seeds = [start.seed for start in lesson.recoveries[0].learning]
    cards = doc.Interactive("lesson_recoveries.html.j2", {"ways": ways, "seeds": seeds})
    conclusions = tuple(doc.Finding("note", way["title"], tuple(way["lines"])) for way in ways)
    ends = tuple(
        doc.columns(
            f"lesson.recovery.{way.name}",
            "page.head",
            way.learning,
            {
                "start": lambda start: str(start.seed),
                "loss_first": lambda start: figure(start.loss[0], 3),
                "loss_last": lambda start: figure(start.loss[-1], 3),
                "accuracy_first": lambda start: share(start.accuracy[0]),
                "accuracy_last": lambda start: share(start.accuracy[-1]),
            },
        )
        for way in lesson.recoveries
    )
    return [
        doc.Only("page", (doc.Paragraph(tr("lesson.recoveries.how")), cards)),
        doc.Only("terminal", conclusions),
        doc.Details(tr("page.lesson.learning.caption"), ends),
    ]


def _when(lesson: Lesson) -> list[doc.Block]:
    trap = story.sentence(lesson, story.by_name(lesson, "unlabelled"))
    cases = (
        doc.Paragraph(tr("lesson.when")),
        doc.Interactive("lesson_cases.html.j2", {"trap": trap}),
    )
    blocks: list[doc.Block] = [
        doc.Only("page", cases),
        doc.Only("terminal", (doc.Paragraph(trap),)),
    ]
    if not lesson.composition:
        return [*blocks, doc.Paragraph(tr("lesson.composition.none"))]
    moving = (
        doc.Paragraph(tr("page.composition.how")),
        doc.Interactive("lesson_composition.html.j2"),
    )
    difference = max(abs(c.predicted - c.measured) for c in lesson.composition)
    caption = tr("lesson.composition.caption", difference=f"{difference:.3f}")
    law = (doc.Only("page", moving), _composition(lesson), doc.Paragraph(caption, "quiet"))
    return [*blocks, doc.Section(tr("page.composition.title"), law)]


def _composition(lesson: Lesson) -> doc.Table:
    """List the share of class signal left: predicted, in brackets measured."""
    # no minus before a zero
    cells = {
        (c.r, c.m): f"{c.predicted:.3f} ({round(c.measured, 3) + 0.0:.3f})"
        for c in lesson.composition
    }
    shares, sizes = sorted({r for r, _ in cells}), sorted({m for _, m in cells})
    rows = [[f"{r:g}", *(cells[r, m] for m in sizes)] for r in shares]
    return doc.table(tr("page.composition.title"), ["r", *(f"m = {m}" for m in sizes)], rows)


def _steps(lesson: Lesson) -> list[doc.Block]:
    legend = doc.Paragraph(tr("lesson.legend", eps=number(lesson.eps)), "quiet")
    blocks: list[doc.Block] = [
        doc.Only("page", (doc.Paragraph(tr("lesson.steps.how")),)),
        doc.Only("terminal", (legend,)),
        doc.Figures(
            tuple(_step(lesson, k, *step) for k, step in enumerate(story.steps(lesson), 1)),
            small=True,
        ),
        doc.Details(tr("page.lesson.stages.caption"), (_stages(lesson),)),
    ]
    if lesson.posteriors:
        blocks.append(doc.Details(tr("page.posteriors.title"), (_posteriors(lesson),)))
    return blocks


def _step(lesson: Lesson, place: int, name: Text, stages: list[Stage]) -> doc.Section:
    """Show one step with the number line of each of its stages."""
    title = joined((f"{place}.", name), " ", " ")
    blocks: tuple[doc.Block, ...] = _told(lesson, stages[0], title)
    if len(stages) > 1:
        titles = [story.title(lesson, stage) for stage in stages]
        blocks = tuple(
            doc.Section(own, _told(lesson, stage, own))
            for own, stage in zip(titles, stages, strict=True)
        )
    show = doc.Interactive("lesson_show.html.j2", {"name": stages[0].name})
    return doc.Section(title, (*blocks, show))


def _told(lesson: Lesson, stage: Stage, title: Text) -> tuple[doc.Block, ...]:
    """Show one stage; in a terminal with its numbers too."""
    digits = story.digits(stage)
    line = doc.NumberLine(tuple(c.values for c in stage.classes), stage.thresholds, min(6, digits))
    more = [
        _path(way.learning[0]) for way in lesson.recoveries if stage.name == f"learned_{way.name}"
    ]
    if stage.name == "inferred":
        more.append(_picked(lesson))
    return (
        line,
        doc.Only("terminal", tuple(_classes(stage, title))),
        doc.Paragraph(_measures(stage), "quiet"),
        doc.Paragraph(story.sentence(lesson, stage)),
        doc.Only("terminal", tuple(more)),
    )


def _classes(stage: Stage, caption: Text) -> list[doc.Block]:
    """List values and moments of each class at one step."""
    shown = stage.classes[:MOST_CLASSES]
    zero = 1e-12 * max(abs(v) for c in shown for v in c.values)
    value = partial(number, zero=zero, digits=story.digits(stage))
    of: dict[str, Callable[[tuple[int, ClassValues]], Words | doc.Cell]] = {
        "class": lambda item: str(item[0]),
        "values": lambda item: doc.Cell(_listed(item[1].values, value), "text"),
        "mean": lambda item: value(item[1].mean),
        "var": lambda item: number(item[1].var, zero**2),
        "range": lambda item: f"{value(item[1].min)}..{value(item[1].max)}",
    }
    listed = doc.columns(caption, "lesson.column", enumerate(shown, 1), of)
    if shown[0].gamma is not None:
        head = [*listed.head, "γ", "β"]
        learned = [[doc.Cell(figure(v)) for v in (c.gamma, c.beta)] for c in shown]
        rows = tuple((*row, *more) for row, more in zip(listed.rows, learned, strict=True))
        listed = replace(listed, head=head, rows=rows)
    more = len(stage.classes) - len(shown)
    left_out = doc.Paragraph(tr("lesson.more_classes", count=more), "quiet")
    return [listed, left_out] if more else [listed]


def _listed(values: Sequence[float], show: Callable[[float], str]) -> str:
    shown = ", ".join(map(show, values[:MOST_VALUES]))
    return shown + (", …" if len(values) > MOST_VALUES else "")


def _measures(stage: Stage) -> Text:
    accuracy = percent(stage.threshold_accuracy)
    measures = {"hits": story.hits(stage), "percent": accuracy, "eta2": story.eta2(stage)}
    if not 0 < len(stage.thresholds) <= MOST_CLASSES:
        return tr("lesson.measures", **measures)
    cuts = ", ".join(number(t, digits=story.digits(stage)) for t in stage.thresholds)
    return tr("lesson.measures.cuts", cuts=cuts, **measures)


def _path(first: Learning) -> doc.Table:
    """List loss, accuracy, gamma and beta at a few of the recorded steps."""
    shown = range(min(len(first.gamma[0]), NAMED))
    shared = len(first.gamma[0]) == 1
    names = [sign if shared else f"{sign}{k + 1}" for sign in "γβ" for k in shown]
    every = max(1, len(first.steps) // 6)
    rows = [
        [
            str(first.steps[t]),
            number(first.loss[t]),
            percent(first.accuracy[t]),
            *(number(path[t][k], digits=3) for path in (first.gamma, first.beta) for k in shown),
        ]
        for t in sorted({*range(0, len(first.steps), every), len(first.steps) - 1})
    ]
    heads = [tr(f"lesson.column.{name}") for name in ("step", "loss", "accuracy")]
    return doc.table(tr("lesson.learning.title"), [*heads, *names], rows)


def _picked(lesson: Lesson) -> doc.Table:
    """List for each class how many of its values are given to it, and the least certain one."""
    rows = []
    for k in range(min(len(lesson.posteriors[0].probability), MOST_CLASSES)):
        own = [p for p in lesson.posteriors if p.truth == k]
        right = sum(p.probability.index(max(p.probability)) == k for p in own)
        least = min(own, key=lambda p: p.probability[k])
        doubtful = number(least.value, digits=story.digits(lesson.stages[0]))
        rows.append([str(k + 1), f"{right}/{len(own)}", doubtful, f"{least.probability[k]:.4f}"])
    heads = [tr(f"lesson.column.{n}") for n in ("class", "picked", "doubtful", "probability")]
    return doc.table(tr("lesson.posterior.title"), heads, rows)


def _stages(lesson: Lesson) -> doc.Table:
    """List every class at every stage."""
    items = [(stage, k, c) for stage in lesson.stages for k, c in enumerate(stage.classes, 1)]
    of: dict[str, Callable[[tuple[Stage, int, ClassValues]], Words | doc.Cell]] = {
        "stage": lambda i: doc.Cell(story.title(lesson, i[0]) if i[1] == 1 else "", "name"),
        "class": lambda i: str(i[1]),
        "values": lambda i: doc.Cell(_listed(i[2].values, number), "text"),
        "mean": lambda i: figure(i[2].mean),
        "variance": lambda i: figure(i[2].var),
        "min": lambda i: figure(i[2].min),
        "max": lambda i: figure(i[2].max),
        "gamma": lambda i: figure(i[2].gamma),
        "beta": lambda i: figure(i[2].beta),
    }
    styles = tuple("first" if k == 1 else "" for _, k, _ in items)
    return doc.columns("page.lesson.stages.caption", "page.head", items, of, styles=styles)


def _posteriors(lesson: Lesson) -> doc.Table:
    """List the probability of every class for every value."""
    rows = [
        [number(p.value), str(p.truth + 1), *(figure(v, 3) for v in p.probability)]
        for p in lesson.posteriors
    ]
    head = [tr("page.head.value"), tr("page.head.truth")]
    head += [tr("page.head.of_class", k=k) for k, _ in enumerate(lesson.stages[0].classes, 1)]
    return doc.table(tr("page.lesson.posteriors.caption"), head, rows)
