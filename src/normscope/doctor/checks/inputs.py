"""What reaches the model: inputs that were prepared otherwise than in training."""

import math
from collections.abc import Iterator

import torch

from normscope.doctor.checks.base import Check, CheckContext, Skip, register
from normscope.doctor.checks.structure import biased_before
from normscope.doctor.state import LayerState
from normscope.moments import drift
from normscope.probe.stream import population_of
from normscope.records import Finding

LEAST = 1e-8  # a variance that is not rounding
ENOUGH = 4  # channels, by which one factor can be told from several
ALIKE, OTHER_SCALE = 0.1, 1.5  # spread of the factors' logarithms; their size
STILL = 0.1  # share of the shift that the factor would bring to the means
SAME = 1e-5  # standard deviations, by which rounding moves an input that no norm comes before


@register
class OtherScale(Check):
    """Inputs on another scale than in training."""

    code = "NS033"
    family = "batches"
    needs = "data"
    source = "factors of 1.5 and more whose logarithms differ by 0.1 at most"
    cause = "other_scale"
    warn = 0.1
    fail = 0.5

    def find(self, case: CheckContext) -> Iterator[Finding]:
        asked = [s for s in case.layers if not s.fresh and case.away(s) is not None]
        if not asked:
            raise Skip("doctor.skip.none")
        for state in asked:
            factor = other_scale(case, state)
            away = case.away(state)
            if not factor or away is None:
                continue
            size = float(away.pow(2).mean().sqrt())
            severity, threshold = self.graded(size, case) or ("warning", self.warn)
            yield self.finding(state.name, severity, size, threshold, factor=factor)


def other_scale(case: CheckContext, state: LayerState) -> float:
    """Return by how many times the input of a layer is larger than in training; 0: it is not.

    The layer has no norm before it: its input is the same in train() and in eval(). All channels
    share the factor. Where means are not those of the stored times the factor but the stored
    ones, it is the stored variance that was changed.
    """
    data = case.data
    if data is None or state.fresh or case.away(state) is None or state.name not in data.stored:
        return 0.0
    mean, var = data.population(state.name)
    again, spread = (v.cpu() for v in population_of(data.stored[state.name]))
    # a constant has no factor
    live = (var > LEAST) & (state.var > LEAST) & var.isfinite()
    if int(live.sum()) < ENOUGH or float(drift(again, spread, mean, var)[live].max()) > SAME:
        return 0.0
    factors = (var / state.var)[live].log() / 2
    size = float(factors.mean())
    if float(factors.std()) > ALIKE or abs(size) < math.log(OTHER_SCALE):
        return 0.0
    factor = math.exp(size)
    biases = {name: linear.bias for _, linear, name, _ in biased_before(case.model)}
    bias = biases.get(state.name)
    centre = state.mean if bias is None else state.mean - bias.detach().cpu().double()
    moved, usual = (mean - state.mean)[live], ((factor - 1) * centre)[live]
    std = torch.maximum(var, state.var)[live].sqrt()
    still = float((moved / std).norm()) < STILL * float((usual / std).norm())
    return 0.0 if still else factor
