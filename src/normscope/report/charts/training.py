"""Charts of training: curves, rates, gamma and beta, drift, domains."""

import math
from typing import Literal

from normscope.records import Run, Trace
from normscope.report import tables
from normscope.report.bilingual import Text, said
from normscope.report.charts.base import (
    LOOSE,
    PERCENT,
    SHAPES,
    Chart,
    Spec,
    by_series,
    spec,
    x_axis,
    y_axis,
)
from normscope.report.document import Table, table
from normscope.report.format import figure
from normscope.report.tables import thinned

POINTS = 300  # of one line over training
QUANTILES = ("q5", "q25", "q50", "q75", "q95")
POWERS = [10.0**p for p in range(-8, 9)]  # the ticks of a logarithmic axis


def comparison(run: Run) -> Chart:
    """Every network a dot, every normalisation a mean with its spread."""
    norms = [row.norm for row in run.rows]
    dots = [
        {"series": m.norm, "value": m.accuracy, "seed": m.seed}
        for m in run.members
        if math.isfinite(m.accuracy)
    ]
    means = [
        {
            "series": r.norm,
            "mean": r.mean,
            "low": r.mean - (0 if math.isnan(r.spread) else r.spread),
            "high": min(1.0, r.mean + (0 if math.isnan(r.spread) else r.spread)),
        }
        for r in run.rows
        if math.isfinite(r.mean)
    ]
    colour = by_series(norms)["color"] | {"legend": None}
    row: Spec = {"field": "series", "type": "nominal", "sort": norms, "title": None}
    row["axis"] = {"labelColor": "var(--ink)", "labelFontSize": 13, "domain": False, "ticks": False}
    accuracy = said("page.axis.accuracy")
    picture = spec(
        [],
        44 * max(1, len(norms)),
        encoding={"y": row, "color": colour},
        layer=[
            {
                "data": {"values": means},
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {
                    "x": x_axis("low", accuracy, **LOOSE, axis={"format": ".1~%", "tickCount": 4}),
                    "x2": {"field": "high"},
                },
            },
            {
                "data": {"values": dots},
                "mark": {"type": "point", "filled": False, "size": 50, "strokeWidth": 1.5},
                "encoding": {
                    "x": x_axis("value", accuracy, **LOOSE),
                    "tooltip": [
                        {"field": "series", "title": said("page.head.norm")},
                        {"field": "seed", "title": said("page.head.seed")},
                        {"field": "value", "title": accuracy, "format": ".2%"},
                    ],
                },
            },
            {
                "data": {"values": means},
                "mark": {"type": "tick", "thickness": 3, "size": 22},
                "encoding": {"x": x_axis("mean", accuracy, **LOOSE)},
            },
        ],
    )
    note = said("page.comparison.note")
    return Chart(
        said("page.comparison.title"), note, picture, tables.members(run), across=not run.sweeps
    )


