"""What an inspection says where there are no two classes to compare."""

import math

from normscope.records import Inspection, Layer
from normscope.report.bilingual import Text, tr
from normscope.report.findings import mean_known
from normscope.report.format import percent
from normscope.report.measures import idle

FITS = 0.1  # deviations by which the input of a layer may differ from its stored statistics
NAMED = 0.05  # share of channels whose gates are idle from which a layer is named


def verdict(inspection: Inspection) -> list[Text]:
    """Say why, how far the data are from the stored statistics, and which gates are idle."""
    layers = [layer for layer in inspection.layers if layer.maps != "per_condition"]
    texts = (_why(inspection), _drift(layers), _idle(layers))
    return [text for text in texts if text is not None]


def _why(inspection: Inspection) -> Text:
    """Say in one sentence why classes are not compared, and how they could be."""
    facts = {"images": f"{inspection.images:,}", "targets": inspection.targets}
    if inspection.labels != "none":
        name = next(
            (c for c, n in zip(inspection.classes, inspection.counts, strict=True) if n), ""
        )
        return tr("lens.alone.one", **facts, name=name)
    return tr("lens.alone.targets" if inspection.targets else "lens.alone.none", **facts)


def _drift(layers: list[Layer]) -> Text | None:
    found = {layer.name: mean_known(layer.drift) for layer in layers}
    known = {name: drift for name, drift in found.items() if math.isfinite(drift)}
    if not known:
        return None
    name = max(known, key=lambda name: known[name])
    key = "lens.alone.fits" if known[name] < FITS else "lens.alone.drift"
    return tr(key, layer=name, drift=f"{known[name]:.2f}")


def _idle(layers: list[Layer]) -> Text | None:
    gated = [layer for layer in layers if layer.activation is not None and len(layer.firing)]
    worst = max(gated, key=idle, default=None)
    if worst is None:
        return None
    if idle(worst) < NAMED:
        key = "lens.alone.no_idle.one" if len(gated) == 1 else "lens.alone.no_idle"
        return tr(key, layers=len(gated))
    return tr(
        "lens.alone.idle", layer=worst.name, share=percent(idle(worst)), activation=worst.activation
    )
