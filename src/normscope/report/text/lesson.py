"""The lesson as text."""

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from normscope.records import ClassValues, Learning, Lesson, Stage
from normscope.report import story
from normscope.report.messages import Lang, say
from normscope.report.story import number, percent
from normscope.report.text.prose import GAP, WIDEST, grid, paragraph, title

FEW = 4  # values of a class that should be seen before digits are spared
MOST_CLASSES = 12  # rows of a table; --json holds them all
DIGITS = "123456789abcdefghijklmnopqrstuvwxyz"  # one sign per class on a line of values
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")


def print_lesson(lesson: Lesson, lang: Lang, console: Console) -> None:
    """The verdict, each stage with its table and sentence, and the answer in six parts."""
    paragraph(console, story.verdict(lesson).read(lang), "bold")
    console.print()
    paragraph(console, say(lang, "lesson.legend", eps=number(lesson.eps)), "dim")
    ways = {f"learned_{way.name}": way for way in lesson.recoveries}
    for place, stage in enumerate(lesson.stages, 1):
        title(console, f"{place}. {story.title(lesson, stage).read(lang)}")
        _print_stage(stage, lang, console)
        paragraph(console, story.sentence(lesson, stage).read(lang))
        if stage.name in ways:
            _print_learning(ways[stage.name].learning[0], lang, console)
        elif stage.name == "inferred":
            _print_posteriors(lesson, lang, console)
    title(console, say(lang, "lesson.recoveries.title"))
    for way in lesson.recoveries:
        paragraph(console, say(lang, f"lesson.recovery.{way.name}"), "bold")
        for line in story.recovery(lesson, way):
            paragraph(console, line.read(lang), mark="  ")
    title(console, say(lang, "lesson.composition.title"))
    _print_composition(lesson, lang, console)
    title(console, say(lang, "lesson.answer.title"))
    for place, part in enumerate(story.answer(lesson), 1):
        paragraph(console, part.read(lang), mark=f"{place}. ")


def _print_stage(stage: Stage, lang: Lang, console: Console) -> None:
    if len(stage.classes) <= len(DIGITS):
        console.print(_line_of_values(stage, min(console.width, WIDEST)), no_wrap=True)
    console.print(_stage_table(stage, lang, console.width))
    if len(stage.classes) > MOST_CLASSES:
        more = len(stage.classes) - MOST_CLASSES
        paragraph(console, say(lang, "lesson.more_classes", count=more), "dim")
    accuracy = percent(stage.threshold_accuracy)
    measures = say(
        lang,
        "lesson.measures",
        hits=story.hits(stage),
        percent=accuracy,
        eta2=story.eta2(stage),
    )
    if 0 < len(stage.thresholds) <= MOST_CLASSES:
        cuts = ", ".join(number(t, digits=story.digits(stage)) for t in stage.thresholds)
        measures += say(lang, "lesson.cuts", cuts=cuts)
    chance = stage.threshold_accuracy * len(stage.classes) < 1 + 1e-9
    colour = "green" if stage.threshold_accuracy == 1 else "red" if chance else "yellow"
    paragraph(console, measures, f"bold {colour}")


def _stage_table(stage: Stage, lang: Lang, width: int) -> Table:
    """One row per class, with as many digits as leave room for a few values, at least three."""
    shown = stage.classes[:MOST_CLASSES]
    names = ("class", "values", "mean", "var", "range")
    heads = [*(say(lang, f"lesson.column.{name}") for name in names), "γ", "β"]
    zero = 1e-12 * max(abs(v) for c in shown for v in c.values)
    for digits in range(story.digits(stage), 2, -1):
        rows = [_moments_of(c, zero, digits) for c in shown]
        columns = zip(heads[2:], *rows, strict=False)
        taken = sum(max(map(cell_len, column)) + GAP for column in columns)
        room = width - taken - cell_len(heads[0]) - GAP
        values = [[number(v, zero, digits) for v in c.values] for c in shown]
        if room >= min(FEW, len(values[0])) * (1 + max(len(v) for row in values for v in row)):
            break
    table = grid(heads[: 2 + len(rows[0])], texts=2)
    for k, (listed, row) in enumerate(zip(_in_columns(values, room), rows, strict=True)):
        table.add_row(Text(str(k + 1), COLOURS[k % len(COLOURS)]), listed, *row)
    return table


def _moments_of(c: ClassValues, zero: float, digits: int) -> list[str]:
    low, high, mean = (number(v, zero, digits) for v in (c.min, c.max, c.mean))
    cells = [mean, number(c.var, zero**2, min(4, digits)), f"{low}..{high}"]
    return cells + [number(v, digits=digits) for v in (c.gamma, c.beta) if v is not None]


