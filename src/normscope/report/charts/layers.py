"""Charts of layers: what can be told apart at each stage, and who passes which gate."""

import math

from normscope.records import Inspection, Layer
from normscope.report.bilingual import tr
from normscope.report.channels import class_names, told
from normscope.report.charts import spec, thinned
from normscope.report.document import Chart, Spec, table
from normscope.report.format import share
from normscope.report.measures import by_stage

NAMED = 8  # of more layers the curves show the last stage only, by number
CHANNELS = 48  # columns of the firing picture
CURVES = {"lda": "lda_fraction", "eta2": "eta2_mean", "nearest_mean": "nearest_mean_accuracy"}
STAGE_SIGNS = {
    "pre_activation": "p",
    "input": "x",
    "normalised": "z",
    "scaled_shifted": "y",
    "activated": "f(y)",
}


def separability(inspection: Inspection) -> Chart:
    """Draw J, mean eta squared and nearest-mean accuracy through the stages of every layer."""
    names = {tr(f"page.series.{curve}"): field for curve, field in CURVES.items()}
    crowded = len(inspection.layers) > NAMED
    rows: list[Spec] = []
    labels: list[str] = []
    starts: list[Spec] = []
    for place, layer in enumerate(inspection.layers, 1):
        if not crowded:
            starts.append({"at": len(labels) - 0.5, "name": layer.name})
        for stage in layer.stages[-1:] if crowded else layer.every_stage:
            at = {"at": len(labels), "layer": "" if crowded else layer.name}
            found = {name: getattr(stage, field) for name, field in names.items()}
            rows += [{**at, "series": n, "value": v} for n, v in found.items() if math.isfinite(v)]
            labels.append(str(place) if crowded else STAGE_SIGNS[stage.name])
    picture = spec(
        "separability",
        rows,
        list(names),
        starts=starts,
        domain=[-0.5, len(labels) - 0.5],
        places=list(range(len(labels))),
        labels="[" + ",".join(f"'{label}'" for label in labels) + "][datum.value]",
        count=len(labels),  # without a count of their own, the shared one drops every other tick
        size=12 if crowded else 50,
    )
    note = tr("page.separability.many" if crowded else "page.separability.note")
    numbers = by_stage(inspection.layers)
    return Chart(tr("page.separability.title"), note, picture, numbers, across=True)


def firing(layer: Layer, inspection: Inspection, classes: list[int]) -> Chart:
    """Draw which classes pass which gate, channels in the order of their first class."""

    def rate(k: int, c: int) -> float:
        return float(layer.firing[k, c]) if math.isfinite(layer.firing[k, c]) else 0.0

    leader = [max(classes, key=lambda k: rate(k, c)) for c in range(layer.channels)]
    order = sorted(range(layer.channels), key=lambda c: (leader[c], -rate(leader[c], c)))
    order = thinned(order, CHANNELS)
    every = class_names(inspection)
    names = [every[k] for k in classes]
    rows = [
        {"at": place, "channel": c, "class": name, "share": round(float(layer.firing[k, c]), 4)}
        for place, c in enumerate(order)
        for k, name in zip(classes, names, strict=True)
        if math.isfinite(layer.firing[k, c])
    ]
    picture = spec(
        "firing",
        rows,
        height=max(120 if len(classes) > 1 else 40, 19 * len(classes)),
        title=told(inspection, "page.axis.channels", shown=len(order), of=layer.channels),
        classes=names,
    )
    body = [[str(c), *(share(float(layer.firing[k, c])) for k in classes)] for c in order]
    numbers = table(tr("page.firing.table"), [tr("page.head.channel"), *names], body)
    title, note = (told(inspection, f"page.firing.{name}") for name in ("title", "note"))
    return Chart(title, note, picture, numbers, across=True)
