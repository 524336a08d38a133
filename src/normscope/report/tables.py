"""The tables of a page: what the numbers are, before anything is drawn."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TypeVar

from normscope.records import Inspection, Layer, Lesson, Member, Run, StageMeasures, StageName
from normscope.report.bilingual import Text, Words, said
from normscope.report.document import Cell, Table, table
from normscope.report.format import figure, magnitude, number, share
from normscope.report.messages import catalogue

Item = TypeVar("Item")

STAGES: tuple[StageName, ...] = (
    "pre_activation",
    "input",
    "normalised",
    "scaled_shifted",
    "activated",
)
AFFINE = STAGES[1:4]


def norm_name(norm: str) -> Text:
    """What a normalisation is called in the report, beside its name on the command line."""
    key = f"page.norm.{norm}"
    return said(key) if key in catalogue() else Text(norm, norm)


def comparison(run: Run) -> Table:
    """One row per normalisation: accuracy with spread, speed, and the rates that train."""
    honest = [row.mean for row in run.rows if not row.leaks and math.isfinite(row.mean)]
    without = any(row.without_label is not None for row in run.rows)
    sweep = bool(run.sweeps)
    head = ["norm", "accuracy", "spread", *["without_label"] * without]
    head += ["to_95", *["rates"] * sweep, "parameters", "seconds"]
    rows, styles = [], []
    for row in run.rows:
        tag = said("page.tag.leaks") if row.leaks else None
        if row.diverged:
            tag = said("page.tag.diverged", count=row.diverged, seeds=row.seeds)
        spread = None if math.isnan(row.spread) else row.spread
        cells = [
            Cell(row.norm, "name", tag),
            Cell(share(row.mean)),
            Cell(said("page.points", points=f"{100 * spread:.2f}") if spread is not None else "-"),
        ]
        if without:
            cells.append(Cell(share(row.without_label)))
        cells.append(Cell("-" if math.isnan(row.epochs_to_95) else number(row.epochs_to_95)))
        if sweep:
            low, high = row.lr_lowest, row.lr_highest
            cells.append(
                Cell("-" if low is None or high is None else f"{number(low)} – {number(high)}")
            )
        cells += [Cell(f"{row.parameters:,}"), Cell(number(row.seconds, digits=3))]
        rows.append(tuple(cells))
        best = not row.leaks and bool(honest) and row.mean == max(honest)
        styles.append("best" if best else "")
    caption = said("page.comparison.caption", seeds=run.config.seeds, test=run.test_size)
    heads = tuple(said(f"page.head.{name}") for name in head)
    return Table(caption, heads, tuple(rows), tuple(styles))


def layer_index(layers: Sequence[Layer]) -> Table:
    """Layer by measure and stage; what an affine map cannot change stands on one locked band."""
    rows, styles = [], []
    shown = [n for n in STAGES if n != "pre_activation" or any(la.pre_activation for la in layers)]
    for layer in layers:
        found = {stage.name: stage for stage in layer.every_stage}
        for place, (name, locked) in enumerate(MEASURES):
            cells = [Cell(layer.name if place == 0 else "", "name")]
            icon = "lock" if locked else "scale"
            cells.append(Cell(said(f"page.measure.{name}"), "measure", icon=icon))
            before: Words = ""
            for stage_name in shown:
                stage = found.get(stage_name)
                value = "-" if stage is None else _measure(stage, name)
                fixed = locked and layer.maps == "one" and stage_name in AFFINE
                changed = bool(before) and value not in (before, "-")
                changed &= not fixed or stage_name == "input"
                style = "locked" if fixed else "changed" if changed else ""
                cells.append(Cell(value, style))
                before = value
            rows.append(tuple(cells))
            styles.append("first" if place == 0 else "")
    head = [said("page.head.layer"), said("page.head.measure")]
    head += [said(f"page.stage.{name}") for name in shown]
    return Table(said("page.index.caption"), tuple(head), tuple(rows), tuple(styles))


# each measure, and whether an affine map per channel leaves it as it is
MEASURES = (
    ("eta2", True),
    ("lda", True),
    ("nearest_mean", False),
    ("separation", False),
    ("cdnv", False),
    ("condition", False),
)


def _measure(stage: StageMeasures, name: str) -> Words:
    if name == "eta2":
        return figure(stage.eta2_mean)
    if name == "lda":
        return figure(stage.lda_fraction)
    if name == "nearest_mean":
        return share(stage.nearest_mean_accuracy)
    return magnitude(
        {"separation": stage.separation, "cdnv": stage.cdnv}.get(name, stage.condition)
    )


def learning_curves(run: Run) -> Table:
    """Mean over seeds per epoch and normalisation, at a dozen epochs."""
    norms = [row.norm for row in run.rows]
    curves = {norm: mean_curve(run, norm) for norm in norms}
    epochs = sorted({epoch for curve in curves.values() for epoch in curve})
    rows: list[list[Words]] = [
        [str(e), *(share(curves[n][e][0] if e in curves[n] else None) for n in norms)]
        for e in thinned(epochs)
    ]
    return table(said("page.curves.table"), [said("page.head.epoch"), *norms], rows)


def mean_curve(run: Run, norm: str) -> dict[int, tuple[float, float, float]]:
    """Epoch -> mean test accuracy, its sample deviation over seeds, mean training loss."""
    curves: dict[int, tuple[float, float, float]] = {}
    members = [m for m in run.members if m.norm == norm]
    for at in range(max((len(m.curve) for m in members), default=0)):
        points = [m.curve[at] for m in members if at < len(m.curve)]
        accuracies = [p.test_accuracy for p in points if math.isfinite(p.test_accuracy)]
        losses = [p.train_loss for p in points if math.isfinite(p.train_loss)]
        if accuracies:
            loss = fmean(losses) if losses else math.nan
            curves[points[0].epoch] = (fmean(accuracies), deviation(accuracies), loss)
    return curves


def deviation(values: list[float]) -> float:
    """Sample standard deviation; 0 for one value."""
    centre = fmean(values)
    return math.sqrt(sum((v - centre) ** 2 for v in values) / max(1, len(values) - 1))


def members(run: Run) -> Table:
    """Every network that was trained."""
    rows: list[list[Words]] = [
        [m.norm, str(m.seed), share(m.accuracy), said(f"page.status.{m.status}"), _reached(m)]
        for m in run.members
    ]
    names = ("norm", "seed", "accuracy", "status", "to_95")
    return table(said("page.members.caption"), [said(f"page.head.{n}") for n in names], rows)


def _reached(member: Member) -> str:
    return "-" if member.epochs_to_95 is None else str(member.epochs_to_95)


def sweep(run: Run) -> Table:
    """Accuracy by learning rate and normalisation."""
    rates = sorted({rate for s in run.sweeps for rate in s.lr})
    found = {s.norm: dict(zip(s.lr, s.accuracy, strict=True)) for s in run.sweeps}
    rows: list[list[Words]] = [
        [number(rate), *(share(found[norm].get(rate)) for norm in found)] for rate in rates
    ]
    return table(said("page.sweep.table"), [said("page.head.rate"), *found], rows)


def domains(run: Run) -> Table:
    """Accuracy by domain and normalisation."""
    rows_with = [row for row in run.rows if row.by_domain]
    names = list(dict.fromkeys(name for row in rows_with for name in row.by_domain))
    body: list[list[Words]] = [
        [row.norm, *(share(row.by_domain.get(n)) for n in names), share(row.mean)]
        for row in rows_with
    ]
    head: list[Words] = [said("page.head.norm"), *names, said("page.head.all_domains")]
    return table(said("page.domains.table"), head, body)


def firing(layer: Layer, inspection: Inspection, classes: list[int], channels: list[int]) -> Table:
    """Share of values that pass the gate, class by channel."""
    rows: list[list[Words]] = [
        [str(c), *(share(float(layer.firing[k, c])) for k in classes)] for c in channels
    ]
    head: list[Words] = [said("page.head.channel"), *(inspection.classes[k] for k in classes)]
    return table(said("page.firing.table"), head, rows)


def channel(layer: Layer, inspection: Inspection, c: int, classes: list[int]) -> Table:
    """Mean and deviation of every class at one channel, and the share that passes its gate."""
    rows: list[list[Words]] = []
    for k in classes:
        mean, var = float(layer.class_mean[k, c]), float(layer.class_var[k, c])
        z = (mean - layer.running_mean[c]) / root(layer.running_var[c] + layer.eps)
        cells = (mean, root(var), z * layer.gamma[c] + layer.beta[c])
        rows.append(
            [
                inspection.classes[k],
                *(figure(v, 3) for v in cells),
                share(float(layer.firing[k, c])),
            ]
        )
    names = ("class", "mean_x", "deviation_x", "mean_y", "passes")
    heads = [said(f"page.head.{name}") for name in names]
    return table(said("page.channel.table", channel=c), heads, rows)


def root(variance: float) -> float:
    """The standard deviation; NaN where the variance is none to divide by."""
    return math.sqrt(variance) if variance > 0 else math.nan


def thinned(items: list[Item], most: int = 13) -> list[Item]:
    """At most `most` of the items, evenly spread, with the first and the last."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def lesson_stages(lesson: Lesson) -> Table:
    """Every class at every stage, as `explain` prints it."""
    rows, styles = [], []
    for stage in lesson.stages:
        title = said(f"lesson.{stage.name}.title", starts=len(lesson.learning))
        for k, c in enumerate(stage.classes, 1):
            values = ", ".join(number(v) for v in c.values[:12])
            values += ", …" if len(c.values) > 12 else ""
            rows.append(
                (
                    Cell(title if k == 1 else "", "name"),
                    Cell(str(k)),
                    Cell(values, "text"),
                    *(Cell(figure(v)) for v in (c.mean, c.var, c.min, c.max, c.gamma, c.beta)),
                )
            )
            styles.append("first" if k == 1 else "")
    names = ("stage", "class", "values", "mean", "variance", "min", "max")
    head: list[Words] = [*(said(f"page.head.{n}") for n in names), "γ", "β"]
    return Table(said("page.lesson.stages.caption"), head, tuple(rows), tuple(styles))


