"""Records as text for a terminal, in English or Chinese."""

import re
from collections.abc import Iterator
from dataclasses import replace

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from normscope.records import ClassValues, Converted, Inspection, Lesson, Run, Stage
from normscope.report import findings, story, tables, verdict
from normscope.report.messages import Lang, say
from normscope.report.story import number, percent

WIDEST = 100  # prose is easier to read in lines of this length than over a whole wide terminal
GAP = 2  # cells between two columns
FEW = 4  # values of a class that should be seen before digits are spared
MOST_CLASSES = 12  # rows of a table; --json holds them all
DIGITS = "123456789abcdefghijklmnopqrstuvwxyz"  # one sign per class on a line of values
LETTERS = {"input": "x", "normalised": "z", "scaled_shifted": "y", "activated": "a"}
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")

WIDE = r"\u2e80-\u9fff\uff00-\uffef"  # Chinese characters and punctuation
PIECE = re.compile(rf"[（“]*(?:[{WIDE}]|[^ {WIDE}“”]+)[，。；：、）”？！]*| +|.")


def print_lesson(lesson: Lesson, lang: Lang, console: Console) -> None:
    """The verdict, each stage with its table and sentence, and the answer in six parts."""
    _paragraph(console, story.verdict(lesson).read(lang), "bold")
    console.print()
    _paragraph(console, say(lang, "lesson.legend", eps=number(lesson.eps)), "dim")
    for place, stage in enumerate(lesson.stages, 1):
        _title(console, f"{place}. {story.title(lesson, stage).read(lang)}")
        _print_stage(stage, lang, console)
        _paragraph(console, story.sentence(lesson, stage).read(lang))
        if stage.name == "learned":
            _print_learning(lesson, lang, console)
        elif stage.name == "inferred":
            _print_posteriors(lesson, lang, console)
    _title(console, say(lang, "lesson.composition.title"))
    _print_composition(lesson, lang, console)
    _title(console, say(lang, "lesson.answer.title"))
    for place, part in enumerate(story.answer(lesson), 1):
        _paragraph(console, part.read(lang), mark=f"{place}. ")


def _print_stage(stage: Stage, lang: Lang, console: Console) -> None:
    if len(stage.classes) <= len(DIGITS):
        console.print(_line_of_values(stage, min(console.width, WIDEST)), no_wrap=True)
    console.print(_stage_table(stage, lang, console.width))
    if len(stage.classes) > MOST_CLASSES:
        more = len(stage.classes) - MOST_CLASSES
        _paragraph(console, say(lang, "lesson.more_classes", count=more), "dim")
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
    _paragraph(console, measures, f"bold {colour}")


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
    table = _table(heads[: 2 + len(rows[0])], texts=2)
    for k, (listed, row) in enumerate(zip(_in_columns(values, room), rows, strict=True)):
        table.add_row(Text(str(k + 1), COLOURS[k % len(COLOURS)]), listed, *row)
    return table


def _moments_of(c: ClassValues, zero: float, digits: int) -> list[str]:
    low, high, mean = (number(v, zero, digits) for v in (c.min, c.max, c.mean))
    cells = [mean, number(c.var, zero**2, min(4, digits)), f"{low}..{high}"]
    return cells + [number(v, digits=digits) for v in (c.gamma, c.beta) if v is not None]


