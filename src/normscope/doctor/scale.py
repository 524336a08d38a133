"""By how many times the inputs of a layer are larger than in training."""

import math

import torch
from torch import nn

from normscope.doctor.evidence import Evidence
from normscope.doctor.state import LayerState
from normscope.moments import drift, rms
from normscope.probe.stream import population_of

LEAST = 1e-8  # a variance that is not rounding
ENOUGH = 4  # channels, by which one factor can be told from several
ALIKE, OTHER_SCALE = 0.1, 1.5  # spread of the factors' logarithms; their size
STILL = 0.1  # standard deviations, and share of the shift that the factor would bring to means
SAME = 1e-5  # standard deviations, by which rounding moves an input that no norm comes before


def other_scale(model: nn.Module, data: Evidence, state: LayerState) -> float:
    """Return by how many times the input of a layer is larger than in training; 0: it is not.

    The layer has no norm before it: its input is the same in train() and in eval(). All channels
    share the factor. Where means stayed, the stored variance may be what was changed; and where
    scale and shift are frozen in a model that learns, the stored statistics may have moved.
    """
    if state.fresh or state.name not in data.stored:
        return 0.0
    assert state.module is not None, "data need a model"
    affine = list(state.module.parameters(recurse=False))
    learns = any(p.requires_grad for p in model.parameters())
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
    # means in proportion to variances: both were multiplied, as in Caffe, whatever the inputs are
    both = (mean - factor**2 * state.mean)[live]
    std = torch.maximum(var, state.var)[live].sqrt()
    shift, due = (rms(v / std) for v in (moved, usual))
    fits, scaled = (rms(v / var[live].sqrt()) for v in (both, moved - usual))
    multiplied = fits < STILL < scaled / 2
    return 0.0 if multiplied or shift < STILL * max(due, 1.0) else factor
