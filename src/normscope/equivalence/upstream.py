"""Where a difference comes from that no norm makes: weights, or what the network is given."""

import torch

from normscope.equivalence.align import Aligned, linear_pairs
from normscope.equivalence.numbers import near
from normscope.equivalence.sites import Run, Site, Sketch, gap
from normscope.records import Reason


def weights_reason(a: Site | None, b: Site | None) -> Reason | None:
    """The linear layer before a norm holds other numbers."""
    if a is None or b is None:
        return None
    for key in ("weight", "bias"):
        mine, other = a.tensors.get(key), b.tensors.get(key)
        if mine is None and other is None:
            continue
        label = a.label or b.label
        if mine is None or other is None:
            held = other if mine is None else mine
            if held is not None and bool((held != 0).any()):
                return Reason(code="weights", detail=f"{label}.{key}")
        elif not near(mine, other, max(_eps(a, key), _eps(b, key))):
            size = max(float(mine.abs().max()), 1e-30)
            off = float((mine - other).abs().max()) / size if mine.shape == other.shape else 1.0
            return Reason(code="weights", detail=f"{label}.{key}", amount=off)
    return None


def input_reason(
    a: Run, b: Run, pair: Aligned, given: tuple[Sketch, Sketch], amount: float
) -> Reason:
    """What a norm's input differs by, where it is the first that does.

    Args:
        a: run of the first form.
        b: run of the second.
        pair: the norm.
        given: what the networks were given; where that is the same, their first layers' inputs.
        amount: the difference of the norm's input.
    """
    first, second = given if gap(*given) > 0 else _first_inputs(a, b, pair)
    if first is None or second is None or first.values.shape != second.values.shape:
        return Reason(code="input", amount=amount)
    difference = gap(first, second)
    if difference <= 4 * torch.finfo(torch.float32).eps:
        return Reason(code="before", amount=amount)  # between the network's input and this norm
    x, y = first.values, second.values
    shift = (y - x).mean(1)
    if float((y - x - shift.unsqueeze(1)).abs().max()) <= 1e-3 * float(shift.abs().max()):
        return Reason(code="input_mean", detail=_listed(shift), amount=amount)
    centred = x - x.mean(1, keepdim=True)
    scale = (centred * y).sum(1) / centred.pow(2).sum(1).clamp(min=1e-30)
    rest = y - y.mean(1, keepdim=True) - scale.unsqueeze(1) * centred
    if float(rest.abs().max()) <= 1e-3 * float((y - x).abs().max()):
        return Reason(code="input_scale", detail=_listed(scale), amount=amount)
    return Reason(code="input", amount=amount)


def tail_reasons(a: Run, b: Run, amount: float) -> list[Reason]:
    """All norms are the same and the outputs are not: linear layers with other weights, or else."""
    found = [r for pair in linear_pairs(a, b) if (r := weights_reason(*pair)) is not None]
    return found or [Reason(code="outputs", amount=amount)]


def _first_inputs(a: Run, b: Run, pair: Aligned) -> tuple[Sketch | None, Sketch | None]:
    """What the first layer is given in both, if it is before this norm."""
    for mine, other in linear_pairs(a, b):
        if mine.order < pair.first.order and other is not None:
            return mine.before, other.before
        break
    if pair.second is not None and pair.second.kind == "norm":
        return pair.first.before, pair.second.before
    return None, None


def _eps(site: Site, key: str) -> float:
    kind = site.dtypes[key]
    return torch.finfo(kind).eps if kind.is_floating_point else 1.0


def _listed(values: torch.Tensor) -> str:
    return ", ".join(f"{float(v):.4g}" for v in values[:4]) + (" ..." if len(values) > 4 else "")
