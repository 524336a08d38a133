"""What an inspection shows, as sentences: which ones it calls for is decided by its numbers."""

import math
from collections.abc import Iterable
from statistics import fmean

from normscope.records import Inspection, Layer, StageMeasures, Work, WorkName
from normscope.report.bilingual import Text, few, joined, sentences, tr
from normscope.report.format import percent, signed

TOLERANCE = 1e-5  # float32 rounding of a healthy layer stays far below this
ROUNDINGS = 10  # beyond it: by so many roundings of the worst channel eta2 may differ
RAISED = 1e-6  # rounding: an activation must move J by more to be said to have raised it
THINNED = 256  # channels that J uses of a layer that has more than it can use
CHANCE = 0.5  # J may be judged where labels drawn at random would leave it below this
SIGMAS = 3  # by so many deviations of chance a change must exceed it
ABOVE_CHANCE = 2  # times the spread of firing rates that chance gives, to be named
WORK: tuple[WorkName, ...] = ("weights", "normalisation", "gamma_beta", "activation")
CHANGES = ("eta2", "lda", "nearest_mean", "separation", "condition")


# --- the verdict ------------------------------------------------------------------------------


def verdict(inspection: Inspection) -> list[Text]:
    """Answer what the layers kept, and what the non-linearity and the gates made of it.

    What chance explains is no answer: where the images are too few, that comes first.
    """
    broken = [la for la in inspection.layers if la.invariance > tolerance(la)]
    if broken:  # eta2 and J differ by more than rounding, though the layer is one map
        worst = max(broken, key=lambda layer: layer.invariance / tolerance(layer))
        shown = f"{worst.invariance:.1g}"
        return [tr("lens.verdict.broken", layer=worst.name, difference=shown)]
    single = [layer for layer in inspection.layers if layer.maps != "per_condition"]
    changed = (_raised(inspection, single), _geometry(single), _gate(single))
    return [*too_few(single), *_kept(inspection), *(text for text in changed if text is not None)]


def too_few(layers: list[Layer]) -> list[Text]:
    """Say so where chance alone would separate the classes at every layer."""
    chances = [(chance(layer, stage), layer) for layer in layers for stage in layer.every_stage]
    known = [(c, layer) for c, layer in chances if math.isfinite(c)]
    if not known or min(c for c, _ in known) < CHANCE:
        return []
    worst, layer = max(known, key=lambda pair: pair[0])
    # the channels that J uses
    widths = (THINNED if "lens.note.joint_channels" in la.notes else la.channels for la in layers)
    needed = 1 + round(max(widths) / CHANCE)
    facts = {"images": layer.images, "layer": layer.name, "needed": f"{needed:,}"}
    return [tr("lens.verdict.too_few", chance=f"{worst:.2f}", **facts)]


def chance(layer: Layer, stage: StageMeasures) -> float:
    """Compute J of labels drawn at random, rank / (N - 1); NaN where N is not known."""
    return min(1.0, stage.rank / (layer.images - 1)) if layer.images > 1 else math.nan


def gain(layer: Layer, before: StageMeasures, after: StageMeasures, classes: int) -> float:
    """Compute by how much J rose above chance, in [0, 1]; 0 where chance explains the rise or J.

    Each J is corrected as (J - c) / (1 - c) with c of `chance`. Under labels drawn at random it
    is the mean of rank (K - 1) squared correlations, of deviation about sqrt(2) / (N - 1) each.
    """
    found, noise = [], 0.0
    for stage in (before, after):
        c = chance(layer, stage)
        if not c < CHANCE:
            return 0.0
        found.append((stage.lda_fraction - c) / (1 - c))
        noise += 2 * stage.rank / max(1, classes - 1) / ((layer.images - 1) * (1 - c)) ** 2
    rise = found[1] - found[0]
    return rise if rise > max(RAISED, SIGMAS * math.sqrt(noise)) else 0.0


def tolerance(layer: Layer) -> float:
    """Compute how far eta2 and J may differ by rounding alone."""
    return max(TOLERANCE, ROUNDINGS * layer.rounding)


def _kept(inspection: Inspection) -> list[Text]:
    """Say what is known of the invariance of eta2 and J."""
    layers = [layer for layer in inspection.layers if not math.isnan(layer.invariance)]
    key = "lens.verdict.held.one" if len(layers) == 1 else "lens.verdict.held"
    texts = [tr(key, layers=len(layers))] if layers else []
    # where every gamma is 0 nothing is left to compare; such a layer is named all the more
    lost = [layer.name for layer in inspection.layers if 0 in layer.gamma]
    if lost:
        texts.append(tr("lens.verdict.lost", layers=few(lost)))
    texts += _per_sample(inspection)
    return texts or [tr("lens.verdict.untested")]


def _per_sample(inspection: Inspection) -> list[Text]:
    """Say by how much layers that normalise each sample by itself changed eta2 and J."""
    layers = [layer for layer in inspection.layers if layer.maps == "per_sample"]
    known = [layer for layer in layers if math.isfinite(layer.eta2_change + layer.lda_change)]
    if not known:
        return []
    most = max(known, key=lambda layer: max(abs(layer.eta2_change), abs(layer.lda_change)))
    eta2, fraction = ([getattr(la, n) for la in known] for n in ("eta2_change", "lda_change"))
    text = tr(
        "lens.verdict.per_sample",
        layers=few([layer.name for layer in layers]),
        norms=", ".join(sorted({layer.norm for layer in layers})),
        eta2_low=signed(min(eta2)),
        eta2_high=signed(max(eta2)),
        low=signed(min(fraction)),
        high=signed(max(fraction)),
        most=most.name,
    )
    return [text]