def learning_curves(run: Run) -> list[Chart]:
    """Test accuracy and training loss over the epochs, mean over seeds with spread."""
    norms = [row.norm for row in run.rows]
    rows = [
        {
            "series": norm,
            "epoch": epoch,
            "mean": mean,
            "low": mean - spread,
            "high": min(1.0, mean + spread),
            "loss": loss if math.isfinite(loss) and loss > 0 else None,
        }
        for norm in norms
        for epoch, (mean, spread, loss) in tables.mean_curve(run, norm).items()
    ]
    if not rows:
        return []
    look = by_series(norms)
    # whole epochs only
    x = x_axis(
        "epoch", said("page.axis.epoch"), axis={"grid": False, "format": "d", "tickMinStep": 1}
    )
    band = {
        "mark": {"type": "area", "opacity": 0.16},
        "encoding": {
            "y": y_axis("low", said("page.axis.accuracy"), **LOOSE),
            "y2": {"field": "high"},
            "color": look["color"],
        },
    }
    accuracy = {
        "mark": {"type": "line", "point": {"size": 22}},
        "encoding": {
            "y": y_axis("mean", said("page.axis.accuracy"), **LOOSE, **PERCENT),
            **look,
            "tooltip": [
                {"field": "series", "title": said("page.head.norm")},
                {"field": "epoch", "title": said("page.head.epoch")},
                {"field": "mean", "title": said("page.axis.accuracy"), "format": ".2%"},
            ],
        },
    }
    loss = {
        "mark": {"type": "line"},
        "encoding": {
            "y": y_axis(
                "loss", said("page.axis.loss"), scale={"type": "log"}, axis={"values": POWERS}
            ),
            **look,
        },
    }
    numbers = tables.learning_curves(run)
    return [
        Chart(
            said("page.curves.title"),
            said("page.curves.note"),
            spec(rows, 260, encoding={"x": x}, layer=[band, accuracy]),
            numbers,
        ),
        Chart(
            said("page.loss.title"),
            said("page.loss.note"),
            spec(rows, 260, encoding={"x": x}, layer=[loss]),
            _loss_table(run),
        ),
    ]


def _loss_table(run: Run) -> Table:
    norms = [row.norm for row in run.rows]
    curves = {norm: tables.mean_curve(run, norm) for norm in norms}
    epochs = sorted({epoch for curve in curves.values() for epoch in curve})
    rows: list[list[str | Text]] = [
        [str(e), *(figure(curves[n][e][2] if e in curves[n] else None, 3) for n in norms)]
        for e in thinned(epochs)
    ]
    return table(said("page.loss.table"), [said("page.head.epoch"), *norms], rows)


def sweep(run: Run) -> Chart:
    """Accuracy after a short run, over learning rates that span decades."""
    norms = [s.norm for s in run.sweeps]
    rows = [
        {"series": s.norm, "rate": rate, "accuracy": accuracy}
        for s in run.sweeps
        for rate, accuracy in zip(s.lr, s.accuracy, strict=True)
        if math.isfinite(accuracy) and rate > 0
    ]
    look = by_series(norms)
    rates = sorted({rate for s in run.sweeps for rate in s.lr if rate > 0})
    ticks = {"grid": False, "format": "~g", "values": rates, "tickCount": len(rates)}
    ticks["labelOverlap"] = True
    picture = spec(
        rows,
        260,
        mark={"type": "line", "point": {"size": 44}},
        encoding={
            "x": x_axis(
                "rate", said("page.axis.rate"), scale={"type": "log", "nice": False}, axis=ticks
            ),
            "y": y_axis("accuracy", said("page.axis.accuracy"), scale={"domainMin": 0}, **PERCENT),
            **look,
            "tooltip": [
                {"field": "series", "title": said("page.head.norm")},
                {"field": "rate", "title": said("page.head.rate"), "format": "~g"},
                {"field": "accuracy", "title": said("page.axis.accuracy"), "format": ".1%"},
            ],
        },
    )
    return Chart(said("page.sweep.title"), said("page.sweep.note"), picture, tables.sweep(run))


