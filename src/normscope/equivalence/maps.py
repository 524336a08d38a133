"""Why the map that stands in a norm's place is another one, from what it does to numbers alone."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from normscope.equivalence.causes import (
    GREEK,
    Cause,
    averages,
    correction,
    neutral,
    scale_shift,
)
from normscope.equivalence.sites import STATISTICS, Site, Sketch
from normscope.records import Reason

FOLDED = 8  # rounding errors of one weight that a fold may be off by
LEAST = 1e-20  # smaller weights are what decay left of a channel
EXPLAINED = 0.05  # of the difference may be left by a reason
USUAL = (0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 2e-5, 1e-4, 1e-3, 2e-3, 1e-2, 1e-1)  # people's eps
Map = tuple[Tensor, Tensor]  # scale and shift, (C,) each


def map_reason(norm: Site, output: Sketch, allowed: float) -> Reason | None:
    """Find which change of a norm's numbers makes `output` of its input; None where none does.

    Each cause predicts scale and shift per channel; the one with the smallest difference from
    what is there is the reason, if it explains all but a twentieth or all beyond rounding.

    Args:
        norm: of the first form.
        output: of what stands in its place in the second, on the same inputs.
        allowed: what rounding explains.
    """
    x, y = norm.before.values, output.values
    if x.shape != y.shape or not x.numel() or not _per_channel(norm):
        return None
    size = max(norm.after.largest, 1e-30)

    def left(way: Map) -> float:
        off = (x * way[0].unsqueeze(1) + way[1].unsqueeze(1) - y).abs().max()
        return float(off) / size if bool(off.isfinite()) else math.inf

    own, fitted = scale_shift(norm), _fitted(x, y)
    enough = max(EXPLAINED * left(own), 2 * allowed)
    tried = [(left(way), cause) for way, cause in _causes(norm, x, y, own, fitted)]
    rest, best = min(tried, key=lambda pair: pair[0])
    if rest <= enough:
        return best.reason(math.nan)
    if fitted is not None and left(fitted) <= enough:
        scale = float(((fitted[0] - own[0]).abs() / own[0].abs().clamp(min=1e-30)).median())
        return Reason(code="fused_weight", second=f"{scale:.2g}", amount=left(own))
    return None


def exact_reason(norm: Site, first: Site | None, second: Site) -> Reason | None:
    """Find which numbers of a norm became weights, where these say more than their outputs.

    Weights hold scale and shift to the rounding of each, outputs to that of the whole network:
    W' = scale W and b' = scale b + shift in the layer before it, or scale and shift themselves.

    Args:
        norm: of the first form.
        first: the linear layer before it; None for scale and shift themselves.
        second: the same in the second form, with the norm in it, or what has scale and shift.
    """
    if not _per_channel(norm) or "weight" not in second.tensors:
        return None
    (own_scale, own_shift), eps = scale_shift(norm), FOLDED * second.rounding("weight")
    scale, zeros = second.tensors["weight"], torch.zeros_like(own_scale)
    shift, before = second.tensors.get("bias", zeros), zeros
    if first is not None:
        pair = first.tensors.get("weight", zeros), scale
        if pair[0].shape != scale.shape or scale.dim() < 2 or len(scale) != norm.channels:
            return None
        a, b = (weight.flatten(1) for weight in pair)
        if bool((a == b).all()):
            return None  # nothing was folded into it
        eps = max(eps, FOLDED * first.rounding("weight"))
        scale = (a * b).sum(1) / a.pow(2).sum(1).clamp(min=1e-300)
        scale = torch.where(a.abs().amax(1) > LEAST, scale, own_scale)
        if not bool(
            ((b - scale.unsqueeze(1) * a).abs() <= eps * b.abs().amax(1, keepdim=True)).all()
        ):
            return None  # more than one factor per channel: no fold
        before = scale * first.tensors.get("bias", zeros)
        shift = shift - before
    if scale.shape != own_scale.shape or shift.shape != own_shift.shape:
        return None
    mean = norm.tensors["running_mean"]
    size = 1 + own_shift.abs() + (own_scale * mean).abs() + before.abs()
    same = ((scale - own_scale).abs() <= eps * own_scale.abs()).all()
    if bool(same & ((shift - own_shift).abs() <= eps * size).all()):
        return None
    made = norm.before.values * scale.unsqueeze(1) + shift.unsqueeze(1)
    return map_reason(norm, replace(norm.after, values=made), eps / FOLDED)


def _per_channel(norm: Site) -> bool:
    """Whether a norm is one map per channel of its input."""
    shapes = {t.shape for t in norm.tensors.values()}
    stored = all(key in norm.tensors for key in STATISTICS)
    return stored and shapes == {(norm.channels,)} and len(norm.before.values) == norm.channels


def _causes(
    norm: Site, x: Tensor, y: Tensor, own: Map, fitted: Map | None
) -> Iterator[tuple[Map, Cause]]:
    """Predict the map under every cause."""
    held, eps = {**neutral(norm, GREEK), **norm.tensors}, norm.eps
    var, weight, bias = held["running_var"], held["weight"], held["bias"]

    def way(cause: Cause, value: float = eps) -> tuple[Map, Cause]:
        return scale_shift(norm, cause.numbers, value), cause

    yield way(Cause("reset", neutral(norm, STATISTICS), averages(norm), "(0, 1)"))
    yield way(Cause("training", norm.batch, "False", "True"))
    if bool((weight != 1).any()):
        yield way(Cause("gamma_lost", neutral(norm, ("weight",))))
    # the shift alone
    shift = (y - own[0].unsqueeze(1) * x).mean(1)
    worst = int((shift - own[1]).abs().argmax())
    first, second = (f"{float(t[worst]):.4g}" for t in (own[1], shift))
    lost = float((shift - bias).abs().max()) <= 1e-3 * float((own[1] - bias).abs().max())
    code = "mean_lost" if lost else "fused_bias"
    yield (own[0], shift), Cause(code, {}, first, second, str(worst))
    if fitted is None:
        return
    # the variance that the scale speaks of, where the data say it well
    sure = (weight.abs() > 1e-3 * weight.abs().max()) & (x.var(1, correction=0) > 0)
    there = (weight / fitted[0]).pow(2)[sure]
    if not len(there):
        return
    given = float((there - var[sure]).median())
    values = (*USUAL, given) if given >= 0 else USUAL
    close = min(values, key=lambda v: abs(v - given) - (v in USUAL) * 0.02 * abs(given))
    for value in {close, given}:
        if value >= 0 and abs(value - eps) > 1e-3 * eps:
            yield way(Cause("eps", {}, f"{eps:.3g}", f"{value:.3g}"), value)
    factor = float(((there - eps) / var[sure].clamp(min=1e-30)).median())
    if factor > 0 and abs(factor - 1) > 1e-6:
        code, n = correction(factor)
        yield way(Cause(code, {"running_var": var * factor}, "1", f"{factor:.6g}", n))


def _fitted(x: Tensor, y: Tensor) -> Map | None:
    """Fit least squares per channel; a channel whose input is constant keeps a scale of 0."""
    if x.shape[1] < 2:
        return None
    mean_x, mean_y = x.mean(1), y.mean(1)
    centred = x - mean_x.unsqueeze(1)
    var = centred.pow(2).sum(1)
    scale = (centred * (y - mean_y.unsqueeze(1))).sum(1) / var.clamp(min=1e-300)
    scale = torch.where(var > 0, scale, 0.0)
    return scale, mean_y - scale * mean_x
