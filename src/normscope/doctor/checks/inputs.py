"""What reaches the model: inputs that were prepared otherwise than in training."""

import math
from collections.abc import Iterator

import torch

from normscope.doctor.checks.base import Check, CheckContext, Skip, register
from normscope.doctor.state import LayerState
from normscope.moments import drift
from normscope.probe.stream import population_of
from normscope.records import Finding

LEAST = 1e-8  # a variance that is not rounding
ENOUGH = 4  # channels, by which one factor can be told from several
ALIKE, OTHER_SCALE = 0.1, 1.5  # spread of the factors' logarithms; their size
STILL = 0.1  # standard deviations, and share of the shift that the factor would bring to means
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
        away = {s.name: a for s in case.layers if not s.fresh and (a := case.away(s)) is not None}
        if not away:
            raise Skip("doctor.skip.none")
        for state in case.layers:
            if factor := other_scale(case, state):
                size = float(away[state.name].pow(2).mean().sqrt())
                severity, threshold = self.graded(size, case) or ("warning", self.warn)
                yield self.finding(state.name, severity, size, threshold, factor=factor)


def other_scale(case: CheckContext, state: LayerState) -> float:
    """Return by how many times the input of a layer is larger than in training; 0: it is not.

    The layer has no norm before it: its input is the same in train() and in eval(). All channels
    share the factor. Where means stayed, the stored variance may be what was changed; and where
    scale and shift are frozen in a model that learns, the stored statistics may have moved.
    """
    data = case.data
    if data is None or state.fresh or case.away(state) is None or state.name not in data.stored:
        return 0.0
    assert state.module is not None, "data need a model"
    affine = list(state.module.parameters(recurse=False))
    learns = any(p.requires_grad for p in case.model.parameters())
    if learns and affine and not any(p.requires_grad for p in affine):
        return 0.0
    mean, var = data.population(state.name)
    again, spread = (v.cpu() for v in population_of(data.stored[state.name]))
    # a constant has no factor
    live = (var > LEAST) & (state.var > LEAST) & var.isfinite()
    if int(live.sum()) < ENOUGH or float(drift(again, spread, mean, var)[live].max()) > SAME:
        return 0.0
    factors = (var / state.var)[live].log() / 2
    size, pattern = float(factors.mean()), float(state.var[live].log().std()) / 2
    # variances that are all alike, as at the start, say nothing of what they were measured on
    if float(factors.std()) > min(ALIKE, pattern) or abs(size) < math.log(OTHER_SCALE):
        return 0.0
    factor = math.exp(size)
    moved, usual = (mean - state.mean)[live], ((factor - 1) * state.mean)[live]
    std = torch.maximum(var, state.var)[live].sqrt()
    shift, due = (float((v / std).square().mean().sqrt()) for v in (moved, usual))
    return 0.0 if shift < STILL * max(due, 1.0) else factor