def _raised(inspection: Inspection, layers: list[Layer]) -> Text | None:
    """Say where an activation raised J most, beyond what chance explains."""
    steps = [(layer, *pair) for layer in layers for pair in _activations(layer)]
    if not steps or too_few(layers):
        return None
    classes = sum(n > 0 for n in inspection.counts)
    gains = [gain(*step, classes) for step in steps]
    layer, before, after = steps[gains.index(max(gains))]
    return tr(
        "lens.verdict.activation" if max(gains) > 0 else "lens.verdict.lowered",
        raised=sum(g > 0 for g in gains),
        layers=len(steps),
        layer=layer.name,
        before=f"{before.lda_fraction:.3f}",
        after=f"{after.lda_fraction:.3f}",
    )


def _activations(layer: Layer) -> Iterable[tuple[StageMeasures, StageMeasures]]:
    """Yield the stages before and after each activation at the layer."""
    if layer.pre_activation is not None:
        yield layer.pre_activation, layer.stages[0]
    activated = stage(layer, "activated")
    if activated is not None:
        yield layer.stages[2], activated


def _geometry(layers: list[Layer]) -> Text | None:
    """Say where the nearest-mean accuracy changed most, by more than chance."""
    moved = []
    for layer in layers:
        before, after = (layer.stages[place].nearest_mean_accuracy for place in (0, 2))
        noise = math.sqrt((before * (1 - before) + after * (1 - after)) / (layer.sampled or 1))
        if layer.sampled and abs(after - before) > SIGMAS * noise:
            moved.append((abs(after - before), layer.name, percent(before), percent(after)))
    if not moved:
        return None
    _, name, old, new = max(moved, key=lambda item: item[0])
    return tr("lens.verdict.geometry", layer=name, before=old, after=new)


def _gate(layers: list[Layer]) -> Text | None:
    """Say where the firing rates of classes differ most, by more than chance."""
    apart = [la for la in layers if la.firing_spread > ABOVE_CHANCE * la.firing_chance]
    if not apart:
        return None
    layer = max(apart, key=lambda layer: layer.firing_spread)
    spread, expected = percent(layer.firing_spread), percent(layer.firing_chance)
    return tr("lens.verdict.gate", layer=layer.name, spread=spread, chance=expected)


# --- remarks ----------------------------------------------------------------------------------


def self_test(inspection: Inspection) -> Text:
    """Say how far eta2 and J differ where they must be equal."""
    if math.isnan(inspection.invariance):
        return tr("lens.selftest.none" if inspection.compared else "lens.selftest.none.alone")
    return tr("lens.selftest", difference=f"{inspection.invariance:.1g}")


def composition(inspection: Inspection) -> Text | None:
    """Say what the loader's batches would do in training, predicted and measured."""
    facts = inspection.batches
    measured = [v for v in (layer.signal for layer in inspection.layers) if math.isfinite(v)]
    if facts is None or not measured or not math.isfinite(facts.predicted):
        return None
    return tr(
        "lens.composition",
        size=f"{facts.size:.0f}",
        r=f"{facts.excess + 0:.3f}",
        predicted=percent(facts.predicted),
        low=percent(min(measured)),
        high=percent(max(measured)),
    )


def collapsed(inspection: Inspection) -> Text | None:
    """Say how far the last layer's features have collapsed."""
    found = inspection.collapse
    if found is None:
        return None
    if math.isnan(found.within):
        return tr("lens.collapse.none", layer=found.layer)
    names = ("within", "within_unweighted", "norms", "angles", "simplex")
    values = {name: f"{getattr(found, name):.3g}" for name in names}
    text = tr("lens.collapse", layer=found.layer, **values)
    if math.isnan(found.agreement):
        return text
    duality, agreement = f"{found.duality:.3g}", percent(found.agreement)
    return sentences(text, tr("lens.collapse.head", duality=duality, agreement=agreement))


def remarks(inspection: Inspection) -> list[Text]:
    """Say what to know about some layers, and why others were not followed."""
    about = [(key, layer.name) for layer in inspection.layers for key in layer.notes]
    about += [(key, name) for name, key in inspection.skipped.items()]
    names: dict[str, list[str]] = {}
    for key, name in about:
        names.setdefault(key, []).append(name)
    return [tr("lens.about", layers=few(n), text=tr(key)) for key, n in names.items()]


# --- numbers and names ------------------------------------------------------------------------


def work(inspection: Inspection) -> dict[WorkName, Work]:
    """Sum what each kind of step changed over the layers; NaN where nothing is known."""
    sums = {}
    for kind in WORK:
        steps = [step for step in inspection.work if step.by == kind]
        known = {m: [v for s in steps if math.isfinite(v := getattr(s, m))] for m in CHANGES}
        total = {m: sum(values) if values else math.nan for m, values in known.items()}
        if steps:
            sums[kind] = Work(layer="", by=kind, **total)
    return sums


def mean_known(values: Iterable[float]) -> float:
    """Average the finite ones; NaN where there is none."""
    known = [value for value in values if math.isfinite(value)]
    return fmean(known) if known else math.nan


def stage(layer: Layer, name: str) -> StageMeasures | None:
    """Find the stage of that name, where the layer has it."""
    return next((s for s in layer.every_stage if s.name == name), None)


def follows(layer: Layer) -> Text:
    """Name the activation after a layer, or that before it where it comes behind one."""
    then = layer.activation
    if layer.input_activation is None:
        return joined([then or "-"])
    behind = tr("lens.behind", activation=layer.input_activation)
    return behind if then is None else sentences(behind, then)
