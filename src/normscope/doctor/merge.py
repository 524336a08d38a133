"""Merge the checkpoints of one network that was trained in several places."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from normscope.errors import InputError
from normscope.files import shown
from normscope.moments import Moments

MEAN, VAR, SEEN = "running_mean", "running_var", "num_batches_tracked"


def merge_statistics(
    state_dicts: Sequence[Mapping[str, Any]], counts: Sequence[float]
) -> dict[str, Any]:
    """Merge state dicts of one network, its running statistics by the law of total variance.

        n = sum_i n_i,   mean = sum_i n_i mean_i / n
        var = sum_i [(n_i - 1) var_i + n_i (mean_i - mean)^2] / (n - 1)

    For federated averaging, model soups and every mean of checkpoints. The mean of the variances,
    which an average of all tensors takes, leaves out what lies between the means: batch norm then
    divides by too little, the more the data differ. All other floating point and complex tensors
    become sum_i n_i tensor_i / n, num_batches_tracked becomes the sum.

    >>> state = merge_statistics([site.state_dict() for site in sites], [6000, 1500, 400])
    >>> server.load_state_dict(state)

    Args:
        state_dicts: with the same keys, shapes and dtypes; they are not changed.
        counts: n_i of each, at least 2: the values per channel behind its statistics, N H W for
            images. Then `var` is to rounding the unbiased variance of all data together, if each
            var_i is that of its own. Where all samples are of one size their number serves too:
            the part within is then off by a factor of 1 - 1/n_i at most.

    Statistics per condition, (K, C), are merged by condition: n_i is parted by the batches that
    each condition was seen in, so one that a checkpoint never saw has no weight there.

    Returns:
        A state dict with tensors of its own, in the order, dtypes and devices of the first.

    Running averages of the last batches stand for the data only as far as these batches do, and
    the mean of weights has statistics of its own: where data are at hand, `recalibrate` after it.

    Raises:
        InputError: no statistics, keys, shapes or dtypes that differ, whole numbers other than
            counters that differ, values that are not finite, or a count that is none.

    Source: McMahan et al. 2017, "Communication-efficient learning of deep networks from
    decentralized data", algorithm 1 (the average); Chan, Golub, LeVeque 1979 (the variance).
    """
    states = [dict(state) for state in state_dicts]
    weight = _weights(states, counts)
    _check_alike(states)
    merged: dict[str, Any] = {}
    for key, first in states[0].items():
        tensors = [state[key] for state in states]
        layer, _, name = key.rpartition(".")
        sibling = {n: f"{layer}.{n}".lstrip(".") for n in (MEAN, VAR, SEEN)}
        if not isinstance(first, Tensor):
            merged[key] = first
        elif name == SEEN:
            merged[key] = torch.stack([t.to(first.device) for t in tensors]).sum(0).to(first.dtype)
        elif name in (MEAN, VAR) and {sibling[MEAN], sibling[VAR]} <= states[0].keys():
            total = _total([[state.get(k) for k in sibling.values()] for state in states], weight)
            merged[key] = (total.mean if name == MEAN else total.var(correction=1)).to(first)
        elif first.is_floating_point() or first.is_complex():
            shares = zip(tensors, weight / weight.sum(), strict=True)
            merged[key] = torch.as_tensor(sum(_wide(t) * share for t, share in shares)).to(first)
        else:
            if not all(torch.equal(first.cpu(), t.cpu()) for t in tensors):
                raise InputError(
                    f"{shown(key)} holds whole numbers that differ between the state dicts; "
                    "they have no mean, leave the entry out"
                )
            merged[key] = first.detach().clone()
    return merged


def _total(layers: list[list[Any]], weight: Tensor) -> Moments:
    """Merge the moments of all data of one layer: (C,), or (K, C) if it has them by condition."""
    means, variances, seen = zip(*layers, strict=True)
    mean, var = (torch.stack(list(map(_wide, tensors))) for tensors in (means, variances))
    count = weight.view(-1, *[1] * (mean.dim() - 2)).expand(mean.shape[:-1])
    if mean.dim() == 3 and seen[0] is not None and seen[0].shape == mean.shape[1:2]:
        times = torch.stack(list(map(_wide, seen)))
        share = times / times.sum(1, keepdim=True).clamp(min=1)
        # a condition that nobody saw, or whose batches nobody counted, weighs alike
        share = torch.where(share.sum(0) > 0, share, 1 / mean.shape[1])
        count = torch.where(share > 0, (share * count).clamp(min=2), 0)
    within = var * (count - 1).clamp(min=0).unsqueeze(-1)
    return Moments(count, mean, within).pool()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.complex128 if tensor.is_complex() else torch.float64)


def _weights(states: list[dict[str, Any]], counts: Sequence[float]) -> Tensor:
    if not states or len(counts) != len(states):
        raise InputError(
            f"{len(states)} state dicts and {len(counts)} counts; one count for each is needed"
        )
    weight = torch.tensor([_number(count) for count in counts], dtype=torch.float64)
    for place, bad in enumerate(~(weight >= 2) | weight.isinf()):
        if bad:
            raise InputError(
                f"count {place} is {counts[place]!r}; it must be how many values are behind the "
                "statistics, at least 2; leave out a state dict that saw fewer"
            )
    return weight


def _number(count: Any) -> float:
    try:
        return math.nan if isinstance(count, str) else float(count)
    except (TypeError, ValueError):
        return math.nan


def _check_alike(states: list[dict[str, Any]]) -> None:
    first = states[0]
    if not any(key.rpartition(".")[2] == MEAN for key in first):
        raise InputError(
            "there are no running statistics (no running_mean) in these state dicts; a plain "
            "mean of the tensors is all there is to do"
        )
    for place, state in enumerate(states):
        if state.keys() != first.keys():
            odd = ", ".join(map(shown, sorted(state.keys() ^ first.keys())[:3]))
            raise InputError(f"state dict {place} and the first differ in keys: {odd}")
        for key, value in state.items():
            if not isinstance(value, Tensor):
                continue
            if (other := first[key]).shape != value.shape or other.dtype != value.dtype:
                raise InputError(
                    f"{shown(key)} is {tuple(value.shape)} {value.dtype} in state dict {place} "
                    f"and {tuple(other.shape)} {other.dtype} in the first; they must be alike"
                )
            if not bool(_wide(value).isfinite().all()):
                raise InputError(f"{shown(key)} in state dict {place} is not finite; leave it out")
