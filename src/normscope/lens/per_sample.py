"""Normalisation by the sample: which statistics a layer takes, told from what it does."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from normscope.lens.channel_map import CallSlice, ChannelMap
from normscope.probe import Call
from normscope.probe.layers import stored_eps

TRIED = 4  # samples on which a rule is tried
ROUNDINGS = 64  # by so many roundings of the largest output may the two differ
FIRST = ("num_features", "num_channels")  # a layer that says so has its channels along axis 1


def per_sample_slice(call: Call, before: Tensor, after: Tensor) -> CallSlice | None:
    """Recognise a call of LayerNorm, RMSNorm, GroupNorm, InstanceNorm or one that does the same.

    Each rule that such layers follow is computed on the first samples; the one that gives this
    output counts, whatever the class is called. Channels lie along the last axis (LayerNorm and
    RMSNorm of tokens) or along axis 1. None where no rule fits, as for a weight per position.
    EvalNorm, which mixes the sample's statistics with the running ones, needs no trial.
    """
    if before.shape != after.shape:
        return None
    if getattr(call.module, "own_weight", 0.0):
        return _slice(call, *next(_affines(call.module, before.shape[1])), 1, before.dtype)
    x, y = before[:TRIED].detach().double(), after[:TRIED].detach().double()
    tolerance = ROUNDINGS * torch.finfo(before.dtype).eps * float(y.abs().max().clamp(min=1))
    by_name = any(hasattr(call.module, name) for name in FIRST)
    axes = (1, x.dim() - 1) if by_name else (x.dim() - 1, 1)
    for axis in dict.fromkeys(axes):
        for gamma, beta in _affines(call.module, x.shape[axis]):
            scaled = [t.view(-1, *[1] * (x.dim() - 1 - axis)) for t in (gamma, beta)]
            for z in _rules(call.module, x, axis, before.dtype):
                if float((z * scaled[0] + scaled[1] - y).abs().max()) <= tolerance:
                    return _slice(call, gamma, beta, axis, x.dtype)
    return None


def _slice(call: Call, gamma: Tensor, beta: Tensor, axis: int, dtype: torch.dtype) -> CallSlice:
    unknown = torch.full_like(gamma, torch.nan, device="cpu")
    shown = ChannelMap(unknown, unknown, gamma.cpu(), beta.cpu(), _eps(call.module, dtype))
    return CallSlice(call.name, None, shown, shown, "per_sample", axis)


def _affines(module: nn.Module, channels: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Return gamma and beta; some layers store gamma - 1."""
    weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
    beta = torch.zeros(channels, dtype=torch.float64)
    if isinstance(bias, Tensor):
        beta = bias.detach().double()
    if not isinstance(weight, Tensor):
        yield torch.ones_like(beta), beta
    elif weight.shape == beta.shape == (channels,):
        beta = beta.to(weight.device)
        yield weight.detach().double(), beta
        yield weight.detach().double() + 1, beta


def _rules(module: nn.Module, x: Tensor, axis: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the standardised values by every rule: over which axes, centred or not."""
    eps = _eps(module, dtype)
    every = tuple(range(1, x.dim()))
    spatial = every[1:]
    groups = getattr(module, "num_groups", 1)
    for centred in (True, False):
        for dims in dict.fromkeys(((axis,), every, spatial)) if axis == 1 else ((axis,),):
            if dims:
                yield _standardised(x, dims, eps, centred=centred)
        if axis == 1 and isinstance(groups, int) and groups > 1 and x.shape[1] % groups == 0:
            split = x.reshape(len(x), groups, -1)
            yield _standardised(split, (2,), eps, centred=centred).view_as(x)


def _standardised(x: Tensor, dims: tuple[int, ...], eps: float, *, centred: bool) -> Tensor:
    if centred:
        x = x - x.mean(dims, keepdim=True)
    return x * (x.square().mean(dims, keepdim=True) + eps).rsqrt()


def _eps(module: nn.Module, dtype: torch.dtype) -> float:
    eps = stored_eps(module)
    return torch.finfo(dtype).eps if eps is None else eps
