"""Why the map that stands in a norm's place is another one, from what it does to numbers alone."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from normscope.equivalence.numbers import correction, spoken
from normscope.equivalence.sites import Site, Sketch
from normscope.records import Reason

FOLDED = 8  # rounding errors of one weight that a fold may be off by
TOLD = 1e-20  # weights below this are what decay left of a channel
EXPLAINED = 0.05  # of the difference may be left by a reason
USUAL = (0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 2e-5, 1e-4, 1e-3, 2e-3, 1e-2, 1e-1)  # people's eps


def affine_reason(norm: Site, output: Sketch, allowed: float) -> Reason | None:
    """Which change of a norm's numbers makes `output` of its input; None where none does.

    Each hypothesis predicts scale and shift per channel; the one with the smallest difference
    from what is there is the reason, if it explains all but a twentieth or all beyond rounding.

    Args:
        norm: of the first form.
        output: of what stands in its place in the second, on the same inputs.
        allowed: what rounding explains.
    """
    x, y = norm.before.values, output.values
    if x.shape != y.shape or norm.tensors.get("running_var") is None or not x.numel():
        return None
    size = max(norm.after.largest, 1e-30)

    def left(scale: Tensor, shift: Tensor) -> float:
        off = (x * scale.unsqueeze(1) + shift.unsqueeze(1) - y).abs().max()
        return float(off) / size if bool(off.isfinite()) else math.inf

    own = _own_map(norm)
    start = left(*own)
    tried = [(left(*way), reason) for way, reason in _hypotheses(norm, x, y)]
    if not tried:
        return None
    rest, best = min(tried, key=lambda pair: pair[0])
    if rest <= max(EXPLAINED * start, 2 * allowed):
        return best
    fitted = _fit(x, y)
    if fitted is not None and left(*fitted) <= max(EXPLAINED * start, 2 * allowed):
        scale = float(((fitted[0] - own[0]).abs() / own[0].abs().clamp(min=1e-30)).median())
        return Reason(code="fused_weight", second=f"{scale:.2g}", amount=start)
    return None


def weights_of_fold(norm: Site, first: Site | None, second: Site | None) -> Reason | None:
    """Which numbers of a norm a fold used, where its weights say more than its outputs.

    W' = scale W and b' = scale b + shift hold scale and shift to the rounding of each weight, while
    outputs hold them to that of the whole network.

    Args:
        norm: of the first form.
        first: the linear layer before it.
        second: the same in the second form, with the norm in it.
    """
    if first is None or second is None or "running_var" not in norm.tensors:
        return None
    mine, other = first.tensors.get("weight"), second.tensors.get("weight")
    if mine is None or other is None or mine.shape != other.shape or mine.dim() < 2:
        return None
    if len(mine) != norm.channels or norm.before.values.shape[0] != norm.channels:
        return None
    eps = max(torch.finfo(s.dtypes["weight"]).eps for s in (first, second))
    a, b = mine.flatten(1), other.flatten(1)
    own_scale, own_shift = _own_map(norm)
    told = a.abs().amax(1) > TOLD  # a channel without weights says nothing of its scale
    scale = torch.where(told, (a * b).sum(1) / a.pow(2).sum(1).clamp(min=1e-300), own_scale)
    if bool((b == a).all()):
        return None  # nothing was folded into it
    rest = (b - scale.unsqueeze(1) * a).abs().amax(1)
    if not bool((rest <= FOLDED * eps * b.abs().amax(1)).all()):
        return None  # more than one factor per channel: no fold
    zeros = torch.zeros_like(scale)
    before = scale * first.tensors.get("bias", zeros)
    shift = second.tensors.get("bias", zeros) - before
    size = own_shift.abs() + (own_scale * norm.tensors["running_mean"]).abs() + before.abs()
    near = bool(((scale - own_scale).abs() <= FOLDED * eps * own_scale.abs()).all())
    if near and bool(((shift - own_shift).abs() <= FOLDED * eps * (1 + size)).all()):
        return None
    x = norm.before.values
    made = replace(norm.after, values=x * scale.unsqueeze(1) + shift.unsqueeze(1))
    return affine_reason(norm, made, eps)


Map = tuple[Tensor, Tensor]


def _own_map(norm: Site) -> Map:
    return _map(norm, norm.tensors["running_mean"], norm.tensors["running_var"], norm.eps)


def _map(norm: Site, mean: Tensor, var: Tensor, eps: float) -> Map:
    ones = torch.ones_like(mean)
    scale = norm.tensors.get("weight", ones) / (var + eps).sqrt()
    return scale, norm.tensors.get("bias", 0 * ones) - mean * scale


def _hypotheses(norm: Site, x: Tensor, y: Tensor) -> Iterator[tuple[Map, Reason]]:
    mean, var, eps = norm.tensors["running_mean"], norm.tensors["running_var"], norm.eps
    zeros, ones = torch.zeros_like(mean), torch.ones_like(mean)
    weight, bias = norm.tensors.get("weight", ones), norm.tensors.get("bias", zeros)
    own = _map(norm, mean, var, eps)
    yield _map(norm, zeros, ones, eps), Reason(code="reset", first=spoken(norm), second="(0, 1)")
    batch = _map(norm, norm.before.mean, norm.before.var, eps)
    yield batch, Reason(code="training", first="False", second="True")
    if bool((weight != 1).any()):
        yield (own[0] / weight, bias - mean * own[0] / weight), Reason(code="gamma_lost")
    # the shift alone
    shift = (y - own[0].unsqueeze(1) * x).mean(1)
    worst = int((shift - own[1]).abs().argmax())
    first, second = (f"{float(t[worst]):.4g}" for t in (own[1], shift))
    off = _fused_bias(norm, own, shift)
    yield (own[0], shift), Reason(code=off, first=first, second=second, detail=str(worst))
    fitted = _fit(x, y)
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
            yield (
                _map(norm, mean, var, value),
                Reason(code="eps", first=f"{eps:.3g}", second=f"{value:.3g}"),
            )
    factor = float(((there - eps) / var[sure].clamp(min=1e-30)).median())
    if factor > 0 and abs(factor - 1) > 1e-6:
        code, n = correction(factor)
        yield (
            _map(norm, mean, var * factor, eps),
            Reason(code=code, detail=n, first="1", second=f"{factor:.6g}"),
        )


def _fused_bias(norm: Site, own: Map, shift: Tensor) -> str:
    """Whether a wrong shift is that of a mean of 0, or something else."""
    bias = norm.tensors.get("bias", torch.zeros_like(shift))
    near = float((shift - bias).abs().max()) <= 1e-3 * float((own[1] - bias).abs().max())
    return "mean_lost" if near else "fused_bias"


def _fit(x: Tensor, y: Tensor) -> Map | None:
    """Least squares per channel; a channel whose input is constant keeps a scale of 0."""
    if x.shape[1] < 2:
        return None
    mean_x, mean_y = x.mean(1), y.mean(1)
    centred = x - mean_x.unsqueeze(1)
    var = centred.pow(2).sum(1)
    scale = (centred * (y - mean_y.unsqueeze(1))).sum(1) / var.clamp(min=1e-300)
    scale = torch.where(var > 0, scale, 0.0)
    return scale, mean_y - scale * mean_x
