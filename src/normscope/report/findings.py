"""What an inspection shows, as sentences: which ones it calls for is decided by its numbers."""

import math
from collections.abc import Iterable
from statistics import fmean

from normscope.records import Inspection, Layer, StageMeasures, Work, WorkName
from normscope.report.bilingual import Text, said, several
from normscope.report.story import percent

TOLERANCE = 1e-5  # float32 rounding of a healthy layer stays far below this
ROUNDINGS = 10  # beyond it: by so many roundings of the worst channel eta2 may differ
NAMED = 3  # layers that a remark names; the others are counted

# an activation must move J by more than rounding to be said to have raised it
RAISED = 1e-6


def verdict(inspection: Inspection) -> list[Text]:
    """The answer: what the layers kept, what the non-linearity and the gates made of it."""
    layers = [layer for layer in inspection.layers if not math.isnan(layer.invariance)]
    if not layers:
        return [said("lens.verdict.untested")]
    worst = max(layers, key=lambda layer: layer.invariance / tolerance(layer))
    if worst.invariance > tolerance(worst):
        shown = f"{worst.invariance:.1g}"
        return [said("lens.verdict.broken", layer=worst.name, difference=shown)]
    said_so = [said("lens.verdict.held", layers=len(layers))]
    lost = [layer.name for layer in layers if 0 in layer.gamma]
    if lost:
        said_so.append(said("lens.verdict.lost", layers=_listed(lost)))
    return [*said_so, *_changed(layers)]


def tolerance(layer: Layer) -> float:
    """How far eta2 and J may differ by rounding alone."""
    return max(TOLERANCE, ROUNDINGS * layer.rounding)


def self_test(inspection: Inspection) -> Text:
    """The line that says how far eta2 and J differ where they must be equal."""
    difference = "-" if math.isnan(inspection.invariance) else f"{inspection.invariance:.1g}"
    return said("lens.selftest", difference=difference)


def composition(inspection: Inspection) -> Text | None:
    """What the loader's batches would do in training, predicted from labels and measured."""
    facts = inspection.batches
    measured = [v for v in (layer.signal for layer in inspection.layers) if math.isfinite(v)]
    if facts is None or not measured or not math.isfinite(facts.predicted):
        return None
    return said(
        "lens.composition",
        size=f"{facts.size:.0f}",
        r=f"{facts.excess + 0:.3f}",
        predicted=percent(facts.predicted),
        low=percent(min(measured)),
        high=percent(max(measured)),
    )


def collapsed(inspection: Inspection) -> Text | None:
    """The neural-collapse set at the last layer."""
    found = inspection.collapse
    if found is None:
        return None
    if math.isnan(found.within):
        return said("lens.collapse.none", layer=found.layer)
    names = ("within", "within_unweighted", "norms", "angles", "simplex")
    values = {name: f"{getattr(found, name):.3g}" for name in names}
    text = said("lens.collapse", layer=found.layer, **values)
    if math.isnan(found.agreement):
        return text
    duality, agreement = f"{found.duality:.3g}", percent(found.agreement)
    return several([text, said("lens.collapse.head", duality=duality, agreement=agreement)])


def work(inspection: Inspection) -> dict[WorkName, Work]:
    """What each kind of step changed, summed over the layers; NaN where nothing is known."""
    kinds: tuple[WorkName, ...] = ("weights", "normalisation", "gamma_beta", "activation")
    measures = ("eta2", "lda", "nearest_mean", "separation", "condition")
    sums = {}
    for kind in kinds:
        steps = [step for step in inspection.work if step.by == kind]
        if steps:
            known = {m: [v for s in steps if math.isfinite(v := getattr(s, m))] for m in measures}
            total = {m: sum(values) if values else math.nan for m, values in known.items()}
            sums[kind] = Work(layer="", by=kind, **total)
    return sums


def mean_known(values: Iterable[float]) -> float:
    """The mean of the finite ones; NaN where there is none."""
    known = [value for value in values if math.isfinite(value)]
    return fmean(known) if known else math.nan


def remarks(inspection: Inspection) -> list[Text]:
    """What to know about some layers, and why others were not followed; once per reason."""
    about = [(key, layer.name) for layer in inspection.layers for key in layer.notes]
    about += [(key, name) for name, key in inspection.skipped.items()]
    names: dict[str, list[str]] = {}
    for key, name in about:
        names.setdefault(key, []).append(name)
    return [said("lens.about", layers=_listed(n), text=said(key)) for key, n in names.items()]


def firing_spread(layer: Layer) -> float:
    """Firing rate of the class that fires most less that of the least, mean over channels."""
    columns = (
        [f for f in column if not math.isnan(f)] for column in zip(*layer.firing, strict=True)
    )
    return fmean(max(column) - min(column) for column in columns)


def stage(layer: Layer, name: str) -> StageMeasures | None:
    """The stage of that name, where the layer has it."""
    return next((s for s in layer.stages if s.name == name), None)


def _changed(layers: list[Layer]) -> Iterable[Text]:
    steps = [(before, after, layer) for layer in layers for before, after in [_fractions(layer)]]
    active = [step for step in steps if not math.isnan(step[1])]
    if active:
        raised = sum(after - before > RAISED for before, after, _ in active)
        before, after, layer = max(active, key=lambda step: step[1] - step[0])
        yield (
            said(
                "lens.verdict.activation",
                raised=raised,
                layers=len(active),
                layer=layer.name,
                before=f"{before:.3f}",
                after=f"{after:.3f}",
            )
            if raised
            else said("lens.verdict.lowered")
        )
    layer = max(layers, key=lambda layer: abs(_nearest(layer, 2) - _nearest(layer, 0)))
    yield said(
        "lens.verdict.geometry",
        layer=layer.name,
        before=percent(_nearest(layer, 0)),
        after=percent(_nearest(layer, 2)),
    )
    layer = max(layers, key=firing_spread)
    yield said("lens.verdict.gate", layer=layer.name, spread=percent(firing_spread(layer)))


def _fractions(layer: Layer) -> tuple[float, float]:
    """J before and after the activation; NaN after where none follows."""
    activated = stage(layer, "activated")
    return layer.stages[2].lda_fraction, activated.lda_fraction if activated else math.nan


def _nearest(layer: Layer, place: int) -> float:
    return layer.stages[place].nearest_mean_accuracy


def _listed(names: list[str]) -> Text | str:
    listed = ", ".join(names[:NAMED])
    more = len(names) - NAMED
    return said("lens.layers", names=listed, more=more) if more > 0 else listed
