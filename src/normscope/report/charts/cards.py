"""The three small charts under a run's picture: what stays, what gamma and beta do, the trap."""

import math

from normscope.records import Counts, Inspection, Run
from normscope.report import measures, tables
from normscope.report.bilingual import Text, Words, said
from normscope.report.charts.base import PERCENT, by_series, spec, x_axis, y_axis
from normscope.report.document import Chart, Spec, table
from normscope.report.format import figure, order, percent, share

HEIGHT = 130
CURVES = 8  # layers with a line of their own


def kept(inspection: Inspection) -> Chart | None:
    """J of each layer at x, z and y: flat lines, as one affine map per channel cannot change it."""
    layers = [layer for layer in inspection.layers if math.isfinite(layer.invariance)]
    if not layers:
        return None
    stages = measures.AFFINE
    rows: list[Spec] = []
    body: list[list[Words]] = []
    shown = [layers[i] for i in tables.thinned(list(range(len(layers))), CURVES)]
    for layer in shown:
        found = {stage.name: stage.lda_fraction for stage in layer.stages}
        values = [found[name] for name in stages]
        rows += [
            {"series": layer.name, "at": at, "value": value}
            for at, value in enumerate(values)
            if math.isfinite(value)
        ]
        body.append([layer.name, *(figure(value, 6) for value in values)])
    head: list[Words] = [said("page.head.layer"), "x", "z", "y"]
    ticks = {"grid": False, "values": [0, 1, 2], "labelExpr": "['x','z','y'][datum.value]"}
    ticks |= {"tickCount": 3, "labelFontSize": 14, "ticks": False}
    picture = spec(
        rows,
        HEIGHT,
        mark={"type": "line", "point": {"size": 60}},
        encoding={
            "x": x_axis("at", None, scale={"domain": [-0.15, 2.15], "nice": False}, axis=ticks),
            "y": y_axis("value", "J", scale={"domain": [0, 1.02], "nice": False}),
            **by_series([layer.name for layer in shown]),
        },
    )
    return Chart(
        said("page.card.kept"),
        said("page.card.kept.note", layers=len(layers), difference=order(inspection.invariance)),
        picture,
        table(said("page.card.kept.table"), head, body),
        value="x = z = y",
    )


def alone(run: Run) -> Chart | None:
    """Accuracy over the epochs of the networks in which gamma and beta learn alone."""
    row = next((r for r in run.rows if r.norm == "affine_only"), None)
    curve = tables.mean_curve(run, "affine_only")
    if row is None or not math.isfinite(row.mean) or not curve:
        return None
    points = [{"epoch": 0, "accuracy": row.before}] if math.isfinite(row.before) else []
    points += [{"epoch": epoch, "accuracy": mean} for epoch, (mean, _, _) in curve.items()]
    chance = 1 / max(1, len(run.classes))
    x = x_axis("epoch", said("page.axis.epoch"), axis={"grid": False, "format": "d"})
    y = y_axis("accuracy", None, scale={"domain": [0, 1]}, **PERCENT)
    picture = spec(
        points,
        HEIGHT,
        layer=[
            {
                "data": {"values": [{"chance": chance}]},
                "mark": {"type": "rule", "strokeDash": [3, 3], "color": "var(--quiet)"},
                "encoding": {"y": {"field": "chance", "type": "quantitative"}},
            },
            {
                "mark": {"type": "area", "color": "var(--accent)", "opacity": 0.12},
                "encoding": {"x": x, "y": y},
            },
            {
                "mark": {"type": "line", "color": "var(--accent)", "point": {"size": 22}},
                "encoding": {
                    "x": x,
                    "y": y,
                    "tooltip": [
                        {"field": "epoch", "title": said("page.head.epoch")},
                        {"field": "accuracy", "title": said("page.axis.accuracy"), "format": ".1%"},
                    ],
                },
            },
        ],
    )
    body: list[list[Words]] = [
        [f"{p['epoch']:.0f}", share(p["accuracy"])] for p in tables.thinned(points)
    ]
    facts: dict[str, object] = {
        "learning": "?" if row.learning is None else f"{row.learning:,}",
        "parameters": f"{row.parameters:,}",
        "chance": percent(chance),
    }
    key = "page.card.alone.note" if run.config.freeze_head else "page.card.alone.note.head"
    return Chart(
        said("page.card.alone" if run.config.freeze_head else "page.card.alone.head"),
        said(key, **facts),
        picture,
        table(
            said("page.card.alone.table"),
            [said("page.head.epoch"), said("page.axis.accuracy")],
            body,
        ),
        value=f"{percent(row.before)} → {percent(row.mean)}",
    )