def _print_learning(lesson: Lesson, lang: Lang, console: Console) -> None:
    first = lesson.learning[0]
    classes = range(min(len(first.gamma[0]), 3 if console.width < WIDEST else 6))
    heads = [say(lang, f"lesson.column.{head}") for head in ("step", "loss", "accuracy")]
    heads += [" ".join(f"{sign}{k + 1}".rjust(9) for k in classes) for sign in "γβ"]
    table = _table(heads)
    every = max(1, len(first.steps) // 6)
    for t in sorted({*range(0, len(first.steps), every), len(first.steps) - 1}):
        moved = (
            " ".join(number(path[t][k], digits=3).rjust(9) for k in classes)
            for path in (first.gamma, first.beta)
        )
        table.add_row(
            str(first.steps[t]), number(first.loss[t]), percent(first.accuracy[t]), *moved
        )
    _title(console, say(lang, "lesson.learning.title"))
    console.print(table)
    right, starts = story.perfect_starts(lesson), len(lesson.learning)
    _paragraph(console, say(lang, "lesson.learning.caption", right=right, starts=starts))


def _print_posteriors(lesson: Lesson, lang: Lang, console: Console) -> None:
    """One row per class: how many of its values are given to it, and the least certain one."""
    heads = ("class", "picked", "doubtful", "probability")
    table = _table([say(lang, f"lesson.column.{head}") for head in heads])
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
    _title(console, say(lang, "lesson.posterior.title"))
    console.print(table)


def _print_composition(lesson: Lesson, lang: Lang, console: Console) -> None:
    if not lesson.composition:
        _paragraph(console, say(lang, "lesson.composition.none"))
        return
    sizes = sorted({c.m for c in lesson.composition})
    table = _table(["", *(f"m = {m}" for m in sizes)])
    for r in sorted({c.r for c in lesson.composition}):
        cells = {c.m: c for c in lesson.composition if c.r == r}
        row = [f"{cells[m].predicted:.3f} ({_three(cells[m].measured)})" for m in sizes]
        table.add_row(f"r = {r:g}", *row)
    console.print(table)
    difference = max(abs(c.predicted - c.measured) for c in lesson.composition)
    caption = say(lang, "lesson.composition.caption", difference=f"{difference:.3f}")
    _paragraph(console, caption)


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


def print_inspection(inspection: Inspection, lang: Lang, console: Console) -> None:
    """The verdict, the two families of measures layer by layer, the self-test, the remarks."""
    for text in findings.verdict(inspection):
        _paragraph(console, text.read(lang), "bold")
    console.print()
    _paragraph(console, say(lang, "lens.legend"), "dim")
    _title(console, say(lang, "lens.information.title"))
    console.print(_information(inspection, lang))
    _paragraph(console, say(lang, "lens.information.caption"), "dim")
    _title(console, say(lang, "lens.geometry.title"))
    console.print(_geometry(inspection, lang))
    _paragraph(console, say(lang, "lens.geometry.caption"), "dim")
    console.print()
    for text in findings.remarks(inspection):
        _paragraph(console, text.read(lang), mark="- ")
    _paragraph(console, findings.self_test(inspection).read(lang), "bold")


def _information(inspection: Inspection, lang: Lang) -> Table:
    heads = [say(lang, "lens.column.layer"), say(lang, "lens.column.activation")]
    table = _table([*heads, *(f"{m} {s}" for m in ("η²", "J") for s in LETTERS.values())], texts=2)
    for layer in inspection.layers:
        stages = [findings.stage(layer, name) for name in LETTERS]
        eta2 = ["-" if s is None else f"{s.eta2_mean:.3f}" for s in stages]
        fraction = ["-" if s is None else f"{s.lda_fraction:.3f}" for s in stages]
        table.add_row(Text(layer.name), layer.activation or "-", *eta2, *fraction)
    return table


def _geometry(inspection: Inspection, lang: Lang) -> Table:
    heads = [f"{m} {s}" for m in ("NCM", "κ") for s in LETTERS.values()]
    table = _table([say(lang, "lens.column.layer"), *heads, say(lang, "lens.column.spread")])
    for layer in inspection.layers:
        stages = [findings.stage(layer, name) for name in LETTERS]
        nearest = ["-" if s is None else percent(s.nearest_mean_accuracy) for s in stages]
        condition = ["-" if s is None else f"{s.condition:.1e}" for s in stages]
        table.add_row(
            Text(layer.name), *nearest, *condition, percent(findings.firing_spread(layer))
        )
    return table


# --- a run ------------------------------------------------------------------------------------


def print_run(run: Run, lang: Lang, console: Console) -> None:
    """The verdict, then the comparison, by domain too where there are domains."""
    for finding in verdict.of_run(replace(run, inspection=None)):
        if finding.headline is not None:
            _paragraph(console, finding.headline.read(lang), "bold")
        _paragraph(console, finding.detail.read(lang))
    shown = [tables.comparison(run)]
    if run.config.domains:
        shown.append(tables.domains(run))
    for table in shown:
        _title(console, table.caption.read(lang))
        drawn = _table([_read(head, lang) for head in table.head])
        drawn.columns[0].no_wrap = True
        remarks: dict[str, None] = {}  # an ordered set
        for row in table.rows:
            remarks |= {cell.tag.read(lang): None for cell in row if cell.tag is not None}
            drawn.add_row(*(_cell(cell, list(remarks), lang) for cell in row))
        console.print(drawn)
        for place, remark in enumerate(remarks, start=1):
            _paragraph(console, remark, "dim", mark="*" * place + " ")
    console.print()


def _cell(cell: tables.Cell, remarks: list[str], lang: Lang) -> Text:
    stars = "" if cell.tag is None else "*" * (remarks.index(cell.tag.read(lang)) + 1)
    return Text(_read(cell.text, lang) + stars)


def _read(words: tables.Words, lang: Lang) -> str:
    return words if isinstance(words, str) else words.read(lang)


# --- a conversion -----------------------------------------------------------------------------


def print_conversion(record: Converted, lang: Lang, console: Console) -> None:
    """The verdict, then every layer, then what was compared."""
    text = say(lang, f"convert.verdict.{_verdict(record)}", count=len(record.changed), to=record.to)
    _paragraph(console, text, "bold")
    _title(console, say(lang, "convert.layers"))
    layers = _table(_heads(lang, "layer", "before", "after", "equal", "note"), texts=5)
    for c in record.changed:
        equal = say(lang, f"convert.equal.{c.equal}")
        layers.add_row(Text(c.name), c.before, c.after, equal, c.note)
    for key, group in (("kept", record.kept), ("refused", record.refused)):
        what = say(lang, f"convert.{key}")
        for left in group:
            layers.add_row(Text(left.name), left.layer, what, "", Text(left.reason))
    console.print(layers)
    if not record.comparisons:
        return
    _title(console, say(lang, "convert.proof"))
    proof = _table(_heads(lang, "what", "mode", "difference", "allowed"), texts=2)
    for check in record.comparisons:
        free = check.allowed is None
        allowed = say(lang, "convert.free") if free else f"{check.allowed:.0e}"
        what = say(lang, f"convert.what.{check.what}")
        cells = (what, f"{check.mode}()", f"{check.difference:.1e}", allowed)
        proof.add_row(*cells, style="" if check.ok else "red")
    console.print(proof)
    console.print()


def _verdict(record: Converted) -> str:
    """Which sentence: what was proved."""
    must = {check.mode for check in record.comparisons if check.allowed is not None}
    if not record.comparisons:
        return "unverified"
    if not record.ok:
        return "unequal"
    return "other" if not must else "equal" if "train" in must else "eval"


def _heads(lang: Lang, *columns: str) -> list[str]:
    return [say(lang, f"convert.column.{column}") for column in columns]


# --- shared by all records --------------------------------------------------------------------


def _title(console: Console, text: str) -> None:
    console.print()
    _paragraph(console, text, "bold cyan")


def _table(heads: list[str], texts: int = 1) -> Table:
    """A table of numbers, to the right; its first columns hold `texts`, to the left."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    for place, head in enumerate(heads):
        table.add_column(Text(head), justify="left" if place < texts else "right", overflow="fold")
    return table


def _paragraph(console: Console, text: str, style: str = "", mark: str = "") -> None:
    """Prose in lines of readable length; `mark` stands before the first, the others align."""
    lines = wrapped(text, min(console.width, WIDEST) - len(mark))
    for place, line in enumerate(lines):
        indented = (mark if place == 0 else " " * len(mark)) + line
        console.print(Text(indented, style), no_wrap=True, overflow="ignore", crop=False)


def wrapped(text: str, width: int) -> Iterator[str]:
    """Break prose into lines of at most `width` cells.

    Chinese breaks between any two characters, except before closing and after opening
    punctuation; everything else at spaces only.
    """
    line = ""
    for piece in PIECE.findall(text):
        if line and cell_len(line + piece.rstrip()) > width:
            yield line.rstrip()
            line = ""
        line += piece if line else piece.lstrip()
    if line:
        yield line.rstrip()
