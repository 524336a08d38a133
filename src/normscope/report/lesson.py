"""The lesson as a document: the question, the fear, three recoveries, when it comes true."""

from typing import Any

from normscope.records import ClassValues, Learning, Lesson, Recovery, Stage, plain
from normscope.report import playground, story
from normscope.report.bilingual import Text, Words, said
from normscope.report.document import (
    Block,
    Cell,
    Details,
    Document,
    Figures,
    Finding,
    Interactive,
    Listing,
    NumberLine,
    Only,
    Paragraph,
    Section,
    Table,
    table,
)
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


def document(lesson: Lesson) -> Document:
    """Answer how a network can still classify after batch norm, in the numbers of a lesson."""
    count = sum(len(c.values) for c in lesson.stages[0].classes)
    part: dict[str, tuple[Text, list[Block]]] = {
        "play": (said("lesson.section.question", count=count), _question(lesson)),
        "fear": (said("lesson.section.fear"), _fear(lesson)),
        "recoveries": (said("lesson.section.recoveries"), _recoveries(lesson)),
        "alone": (
            said("lesson.section.alone"),
            [Only("page", (Paragraph(said("lesson.alone")), playground.block("affine")))],
        ),
        "when": (said("lesson.section.when"), _when(lesson)),
        "answer": (said("lesson.answer.title"), [_answer(lesson)]),
        "steps": (said("lesson.section.steps", count=len(lesson.stages)), _steps(lesson)),
    }
    sections = tuple(
        Section(title, tuple(blocks), name, said(f"lesson.nav.{name}"))
        for name, (title, blocks) in part.items()
    )
    footer = (said("page.lesson.footer", eps=number(lesson.eps)),)
    return Document(said("page.lesson.title"), sections, footer=footer)


def _question(lesson: Lesson) -> list[Block]:
    moving = Interactive(
        "lesson_playground.html.j2",
        values={"steps": _told(lesson)},
        data={"lesson": _data(lesson)},
        scripts=tuple(asset(f"scripts/{name}.js") for name in SCRIPTS),
        style=asset("lesson.css"),
    )
    return [
        Only("page", (Paragraph(story.lead(lesson), "lead"), moving)),
        Only("terminal", (Paragraph(story.verdict(lesson), "lead"),)),
    ]


def _fear(lesson: Lesson) -> list[Block]:
    pair = (Paragraph(said("lesson.fear")), Interactive("lesson_fear.html.j2"))
    feared = Paragraph(story.sentence(lesson, story.by_name(lesson, "standardised_per_class")))
    return [Only("page", pair), feared]


def _answer(lesson: Lesson) -> Listing:
    return Listing(tuple(story.answer(lesson)), ordered=True)


