"""Charts of layers: what can be told apart at each stage, and who passes which gate."""

import math

from normscope.records import Inspection, Layer
from normscope.report.bilingual import Words, said
from normscope.report.charts.base import (
    Chart,
    Spec,
    by_series,
    spec,
    x_axis,
    y_axis,
)
from normscope.report.document import Table, table
from normscope.report.format import share
from normscope.report.measures import by_stage
from normscope.report.tables import thinned

NAMED = 10  # of more layers the curves show the last stage only, by number
CHANNELS = 48  # columns of the firing picture


def separability(inspection: Inspection) -> Chart:
    """J, mean eta squared and nearest-mean accuracy through the stages of every layer."""
    measures = ("lda", "eta2", "nearest_mean")
    names = {m: said(f"page.series.{m}") for m in measures}
    rows: list[Spec] = []
    marks: list[str] = []
    starts: list[Spec] = []
    crowded = len(inspection.layers) > NAMED
    for layer in inspection.layers:
        if crowded:
            stage = layer.stages[-1]
            values = (stage.lda_fraction, stage.eta2_mean, stage.nearest_mean_accuracy)
            rows += [
                {"at": len(marks), "series": names[m], "value": v, "layer": ""}
                for m, v in zip(measures, values, strict=True)
                if math.isfinite(v)
            ]
            marks.append(str(len(marks) + 1))
            continue
        starts.append({"at": len(marks) - 0.5, "name": layer.name})
        for stage in layer.every_stage:
            values = (stage.lda_fraction, stage.eta2_mean, stage.nearest_mean_accuracy)
            rows += [
                {"at": len(marks), "series": names[m], "value": v, "layer": layer.name}
                for m, v in zip(measures, values, strict=True)
                if math.isfinite(v)
            ]
            marks.append(STAGE_SIGNS[stage.name])
    look = by_series([names[m] for m in measures])
    ticks = "[" + ",".join(f"'{m}'" for m in marks) + "][datum.value]"
    axis = {"grid": False, "values": list(range(len(marks))), "labelExpr": ticks, "ticks": False}
    # without a count of their own, the shared one drops every other tick
    axis |= {"tickCount": len(marks), "labelOverlap": True}
    x = x_axis("at", None, scale={"domain": [-0.5, len(marks) - 0.5], "nice": False}, axis=axis)
    picture = spec(
        rows,
        280,
        layer=[
            {
                "data": {"values": starts},
                "mark": {"type": "rule", "strokeDash": [3, 3]},
                "encoding": {"x": x},
            },
            {
                "data": {"values": starts},
                "mark": {
                    "type": "text",
                    "align": "left",
                    "dx": 6,
                    "dy": 2,
                    "baseline": "top",
                    "limit": min(150, 540 // max(len(starts), 1) - 8),  # up to the next name
                },
                "encoding": {"x": x, "y": {"value": 0}, "text": {"field": "name"}},
            },
            {
                "mark": {"type": "line", "point": {"size": 12 if crowded else 50}},
                "encoding": {
                    "x": x,
                    "y": y_axis(
                        "value", None, scale={"domainMin": 0, "domainMax": 1.06, "nice": False}
                    ),
                    "detail": {"field": "layer"},
                    **look,
                },
            },
        ],
    )
    key = "page.separability.many" if crowded else "page.separability.note"
    title, note = said("page.separability.title"), said(key)
    return Chart(title, note, picture, by_stage(inspection.layers), across=True)


STAGE_SIGNS = {
    "pre_activation": "p",
    "input": "x",
    "normalised": "z",
    "scaled_shifted": "y",
    "activated": "f(y)",
}


def firing(layer: Layer, inspection: Inspection, classes: list[int]) -> Chart:
    """Which classes pass the gate of which channel, channels in the order of their first class."""
    leader = {
        c: max(classes, key=lambda k: _or_zero(layer.firing[k, c])) for c in range(layer.channels)
    }
    order = sorted(
        range(layer.channels), key=lambda c: (leader[c], -_or_zero(layer.firing[leader[c], c]))
    )
    order = thinned(order, CHANNELS)
    rows = [
        {
            "at": place,
            "channel": c,
            "class": inspection.classes[k],
            "share": round(float(layer.firing[k, c]), 4),
        }
        for place, c in enumerate(order)
        for k in classes
        if math.isfinite(layer.firing[k, c])
    ]
    picture = spec(
        rows,
        max(120, 19 * len(classes)),
        mark={"type": "rect"},
        encoding={
            "x": {
                "field": "at",
                "type": "ordinal",
                "title": said("page.axis.channels", shown=len(order), of=layer.channels),
                "axis": {"labels": False, "ticks": False},
            },
            "y": {
                "field": "class",
                "type": "nominal",
                "title": None,
                "sort": [inspection.classes[k] for k in classes],
                "axis": {"labelLimit": 110},
            },
            "color": {
                "field": "share",
                "type": "quantitative",
                "scale": {"scheme": "cividis", "domain": [0, 1]},
                "legend": {"format": ".0%", "gradientLength": 140, "gradientThickness": 10},
            },
            "tooltip": [
                {"field": "channel", "title": said("page.head.channel")},
                {"field": "class", "title": said("page.head.class")},
                {"field": "share", "title": said("page.head.passes"), "format": ".1%"},
            ],
        },
    )
    numbers = _shares(layer, inspection, classes, order)
    return Chart(said("page.firing.title"), said("page.firing.note"), picture, numbers, across=True)


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _shares(layer: Layer, inspection: Inspection, classes: list[int], channels: list[int]) -> Table:
    """Share of values that pass the gate, class by channel."""
    rows: list[list[Words]] = [
        [str(c), *(share(float(layer.firing[k, c])) for k in classes)] for c in channels
    ]
    head: list[Words] = [said("page.head.channel"), *(inspection.classes[k] for k in classes)]
    return table(said("page.firing.table"), head, rows)