def posteriors(lesson: Lesson) -> Table:
    """The probability of every class for every value."""
    classes = len(lesson.stages[0].classes)
    rows: list[list[Words]] = [
        [number(p.value), str(p.truth + 1), *(figure(v, 3) for v in p.probability)]
        for p in lesson.posteriors
    ]
    head = [said("page.head.value"), said("page.head.truth")]
    head += [said("page.head.of_class", k=k + 1) for k in range(classes)]
    return table(said("page.lesson.posteriors.caption"), [*head], rows)


def composition(lesson: Lesson) -> Table:
    """The share of class signal left, predicted and measured."""
    rows: list[list[Words]] = [
        [number(c.r), str(c.m), figure(c.predicted), figure(c.measured)] for c in lesson.composition
    ]
    names = ("r", "m", "predicted", "measured")
    return table(
        said("page.lesson.composition.caption"), [said(f"page.head.{n}") for n in names], rows
    )


def learning(lesson: Lesson) -> Table:
    """Where each random start ended."""
    rows: list[list[Words]] = [
        [
            str(start.seed),
            figure(start.loss[0], 3),
            figure(start.loss[-1], 3),
            share(start.accuracy[0]),
            share(start.accuracy[-1]),
        ]
        for start in lesson.learning
    ]
    names = ("start", "loss_first", "loss_last", "accuracy_first", "accuracy_last")
    return table(
        said("page.lesson.learning.caption"), [said(f"page.head.{n}") for n in names], rows
    )