def parameter(trace: Trace, symbol: Literal["γ", "β"]) -> Chart:
    """How gamma or beta of one layer moved: the middle, half and nine tenths of its channels."""
    grid = trace.gamma if symbol == "γ" else trace.beta
    steps = thinned(list(range(len(trace.step))), POINTS)
    rows = [
        {"step": trace.step[t]} | dict(zip(QUANTILES, quantiles(grid[t]), strict=True))
        for t in steps
        if all(map(math.isfinite, grid[t])) and grid[t]
    ]

    def band(low: str, high: str, opacity: float) -> Spec:
        return {
            "mark": {"type": "area", "opacity": opacity, "color": "var(--accent)"},
            "encoding": {"y": y_axis(low, symbol, **LOOSE), "y2": {"field": high}},
        }

    middle = {
        "mark": {"type": "line", "color": "var(--accent)"},
        "encoding": {
            "y": y_axis("q50", symbol, **LOOSE),
            "tooltip": [
                {"field": "step", "title": said("page.head.step")},
                *({"field": q, "title": f"{q[1:]}%", "format": ".4f"} for q in QUANTILES),
            ],
        },
    }
    body: list[list[str | Text]] = [
        [str(row["step"]), *(figure(row[q]) for q in QUANTILES)] for row in thinned(rows)
    ]
    head: list[str | Text] = [said("page.head.step"), *(f"{q[1:]}%" for q in QUANTILES)]
    x = x_axis("step", said("page.axis.step"))
    return Chart(
        f"{symbol}, {trace.layer}",
        said("page.parameter.note"),
        spec(
            rows,
            170,
            encoding={"x": x},
            layer=[band("q5", "q95", 0.16), band("q25", "q75", 0.28), middle],
        ),
        table(said("page.parameter.table"), head, body),
    )


def quantiles(values: tuple[float, ...]) -> list[float]:
    """The 5, 25, 50, 75 and 95 % quantiles, linear between values."""
    ordered = sorted(values)

    def at(q: float) -> float:
        place = q * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return [at(q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)]


def drift(traces: list[Trace], layer: str) -> Chart:
    """How far the distribution before one layer moved between two telemetry lines."""
    norms = [t.norm for t in traces]
    rows = [
        {"series": trace.norm, "step": trace.step[t], "drift": trace.drift[t]}
        for trace in traces
        for t in thinned(list(range(len(trace.step))), POINTS)
        if math.isfinite(trace.drift[t])
    ]
    picture = spec(
        rows,
        200,
        mark={"type": "line", "strokeWidth": 1.75},
        encoding={
            "x": x_axis("step", said("page.axis.step")),
            "y": y_axis("drift", said("page.axis.drift")),
            **by_series(norms),
        },
    )
    steps = thinned(sorted({s for t in traces for s in t.step}))
    found = {t.norm: dict(zip(t.step, t.drift, strict=True)) for t in traces}
    body: list[list[str | Text]] = [
        [str(s), *(figure(found[n].get(s), 3) for n in norms)] for s in steps
    ]
    head: list[str | Text] = [said("page.head.step"), *norms]
    numbers = table(said("page.drift.table"), head, body)
    return Chart(layer, said("page.drift.note"), picture, numbers)


def domains(run: Run) -> Chart:
    """Accuracy by domain for every normalisation that was tried on several."""
    norms = [row.norm for row in run.rows if row.by_domain]
    rows = [
        {"series": row.norm, "domain": name, "accuracy": value}
        for row in run.rows
        for name, value in row.by_domain.items()
        if math.isfinite(value)
    ]
    names = list(dict.fromkeys(row["domain"] for row in rows))
    look = by_series(norms)
    shapes = {"field": "series", "type": "nominal", "scale": {"domain": norms, "range": SHAPES}}
    picture = spec(
        rows,
        220,
        mark={"type": "point", "size": 90},
        encoding={
            "x": {
                "field": "domain",
                "type": "nominal",
                "sort": names,
                "title": said("page.axis.domain"),
                "axis": {"labelAngle": 0},
            },
            "xOffset": {"field": "series", "type": "nominal", "sort": norms},
            "y": y_axis("accuracy", said("page.axis.accuracy"), **LOOSE, **PERCENT),
            "color": look["color"] | {"legend": {}},
            "shape": shapes,
            "tooltip": [
                {"field": "series", "title": said("page.head.norm")},
                {"field": "domain", "title": said("page.axis.domain")},
                {"field": "accuracy", "title": said("page.axis.accuracy"), "format": ".2%"},
            ],
        },
    )
    title, note = said("page.domains.title"), said("page.domains.note")
    return Chart(title, note, picture, tables.domains(run), across=True)
