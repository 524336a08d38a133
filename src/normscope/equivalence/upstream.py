"""Where a difference comes from that no norm makes: weights, or what the network is given."""

import torch

from normscope.equivalence.align import Alignment, Both
from normscope.equivalence.causes import FLOAT, alike
from normscope.equivalence.sites import Site, Sketch, gap
from normscope.records import Reason

EXACT = 1e-3  # of a shift or scale may be left by it


def weights_reason(a: Site | None, b: Site | None) -> Reason | None:
    """Say that two linear layers hold other numbers; None where they do not."""
    if a is None or b is None:
        return None
    for key in ("weight", "bias"):
        mine, other = a.tensors.get(key), b.tensors.get(key)
        detail = f"{a.label or b.label}.{key}"
        if mine is None or other is None:
            held = other if mine is None else mine
            if held is not None and bool((held != 0).any()):
                return Reason(code="weights", detail=detail)
        # quantised weights are of whole numbers, and say nothing
        elif not alike(mine, other, max(s.rounding(key) or 1.0 for s in (a, b))):
            size = max(float(mine.abs().max()), 1e-30)
            off = float((mine - other).abs().max()) / size if mine.shape == other.shape else 1.0
            return Reason(code="weights", detail=detail, amount=off)
    return None


def input_reason(
    alignment: Alignment, norm: Site, batches: tuple[Sketch, Sketch], amount: float
) -> Reason:
    """Say what a norm's input differs by, where it is the first that does.

    Args:
        alignment: of both runs.
        norm: of the first.
        batches: what the networks are given; where that is the same, what their first layers are.
        amount: the difference of the norm's input.
    """
    first, second = batches
    if gap(first, second) == 0:
        whole = [*alignment.linear()[:1], (norm, alignment.partner(norm))]
        known = [
            (a.before, b.before)
            for a, b in whole
            if a and b and a.order <= norm.order and b.kind != "other"
        ]
        if not known:
            return Reason(code="input", amount=amount)
        first, second = known[0]
    if first.values.shape != second.values.shape:
        return Reason(code="input", amount=amount)
    if gap(first, second) <= 4 * FLOAT:
        return Reason(code="before", amount=amount)  # between the network's input and this norm
    x, y = first.values, second.values
    shift = (y - x).mean(1)
    if float((y - x - shift.unsqueeze(1)).abs().max()) <= EXACT * float(shift.abs().max()):
        return Reason(code="input_mean", detail=_listed(shift), amount=amount)
    centred = x - x.mean(1, keepdim=True)
    scale = (centred * y).sum(1) / centred.pow(2).sum(1).clamp(min=1e-30)
    rest = y - y.mean(1, keepdim=True) - scale.unsqueeze(1) * centred
    if float(rest.abs().max()) <= EXACT * float((y - x).abs().max()):
        return Reason(code="input_scale", detail=_listed(scale), amount=amount)
    return Reason(code="input", amount=amount)


def tail_reasons(linear: list[Both], amount: float) -> list[Reason]:
    """Say which linear layers hold other weights, where all norms are the same; else nothing."""
    found = [reason for pair in linear if (reason := weights_reason(*pair)) is not None]
    return found or [Reason(code="outputs", amount=amount)]


def _listed(values: torch.Tensor) -> str:
    return ", ".join(f"{float(v):.4g}" for v in values[:4]) + (" ..." if len(values) > 4 else "")
