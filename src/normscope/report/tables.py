"""The tables of a page: what the numbers are, before anything is drawn."""

import math
from statistics import fmean
from typing import TypeVar

from normscope.records import Member, Run
from normscope.report.bilingual import Text, Words, said
from normscope.report.document import Cell, Table, table
from normscope.report.format import number, share
from normscope.report.messages import catalogue

Item = TypeVar("Item")


def norm_name(norm: str) -> Text:
    """What a normalisation is called in the report, beside its name on the command line."""
    key = f"page.norm.{norm}"
    return said(key) if key in catalogue() else Text(norm, norm)


def comparison(run: Run) -> Table:
    """One row per normalisation: accuracy with its spread, before training, without the label."""
    honest = [row.mean for row in run.rows if not row.leaks and math.isfinite(row.mean)]
    without = any(row.without_label is not None for row in run.rows)
    before = any(math.isfinite(row.before) for row in run.rows)
    head = ["norm", "accuracy", "spread", *["before"] * before, *["without_label"] * without]
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
        if before:
            cells.append(Cell(share(row.before) if math.isfinite(row.before) else "-"))
        if without:
            cells.append(Cell(share(row.without_label)))
        rows.append(tuple(cells))
        best = not row.leaks and bool(honest) and row.mean == max(honest)
        styles.append("best" if best else "")
    key = "page.comparison.caption" if run.config.seeds > 1 else "page.comparison.caption.one"
    caption = said(key, seeds=run.config.seeds, test=run.test_size)
    heads = tuple(said(f"page.head.{name}") for name in head)
    return Table(caption, heads, tuple(rows), tuple(styles))


def costs(run: Run) -> Table:
    """One row per normalisation: how fast it learns, which rates train it, what it takes."""
    head = ["norm", "to_95", *["rates"] * bool(run.sweeps), "parameters", "seconds"]
    rows: list[list[Words]] = []
    for row in run.rows:
        cells: list[Words] = [row.norm]
        cells.append("-" if math.isnan(row.epochs_to_95) else number(row.epochs_to_95))
        if run.sweeps:
            low, high = row.lr_lowest, row.lr_highest
            known = low is not None and high is not None
            cells.append(f"{number(low or 0)} – {number(high or 0)}" if known else "-")
        all_learn = row.learning in (None, row.parameters)
        facts = {"learning": f"{row.learning or 0:,}", "all": f"{row.parameters:,}"}
        cells.append(facts["all"] if all_learn else said("page.learning", **facts))
        rows.append([*cells, number(row.seconds, digits=3)])
    return table(said("page.costs.caption"), [said(f"page.head.{name}") for name in head], rows)


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


def thinned(items: list[Item], most: int = 13) -> list[Item]:
    """At most `most` of the items, evenly spread, with the first and the last."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
