"""What an inspection shows, as sentences: which ones it calls for is decided by its numbers."""

import math
from collections.abc import Iterable
from statistics import fmean

from normscope.records import Inspection, Layer, StageMeasures, Work, WorkName
from normscope.report.bilingual import Text, said, sentences
from normscope.report.format import percent, signed

TOLERANCE = 1e-5  # float32 rounding of a healthy layer stays far below this
ROUNDINGS = 10  # beyond it: by so many roundings of the worst channel eta2 may differ
NAMED = 3  # layers that a remark names; the others are counted

# an activation must move J by more than rounding to be said to have raised it
RAISED = 1e-6


THINNED = 256  # channels that J uses of a layer that has more than it can use
# J may be judged where labels drawn at random would leave it below this
CHANCE = 0.5
SIGMAS = 3  # by so many deviations of chance a change must exceed it
ABOVE_CHANCE = 2  # times the spread of firing rates that chance gives, to be told


def verdict(inspection: Inspection) -> list[Text]:
    """Answer what the layers kept, and what the non-linearity and the gates made of it.

    What chance explains is no answer: where the images are too few, that comes first.
    """
    single = [layer for layer in inspection.layers if layer.maps != "per_condition"]
    broken = _broken(inspection)
    if broken is not None:
        return [broken]
    classes = sum(n > 0 for n in inspection.counts)
    return [*too_few(single), *_kept(inspection), *_changed(single, classes)]


def too_few(layers: list[Layer]) -> list[Text]:
    """Say so where chance alone would separate the classes at every layer."""
    chances = [(chance(layer, stage), layer) for layer in layers for stage in layer.every_stage]
    known = [(c, layer) for c, layer in chances if math.isfinite(c)]
    if not known or min(c for c, _ in known) < CHANCE:
        return []
    worst, layer = max(known, key=lambda pair: pair[0])
    needed = 1 + round(max(map(_width, layers)) / CHANCE)
    facts = {"images": layer.images, "layer": layer.name, "needed": f"{needed:,}"}
    return [said("lens.verdict.too_few", chance=f"{worst:.2f}", **facts)]


def _width(layer: Layer) -> int:
    """Count the channels that J uses."""
    return THINNED if "lens.note.joint_channels" in layer.notes else layer.channels


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


def per_sample(inspection: Inspection) -> Text | None:
    """Say by how much layers that normalise each sample by itself changed eta2 and J."""
    layers = [layer for layer in inspection.layers if layer.maps == "per_sample"]
    known = [layer for layer in layers if math.isfinite(layer.eta2_change + layer.lda_change)]
    if not known:
        return None
    most = max(known, key=lambda layer: max(abs(layer.eta2_change), abs(layer.lda_change)))
    eta2, fraction = ([getattr(la, n) for la in known] for n in ("eta2_change", "lda_change"))
    return said(
        "lens.verdict.per_sample",
        layers=_listed([layer.name for layer in layers]),
        norms=", ".join(sorted({layer.norm for layer in layers})),
        eta2_low=signed(min(eta2)),
        eta2_high=signed(max(eta2)),
        low=signed(min(fraction)),
        high=signed(max(fraction)),
        most=most.name,
    )


def _broken(inspection: Inspection) -> Text | None:
    """Name the layer where eta2 and J differ by more than rounding, though it is one map."""
    layers = [layer for layer in inspection.layers if layer.invariance > tolerance(layer)]
    if not layers:
        return None
    worst = max(layers, key=lambda layer: layer.invariance / tolerance(layer))
    shown = f"{worst.invariance:.1g}"
    return said("lens.verdict.broken", layer=worst.name, difference=shown)


def _kept(inspection: Inspection) -> list[Text]:
    """Say what is known of the invariance of eta2 and J."""
    layers = [layer for layer in inspection.layers if not math.isnan(layer.invariance)]
    by_sample = per_sample(inspection)
    others = [] if by_sample is None else [by_sample]
    if not layers:
        return others or [said("lens.verdict.untested")]
    said_so = [said("lens.verdict.held", layers=len(layers))]
    lost = [layer.name for layer in layers if 0 in layer.gamma]
    if lost:
        said_so.append(said("lens.verdict.lost", layers=_listed(lost)))
    return [*said_so, *others]


def tolerance(layer: Layer) -> float:
    """How far eta2 and J may differ by rounding alone."""
    return max(TOLERANCE, ROUNDINGS * layer.rounding)


