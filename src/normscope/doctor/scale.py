"""Inputs that were prepared otherwise than in training: on another scale, or other columns."""

import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from normscope.doctor.evidence import Evidence
from normscope.doctor.state import LayerState
from normscope.moments import drift, rms
from normscope.probe.stream import population_of

LEAST = 1e-8  # a variance that is not rounding
ENOUGH = 4  # channels, by which one factor can be told from several
ALIKE, OTHER_SCALE = 0.1, 1.5  # spread of the factors' logarithms; their size
STILL = 0.1  # standard deviations, and share of the shift that the factor would bring to means
MOST = 1024  # channels, among which an order is looked for
FAR = 0.5  # standard deviations that the statistics of a wrong column lie off, and more
MATCHED = 5  # times nearer that another order or other units bring them
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
    live = _live(data, state)
    if live is None:
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


def other_columns(data: Evidence, state: LayerState) -> Tensor | None:
    """Mark the channels that came in another order or unit than in training; None: none did.

    The layer has no norm before it, as one on the columns of a table. Most is explained by the
    stored statistics in another order; or by one factor for each of a few channels, whose means
    moved in proportion to their deviations, while the other channels are as they were.
    """
    if state.fresh or state.name not in data.stored or state.mean.dim() > 1:
        return None
    live = _live(data, state)
    if live is None or len(live) > MOST:
        return None
    mean, var = data.population(state.name)
    old, old_var, now, new_var = state.mean[live], state.var[live], mean[live], var[live]
    away = drift(old, old_var, now, new_var)
    off = away > FAR
    apart = drift(old[:, None], old_var[:, None], now, new_var)
    rows, columns = linear_sum_assignment(apart.clamp(max=10).numpy())
    moved = torch.from_numpy(rows != columns)
    far = rms(away.clamp(max=10))
    in_order = int(moved.sum()) > 1 and MATCHED * rms(apart[rows, columns].clamp(max=10)) < far
    # a factor leaves mean / deviation as it is; of a mean near zero that says nothing
    ratio, was = now / new_var.sqrt(), old / old_var.sqrt()
    kept = (ratio - was).abs() < ALIKE * (1 + was.abs())
    factor = (new_var / old_var).log().abs() / 2 > math.log(OTHER_SCALE)
    units = bool(off.any() & (kept & factor & (was.abs() > FAR))[off].all())
    in_units = units and 2 * int(off.sum()) < len(off) and rms(away[~off]) * MATCHED < far
    if not (in_order and bool(off.any())) and not in_units:
        return None
    marks = torch.zeros_like(live)
    marks[live] = off
    return marks


def _live(data: Evidence, state: LayerState) -> Tensor | None:
    """Mark channels that are no constants; None: too few, or a norm comes before the layer."""
    mean, var = data.population(state.name)
    again, spread = (v.cpu() for v in population_of(data.stored[state.name]))
    live = (var > LEAST) & (state.var > LEAST) & var.isfinite()
    if int(live.sum()) < ENOUGH or float(drift(again, spread, mean, var)[live].max()) > SAME:
        return None
    return live