def trap(run: Run) -> Chart | None:
    """Who is taken for whom by networks that are given the label, with it and without it."""
    row = next((r for r in run.rows if r.leaks and r.without_label is not None), None)
    if row is None or row.without_label is None or not math.isfinite(row.mean):
        return None
    members = [m for m in run.members if m.norm == row.norm and m.confusion_without_label]
    if not members or not math.isfinite(row.without_label):
        return None
    size = len(run.classes)
    counts: dict[Text, list[list[int]]] = {
        said("page.card.trap.with"): _summed([m.confusion for m in members]),
        said("page.card.trap.without"): _summed([m.confusion_without_label for m in members]),
    }
    gap = size * 1.15
    cells: list[Spec] = []
    names: list[Spec] = []
    body: list[list[Words]] = []
    for panel, (name, matrix) in enumerate(counts.items()):
        names.append({"at": panel * gap + size / 2, "name": name})
        hits = _shares(matrix)
        for k, line in enumerate(hits):
            cells += [
                {
                    "x": panel * gap + j,
                    "x2": panel * gap + j + 0.94,
                    "y": k,
                    "y2": k + 0.94,
                    "share": round(value, 4),
                    "class": run.classes[k],
                    "taken": run.classes[j],
                }
                for j, value in enumerate(line)
            ]
    with_label, without = map(_shares, counts.values())
    for k, each in enumerate(run.classes):
        body.append([each, share(with_label[k][k]), share(without[k][k])])
    flat: Spec = {"type": "quantitative", "axis": None, "scale": {"nice": False, "zero": False}}
    picture = spec(
        cells,
        HEIGHT,
        layer=[
            {
                "mark": {"type": "rect", "color": "var(--accent)"},
                "encoding": {
                    "x": {"field": "x", **flat},
                    "x2": {"field": "x2"},
                    "y": {"field": "y", **flat, "scale": {"reverse": True, "nice": False}},
                    "y2": {"field": "y2"},
                    "opacity": {
                        "field": "share",
                        "type": "quantitative",
                        "scale": {"domain": [0, 1], "range": [0.06, 1]},
                        "legend": None,
                    },
                    "tooltip": [
                        {"field": "class", "title": said("page.head.class")},
                        {"field": "taken", "title": said("page.card.trap.taken")},
                        {"field": "share", "title": said("page.head.share"), "format": ".0%"},
                    ],
                },
            },
            {
                "data": {"values": names},
                "mark": {"type": "text", "baseline": "bottom", "dy": -4, "fontSize": 12},
                "encoding": {
                    "x": {"field": "at", **flat},
                    "y": {"datum": 0, **flat},
                    "text": {"field": "name"},
                },
            },
        ],
    )
    head = [said("page.head.class"), *counts]
    chance = percent(1 / max(1, size))
    return Chart(
        said("page.card.trap"),
        said("page.card.trap.note", norm=row.norm, chance=chance),
        picture,
        table(said("page.card.trap.table"), head, body),
        value=f"{percent(row.mean)} → {percent(row.without_label)}",
    )


def _summed(matrices: list[Counts]) -> list[list[int]]:
    return [
        [sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)
    ]


def _shares(counts: list[list[int]]) -> list[list[float]]:
    return [[n / max(1, sum(row)) for n in row] for row in counts]