def self_test(inspection: Inspection) -> Text:
    """Say how far eta2 and J differ where they must be equal."""
    if math.isnan(inspection.invariance):
        return said("lens.selftest.none")
    return said("lens.selftest", difference=f"{inspection.invariance:.1g}")


def composition(inspection: Inspection) -> Text | None:
    """Say what the loader's batches would do in training, predicted and measured."""
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
    """Say how far the last layer's features have collapsed."""
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
    return sentences(text, said("lens.collapse.head", duality=duality, agreement=agreement))


def work(inspection: Inspection) -> dict[WorkName, Work]:
    """Sum what each kind of step changed over the layers; NaN where nothing is known."""
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
    """Average the finite ones; NaN where there is none."""
    known = [value for value in values if math.isfinite(value)]
    return fmean(known) if known else math.nan


def remarks(inspection: Inspection) -> list[Text]:
    """Say what to know about some layers, and why others were not followed."""
    about = [(key, layer.name) for layer in inspection.layers for key in layer.notes]
    about += [(key, name) for name, key in inspection.skipped.items()]
    names: dict[str, list[str]] = {}
    for key, name in about:
        names.setdefault(key, []).append(name)
    return [said("lens.about", layers=_listed(n), text=said(key)) for key, n in names.items()]


def stage(layer: Layer, name: str) -> StageMeasures | None:
    """Find the stage of that name, where the layer has it."""
    return next((s for s in layer.every_stage if s.name == name), None)


def follows(layer: Layer) -> Text:
    """Name the activation after a layer, or that before it where it comes behind one."""
    if layer.input_activation is None:
        return Text(layer.activation or "-", layer.activation or "-")
    behind = said("lens.behind", activation=layer.input_activation)
    then = layer.activation
    return behind if then is None else sentences(behind, Text(then, then))


def _changed(layers: list[Layer], classes: int) -> Iterable[Text]:
    steps = [(layer, *pair) for layer in layers for pair in _activations(layer)]
    if steps and not too_few(layers):
        gains = [gain(*step, classes) for step in steps]
        raised = sum(g > 0 for g in gains)
        layer, before, after = steps[gains.index(max(gains))]
        yield (
            said(
                "lens.verdict.activation",
                raised=raised,
                layers=len(steps),
                layer=layer.name,
                before=f"{before.lda_fraction:.3f}",
                after=f"{after.lda_fraction:.3f}",
            )
            if raised
            else said("lens.verdict.lowered")
        )
    moved = [layer for layer in layers if _moved(layer)]
    if moved:
        layer = max(moved, key=lambda layer: abs(_nearest(layer, 2) - _nearest(layer, 0)))
        yield said(
            "lens.verdict.geometry",
            layer=layer.name,
            before=percent(_nearest(layer, 0)),
            after=percent(_nearest(layer, 2)),
        )
    apart = [la for la in layers if la.firing_spread > ABOVE_CHANCE * la.firing_chance]
    if apart:
        layer = max(apart, key=lambda layer: layer.firing_spread)
        yield said(
            "lens.verdict.gate",
            layer=layer.name,
            spread=percent(layer.firing_spread),
            chance=percent(layer.firing_chance),
        )


def _activations(layer: Layer) -> Iterable[tuple[StageMeasures, StageMeasures]]:
    """Yield the stages before and after each activation at the layer."""
    if layer.pre_activation is not None:
        yield layer.pre_activation, layer.stages[0]
    activated = stage(layer, "activated")
    if activated is not None:
        yield layer.stages[2], activated


def _moved(layer: Layer) -> bool:
    """Whether the nearest-mean accuracy changed by more than chance."""
    shares = [_nearest(layer, 0), _nearest(layer, 2)]
    if not layer.sampled or any(math.isnan(s) for s in shares):
        return False
    noise = math.sqrt(sum(s * (1 - s) for s in shares) / layer.sampled)
    return abs(shares[1] - shares[0]) > SIGMAS * noise


def _nearest(layer: Layer, place: int) -> float:
    return layer.stages[place].nearest_mean_accuracy


def _listed(names: list[str]) -> Text | str:
    listed = ", ".join(names[:NAMED])
    more = len(names) - NAMED
    return said("lens.layers", names=listed, more=more) if more > 0 else listed