def _told(lesson: Lesson) -> list[dict[str, Any]]:
    """Each step with its name, title and sentence, for the tour."""
    return [
        {
            "name": stage.name,
            "title": story.title(lesson, stage),
            "sentence": story.sentence(lesson, stage),
        }
        for stage in lesson.stages
    ]


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
    values = [v for c in story.by_name(lesson, "joint").classes for v in c.values]
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
    cards = Interactive("lesson_recoveries.html.j2", {"ways": ways, "seeds": seeds})
    said_so = tuple(
        Finding("note", said(f"lesson.recovery.{way.name}"), tuple(story.recovery(lesson, way)))
        for way in lesson.recoveries
    )
    ends = tuple(map(_learning, lesson.recoveries))
    return [
        Only("page", (Paragraph(said("lesson.recoveries.how")), cards)),
        Only("terminal", said_so),
        Details(said("page.lesson.learning.caption"), ends),
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
    trap = story.sentence(lesson, story.by_name(lesson, "unlabelled"))
    cases = (Paragraph(said("lesson.when")), Interactive("lesson_cases.html.j2", {"trap": trap}))
    blocks: list[Block] = [Only("page", cases), Only("terminal", (Paragraph(trap),))]
    if not lesson.composition:
        return [*blocks, Paragraph(said("lesson.composition.none"))]
    moving = (Paragraph(said("page.composition.how")), Interactive("lesson_composition.html.j2"))
    difference = max(abs(c.predicted - c.measured) for c in lesson.composition)
    caption = said("lesson.composition.caption", difference=f"{difference:.3f}")
    law = (Only("page", moving), _composition(lesson), Paragraph(caption, "quiet"))
    return [*blocks, Section(said("page.composition.title"), law)]


def _composition(lesson: Lesson) -> Table:
    """The share of class signal left: predicted, in brackets measured."""
    sizes = sorted({c.m for c in lesson.composition})
    cells = {(c.r, c.m): c for c in lesson.composition}
    rows = []
    for r in sorted({c.r for c in lesson.composition}):
        row = [cells[r, m] for m in sizes]
        rows.append([f"{r:g}", *(f"{c.predicted:.3f} ({_three(c.measured)})" for c in row)])
    return table(said("page.composition.title"), ["r", *(f"m = {m}" for m in sizes)], rows)


def _three(value: float) -> str:
    """Three decimals, and no minus before a zero."""
    return f"{round(value, 3) + 0.0:.3f}"


def _steps(lesson: Lesson) -> list[Block]:
    legend = Paragraph(said("lesson.legend", eps=number(lesson.eps)), "quiet")
    blocks: list[Block] = [
        Only("page", (Paragraph(said("lesson.steps.how")),)),
        Only("terminal", (legend,)),
        Figures(tuple(_step(lesson, *step) for step in enumerate(lesson.stages, 1)), small=True),
        Details(said("page.lesson.stages.caption"), (_stages(lesson),)),
    ]
    if lesson.posteriors:
        blocks.append(Details(said("page.posteriors.title"), (_posteriors(lesson),)))
    return blocks


def _step(lesson: Lesson, place: int, stage: Stage) -> Section:
    """One step with its number line; in a terminal with its numbers too."""
    name = story.title(lesson, stage)
    title = Text(f"{place}. {name.en}", f"{place}. {name.zh}")
    line = NumberLine(
        tuple(c.values for c in stage.classes), stage.thresholds, min(6, story.digits(stage))
    )
    ways = {f"learned_{way.name}": way for way in lesson.recoveries}
    more: list[Block] = []
    if stage.name in ways:
        more.append(_path(ways[stage.name].learning[0]))
    elif stage.name == "inferred":
        more.append(_picked(lesson))
    blocks = (
        line,
        Only("terminal", tuple(_classes(stage, title))),
        Paragraph(_measures(stage), "quiet"),
        Paragraph(story.sentence(lesson, stage)),
        Only("terminal", tuple(more)),
        Interactive("lesson_show.html.j2", {"name": stage.name}),
    )
    return Section(title, blocks)


def _classes(stage: Stage, caption: Text) -> list[Block]:
    """Values and moments of each class at one step."""
    shown = stage.classes[:MOST_CLASSES]
    digits = story.digits(stage)
    zero = 1e-12 * max(abs(v) for c in shown for v in c.values)

    def row(k: int, c: ClassValues) -> list[Cell]:
        values = ", ".join(number(v, zero, digits) for v in c.values[:MOST_VALUES])
        values += ", …" if len(c.values) > MOST_VALUES else ""
        low, high, mean = (number(v, zero, digits) for v in (c.min, c.max, c.mean))
        cells = [mean, number(c.var, zero**2), f"{low}..{high}"]
        cells += [number(v) for v in (c.gamma, c.beta) if v is not None]
        return [Cell(str(k)), Cell(values, "text"), *map(Cell, cells)]

    rows = tuple(tuple(row(k, c)) for k, c in enumerate(shown, 1))
    heads: list[Words] = [
        said(f"lesson.column.{name}") for name in ("class", "values", "mean", "var", "range")
    ]
    listed = Table(caption, [*heads, "γ", "β"][: len(rows[0])], rows)
    more = len(stage.classes) - len(shown)
    left_out = Paragraph(said("lesson.more_classes", count=more), "quiet")
    return [listed, left_out] if more else [listed]


def _measures(stage: Stage) -> Text:
    accuracy = percent(stage.threshold_accuracy)
    measures = {"hits": story.hits(stage), "percent": accuracy, "eta2": story.eta2(stage)}
    if not 0 < len(stage.thresholds) <= MOST_CLASSES:
        return said("lesson.measures", **measures)
    cuts = ", ".join(number(t, digits=story.digits(stage)) for t in stage.thresholds)
    return said("lesson.measures.cuts", cuts=cuts, **measures)


def _path(first: Learning) -> Table:
    """Loss, accuracy, gamma and beta at a few of the recorded steps."""
    columns = range(min(len(first.gamma[0]), NAMED))
    shared = len(first.gamma[0]) == 1
    names = [sign if shared else f"{sign}{k + 1}" for sign in "γβ" for k in columns]
    every = max(1, len(first.steps) // 6)
    rows = [
        [
            str(first.steps[t]),
            number(first.loss[t]),
            percent(first.accuracy[t]),
            *(number(path[t][k], digits=3) for path in (first.gamma, first.beta) for k in columns),
        ]
        for t in sorted({*range(0, len(first.steps), every), len(first.steps) - 1})
    ]
    heads = [said(f"lesson.column.{name}") for name in ("step", "loss", "accuracy")]
    return table(said("lesson.learning.title"), [*heads, *names], rows)


def _picked(lesson: Lesson) -> Table:
    """For each class how many of its values are given to it, and the least certain one."""
    rows = []
    for k in range(min(len(lesson.posteriors[0].probability), MOST_CLASSES)):
        own = [p for p in lesson.posteriors if p.truth == k]
        right = sum(p.probability.index(max(p.probability)) == k for p in own)
        least = min(own, key=lambda p: p.probability[k])
        doubtful = number(least.value, digits=story.digits(lesson.stages[0]))
        rows.append([str(k + 1), f"{right}/{len(own)}", doubtful, f"{least.probability[k]:.4f}"])
    heads = [said(f"lesson.column.{n}") for n in ("class", "picked", "doubtful", "probability")]
    return table(said("lesson.posterior.title"), heads, rows)


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
