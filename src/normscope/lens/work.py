"""How much each step of the network changed each measure."""

import math
from collections.abc import Iterable, Iterator

from normscope.records import Layer, StageMeasures, Work, WorkName

# stage -> what led to it from the stage before
STEPS: dict[str, WorkName] = {
    "pre_activation": "weights",
    "input": "weights",
    "normalised": "normalisation",
    "scaled_shifted": "gamma_beta",
    "activated": "activation",
}


def work(layers: Iterable[Layer]) -> Iterator[Work]:
    """Yield the change of each measure at every step, in the order in which the layers ran.

    From the last stage of one layer to the input of the next it is the weights between them (and
    whatever else runs there); then standardising, gamma and beta, and the non-linearity. Where an
    activation made a layer's input, that is a step of its own. The first layer's input has
    nothing before it. Conditions of a layer are left out.
    """
    before: StageMeasures | None = None
    for layer in layers:
        if "[condition" in layer.name:
            continue
        for stage in layer.every_stage:
            if before is not None:
                activated = before.name == "pre_activation"
                yield Work(
                    layer=layer.name,
                    by="activation" if activated else STEPS[stage.name],
                    eta2=stage.eta2_mean - before.eta2_mean,
                    lda=stage.lda_fraction - before.lda_fraction,
                    nearest_mean=stage.nearest_mean_accuracy - before.nearest_mean_accuracy,
                    separation=_decades(stage.separation, before.separation),
                    condition=_decades(stage.condition, before.condition),
                )
            before = stage


def _decades(after: float, before: float) -> float:
    return math.log10(after / before) if after > 0 and before > 0 else math.nan
