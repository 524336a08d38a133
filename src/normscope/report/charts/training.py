"""Charts of training, each with its table: curves, rates, gamma and beta, drift, domains."""

import math
from collections.abc import Iterator
from functools import partial
from statistics import fmean
from typing import Literal

import numpy as np

from normscope.records import Run, Trace
from normscope.report.bilingual import Words, tr
from normscope.report.charts import by_series, spec, thinned
from normscope.report.document import Chart, Spec, columns, table
from normscope.report.format import deviation, figure, share

POINTS = 300  # of one line over training
QUANTILES = (5, 25, 50, 75, 95)
THREE = partial(figure, digits=3)


def comparison(run: Run) -> Chart:
    """Draw every network as a dot, every normalisation as a mean with its spread."""
    norms = [row.norm for row in run.rows]
    dots = [
        {"series": m.norm, "value": m.accuracy, "seed": m.seed}
        for m in run.members
        if math.isfinite(m.accuracy)
    ]
    means = []
    for r in run.rows:
        spread = 0.0 if math.isnan(r.spread) else r.spread
        ends = {"mean": r.mean, "low": r.mean - spread, "high": min(1.0, r.mean + spread)}
        if math.isfinite(r.mean):
            means.append({"series": r.norm, **ends})
    numbers = columns(
        "page.members.caption",
        "page.head",
        run.members,
        {
            "norm": lambda m: m.norm,
            "seed": lambda m: str(m.seed),
            "accuracy": lambda m: share(m.accuracy),
            "status": lambda m: tr(f"page.status.{m.status}"),
            "to_95": lambda m: "-" if m.epochs_to_95 is None else str(m.epochs_to_95),
        },
    )
    picture = spec("comparison", dots, norms, means=means, height=44 * max(1, len(norms)))
    title, note = tr("page.comparison.title"), tr("page.comparison.note")
    return Chart(title, note, picture, numbers, across=not run.sweeps)


def epochs(run: Run) -> Iterator[Spec]:
    """Yield accuracy and loss of each normalisation after each epoch, mean over seeds."""
    for norm in (row.norm for row in run.rows):
        members = [m for m in run.members if m.norm == norm]
        for at in range(max((len(m.curve) for m in members), default=0)):
            points = [m.curve[at] for m in members if at < len(m.curve)]
            accuracies = [p.test_accuracy for p in points if math.isfinite(p.test_accuracy)]
            losses = [p.train_loss for p in points if math.isfinite(p.train_loss)]
            if accuracies:
                mean, spread = fmean(accuracies), deviation(accuracies)
                yield {
                    "series": norm,
                    "epoch": points[0].epoch,
                    "mean": mean,
                    "low": mean - spread,
                    "high": min(1.0, mean + spread),
                    "loss": fmean(losses) if losses else math.nan,
                }


def learning_curves(run: Run) -> list[Chart]:
    """Draw test accuracy and training loss over the epochs, mean over seeds with spread."""
    norms = [row.norm for row in run.rows]
    rows = list(epochs(run))
    if not rows:
        return []
    return [
        Chart(
            tr("page.curves.title"),
            tr("page.curves.note"),
            spec("curves", rows, norms),
            by_series("curves", rows, norms, "epoch", "mean", share),
        ),
        Chart(
            tr("page.loss.title"),
            tr("page.loss.note"),
            spec("loss", [row for row in rows if row["loss"] > 0], norms),
            by_series("loss", rows, norms, "epoch", "loss", THREE),
        ),
    ]


def sweep(run: Run) -> Chart:
    """Draw accuracy after a short run, over learning rates that span decades."""
    norms = [s.norm for s in run.sweeps]
    rows: list[Spec] = [
        {"series": s.norm, "rate": rate, "accuracy": accuracy}
        for s in run.sweeps
        for rate, accuracy in zip(s.lr, s.accuracy, strict=True)
    ]
    drawn = [row for row in rows if math.isfinite(row["accuracy"]) and row["rate"] > 0]
    rates = sorted({row["rate"] for row in rows if row["rate"] > 0})
    return Chart(
        tr("page.sweep.title"),
        tr("page.sweep.note"),
        spec("sweep", drawn, norms, rates=rates, count=len(rates)),
        by_series("sweep", rows, norms, "rate", "accuracy", share),
    )


def parameter(trace: Trace, symbol: Literal["γ", "β"]) -> Chart:
    """Draw how gamma or beta moved: the middle, half and nine tenths of a layer's channels."""
    grid = trace.gamma if symbol == "γ" else trace.beta
    names = [f"q{q}" for q in QUANTILES]
    rows: list[Spec] = [
        {"step": trace.step[t]}
        | dict(zip(names, np.percentile(grid[t], QUANTILES).tolist(), strict=True))
        for t in thinned(list(range(len(trace.step))), POINTS)
        if all(map(math.isfinite, grid[t])) and grid[t]
    ]
    body = [[str(row["step"]), *(figure(row[q]) for q in names)] for row in thinned(rows)]
    head: list[Words] = [tr("page.head.step"), *(f"{q}%" for q in QUANTILES)]
    numbers = table(tr("page.parameter.table"), head, body)
    title, note = f"{symbol}, {trace.layer}", tr("page.parameter.note")
    return Chart(title, note, spec("parameter", rows, symbol=symbol), numbers)


def drift(traces: list[Trace], layer: str) -> Chart:
    """Draw how far the distribution before one layer moved between two telemetry lines."""
    norms = [trace.norm for trace in traces]
    rows: list[Spec] = [
        {"series": trace.norm, "step": trace.step[t], "drift": trace.drift[t]}
        for trace in traces
        for t in thinned(list(range(len(trace.step))), POINTS)
    ]
    known = [row for row in rows if math.isfinite(row["drift"])]
    numbers = by_series("drift", rows, norms, "step", "drift", THREE)
    return Chart(layer, tr("page.drift.note"), spec("drift", known, norms), numbers)


def domains(run: Run) -> Chart:
    """Draw accuracy by domain for every normalisation that was tried on several."""
    tried = [row for row in run.rows if row.by_domain]
    names = list(dict.fromkeys(name for row in tried for name in row.by_domain))
    rows = [
        {"series": row.norm, "domain": name, "accuracy": value}
        for row in tried
        for name, value in row.by_domain.items()
        if math.isfinite(value)
    ]
    body = [
        [row.norm, *(share(row.by_domain.get(name)) for name in names), share(row.mean)]
        for row in tried
    ]
    head: list[Words] = [tr("page.head.norm"), *names, tr("page.head.all_domains")]
    return Chart(
        tr("page.domains.title"),
        tr("page.domains.note"),
        spec("domains", rows, [row.norm for row in tried], domains=names),
        table(tr("page.domains.table"), head, body),
        across=True,
    )
