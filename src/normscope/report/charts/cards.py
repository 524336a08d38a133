"""The three small charts under a run's picture: what stays, what gamma and beta do, the trap."""

import math

from normscope.records import Counts, Inspection, Run
from normscope.report import measures
from normscope.report.bilingual import Words, tr
from normscope.report.charts import spec, thinned
from normscope.report.charts.training import epochs
from normscope.report.document import Chart, Spec, table
from normscope.report.format import figure, order, percent, share

CURVES = 8  # layers with a line of their own
GAP = 1.15  # from one matrix to the next, over their size
CELL = 0.94


def kept(inspection: Inspection) -> Chart | None:
    """Draw J of each layer at x, z and y: flat lines, one affine map cannot change it."""
    layers = [layer for layer in inspection.layers if math.isfinite(layer.invariance)]
    if not layers:
        return None
    values = {
        layer.name: [s.lda_fraction for s in layer.stages if s.name in measures.AFFINE]
        for layer in thinned(layers, CURVES)
    }
    rows = [
        {"series": name, "at": at, "value": value}
        for name, found in values.items()
        for at, value in enumerate(found)
        if math.isfinite(value)
    ]
    body = [[name, *(figure(value, 6) for value in found)] for name, found in values.items()]
    return Chart(
        tr("page.card.kept"),
        tr("page.card.kept.note", layers=len(layers), difference=order(inspection.invariance)),
        spec("card_kept", rows, list(values)),
        table(tr("page.card.kept.table"), [tr("page.head.layer"), "x", "z", "y"], body),
        value="x = z = y",
    )


def alone(run: Run) -> Chart | None:
    """Draw accuracy over the epochs of the networks in which gamma and beta learn alone."""
    row = next((r for r in run.rows if r.norm == "affine_only"), None)
    curve = [point for point in epochs(run) if point["series"] == "affine_only"]
    if row is None or not math.isfinite(row.mean) or not curve:
        return None
    points = [{"epoch": 0, "accuracy": row.before}] if math.isfinite(row.before) else []
    points += [{"epoch": point["epoch"], "accuracy": point["mean"]} for point in curve]
    chance = 1 / max(1, len(run.classes))
    note = tr(
        "page.card.alone.note" if run.config.freeze_head else "page.card.alone.note.head",
        learning="?" if row.learning is None else f"{row.learning:,}",
        parameters=f"{row.parameters:,}",
        chance=percent(chance),
    )
    body = [[f"{p['epoch']:.0f}", share(p["accuracy"])] for p in thinned(points)]
    head = [tr("page.head.epoch"), tr("page.axis.accuracy")]
    return Chart(
        tr("page.card.alone" if run.config.freeze_head else "page.card.alone.head"),
        note,
        spec("card_alone", points, chance=chance),
        table(tr("page.card.alone.table"), head, body),
        value=f"{percent(row.before)} → {percent(row.mean)}",
    )


def trap(run: Run) -> Chart | None:
    """Draw who is taken for whom by networks that are given the label, with it and without it."""
    row = next((r for r in run.rows if r.leaks and r.without_label is not None), None)
    if row is None or row.without_label is None or not math.isfinite(row.mean + row.without_label):
        return None
    members = [m for m in run.members if m.norm == row.norm and m.confusion_without_label]
    if not members:
        return None
    size = len(run.classes)
    names = [tr("page.card.trap.with"), tr("page.card.trap.without")]
    shares = [
        _shares([m.confusion for m in members]),
        _shares([m.confusion_without_label for m in members]),
    ]
    cells: list[Spec] = [
        {
            "x": panel * GAP * size + j,
            "x2": panel * GAP * size + j + CELL,
            "y": k,
            "y2": k + CELL,
            "share": round(value, 4),
            "class": run.classes[k],
            "taken": run.classes[j],
        }
        for panel, matrix in enumerate(shares)
        for k, line in enumerate(matrix)
        for j, value in enumerate(line)
    ]
    titles = [{"at": panel * GAP * size + size / 2, "name": n} for panel, n in enumerate(names)]
    body: list[list[Words]] = [
        [name, *(share(matrix[k][k]) for matrix in shares)] for k, name in enumerate(run.classes)
    ]
    return Chart(
        tr("page.card.trap"),
        tr("page.card.trap.note", norm=row.norm, chance=percent(1 / max(1, size))),
        spec("card_trap", cells, titles=titles),
        table(tr("page.card.trap.table"), [tr("page.head.class"), *names], body),
        value=f"{percent(row.mean)} → {percent(row.without_label)}",
    )


def _shares(matrices: list[Counts]) -> list[list[float]]:
    """Sum counts over networks, and divide each class by its number of samples."""
    summed = [[sum(n) for n in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]
    return [[n / max(1, sum(row)) for n in row] for row in summed]