def _print_learning(first: Learning, lang: Lang, console: Console) -> None:
    """Loss, accuracy, gamma and beta at a few of the recorded steps."""
    columns = range(min(len(first.gamma[0]), 3 if console.width < WIDEST else 6))
    heads = [say(lang, f"lesson.column.{head}") for head in ("step", "loss", "accuracy")]
    shared = len(first.gamma[0]) == 1
    names = [[sign if shared else f"{sign}{k + 1}" for k in columns] for sign in "γβ"]
    heads += [" ".join(name.rjust(9) for name in row) for row in names]
    table = grid(heads)
    every = max(1, len(first.steps) // 6)
    for t in sorted({*range(0, len(first.steps), every), len(first.steps) - 1}):
        moved = (
            " ".join(number(path[t][k], digits=3).rjust(9) for k in columns)
            for path in (first.gamma, first.beta)
        )
        table.add_row(
            str(first.steps[t]), number(first.loss[t]), percent(first.accuracy[t]), *moved
        )
    title(console, say(lang, "lesson.learning.title"))
    console.print(table)


def _print_posteriors(lesson: Lesson, lang: Lang, console: Console) -> None:
    """One row per class: how many of its values are given to it, and the least certain one."""
    heads = ("class", "picked", "doubtful", "probability")
    table = grid([say(lang, f"lesson.column.{head}") for head in heads])
    for k in range(min(len(lesson.posteriors[0].probability), MOST_CLASSES)):
        own = [p for p in lesson.posteriors if p.truth == k]
        right = sum(p.probability.index(max(p.probability)) == k for p in own)
        least = min(own, key=lambda p: p.probability[k])
        table.add_row(
            Text(str(k + 1), COLOURS[k % len(COLOURS)]),
            f"{right}/{len(own)}",
            number(least.value, digits=story.digits(lesson.stages[0])),
            f"{least.probability[k]:.4f}",
        )
    title(console, say(lang, "lesson.posterior.title"))
    console.print(table)


def _print_composition(lesson: Lesson, lang: Lang, console: Console) -> None:
    if not lesson.composition:
        paragraph(console, say(lang, "lesson.composition.none"))
        return
    sizes = sorted({c.m for c in lesson.composition})
    table = grid(["", *(f"m = {m}" for m in sizes)])
    for r in sorted({c.r for c in lesson.composition}):
        cells = {c.m: c for c in lesson.composition if c.r == r}
        row = [f"{cells[m].predicted:.3f} ({_three(cells[m].measured)})" for m in sizes]
        table.add_row(f"r = {r:g}", *row)
    console.print(table)
    difference = max(abs(c.predicted - c.measured) for c in lesson.composition)
    caption = say(lang, "lesson.composition.caption", difference=f"{difference:.3f}")
    paragraph(console, caption)


def _three(value: float) -> str:
    """Three decimals, and no minus before a zero."""
    return f"{round(value, 3) + 0.0:.3f}"


def _line_of_values(stage: Stage, width: int) -> Text:
    """All values of a stage on one line, as wide as the values reach."""
    low, high = min(c.min for c in stage.classes), max(c.max for c in stage.classes)
    ends = [number(v, digits=story.digits(stage)) for v in (low, high)]
    room = width - len(ends[0]) - len(ends[1]) - 2

    def cell(value: float) -> int:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(share * (room - 1))

    owners: dict[int, set[int]] = {}
    for k, c in enumerate(stage.classes):
        for value in c.values:
            owners.setdefault(cell(value), set()).add(k)
    cuts = {cell(t) for t in stage.thresholds}
    line = Text(ends[0] + " ", "dim")
    for i in range(room):
        classes = owners.get(i, set())
        if len(classes) == 1:
            (k,) = classes
            line.append(DIGITS[k], f"not dim bold {COLOURS[k % len(COLOURS)]}")
        elif classes:
            line.append("*", "not dim bold red")
        else:
            line.append("|" if i in cuts else "-", "not dim" if i in cuts else "")
    return line.append(" " + ends[1])


def _in_columns(rows: list[list[str]], room: int) -> list[str]:
    """Numbers below one another; the middle is left out where room is short."""
    widest = max(len(t) for row in rows for t in row)
    fits = max(2, (room + 1) // (widest + 1))
    lists = []
    for row in rows:
        cells = [t.rjust(widest) for t in row]
        kept = cells if len(row) <= fits else [*cells[: max(1, fits - 2)], "...", cells[-1]]
        lists.append(" ".join(kept))
    return lists
