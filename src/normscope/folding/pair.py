"""One batch norm and the linear layer next to it become one linear layer."""

import copy
import math
from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from normscope.conversion.kinds import Plain, Refusal
from normscope.conversion.tracing import HOOKS, without_hooks
from normscope.errors import ModelError
from normscope.probe.compare import largest, largest_gap
from normscope.probe.load import reason

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "silu": nn.SiLU}
AGREE = 1e-9  # relative, of a pair before and after, both in float64
Side = Literal["before", "behind"]  # where the linear layer is, seen from the norm


@fx.wrap  # symbolic tracing keeps this whole: it asks a question of a real tensor
def of_rank(x: Tensor, rank: int) -> Tensor:
    """Check that a tensor has so many dimensions; ValueError if not."""
    if x.dim() != rank:
        raise ValueError(f"expected {rank}D input, for which it was folded (got {x.dim()}D input)")
    return x


class Folded(nn.Identity):
    """What is left of a batch norm: the identity, for inputs of the rank it was folded for.

    In another rank the batch norm would have taken another axis, which its neighbour cannot know.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, input: Tensor) -> Tensor:
        """Return the input."""
        return of_rank(input, self.rank)

    def extra_repr(self) -> str:
        """Return the rank."""
        return f"rank={self.rank}"


@fx.wrap  # likewise
def scaled(x: Tensor, weight: Tensor, bias: Tensor, ranks: tuple[int, ...]) -> Tensor:
    """Return x * weight + bias per channel, in the dtype of x; ValueError for another rank."""
    if x.dim() not in ranks:
        allowed = " or ".join(f"{rank}D" for rank in ranks)
        raise ValueError(f"expected {allowed} input (got {x.dim()}D input)")
    shape = (1, -1, *(1,) * (x.dim() - 2))
    return (x * weight.reshape(shape) + bias.reshape(shape)).to(x.dtype)


class ScaleShift(nn.Module):
    """What a batch norm is in eval(): a multiplication and an addition per channel."""

    def __init__(self, weight: Tensor, bias: Tensor, ranks: tuple[int, ...]) -> None:
        super().__init__()
        self.ranks = ranks
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply and add."""
        return scaled(input, self.weight, self.bias, self.ranks)

    def extra_repr(self) -> str:
        """Show the number of channels."""
        return f"{len(self.weight)}"


def make_affine(norm: nn.Module, plain: Plain, name: str) -> None:
    """Make a norm a multiplication and an addition, in place; its hooks stay.

        scale = weight / sqrt(running_var + eps),  shift = bias - running_mean * scale

    In float64, rounded once to the dtype of its statistics.

    Raises:
        ModelError: a number that is not finite, or a running_var below 0, by its channel.
    """
    scale, shift = _affine(plain, name)
    like = plain.tensors["running_mean"]
    assert like is not None, "asked before"
    rounded = [torch.empty_like(like).copy_(t) for t in (scale, shift)]
    for values in rounded:
        if not values.isfinite().all():
            raise ModelError(
                f"fold of {name!r}: channel {_first(~values.isfinite())} would not be finite in "
                f"{str(like.dtype).removeprefix('torch.')}; correct it, or use a wider dtype"
            )
    trained = any(p.requires_grad for p in norm.parameters(recurse=False))
    ranks = {None: (2, 3, 4, 5), 1: (2, 3)}.get(plain.dims, ((plain.dims or 0) + 2,))
    layer = ScaleShift(rounded[0], rounded[1], ranks).requires_grad_(trained)
    new = _with_rest(norm, plain, layer)
    hooks = {key: norm.__dict__[key] for key in HOOKS}
    norm.__class__, norm.__dict__ = type(new), {**new.__dict__, **hooks}


def fold_into(
    layer: nn.Module,
    norm: nn.Module,
    plain: Plain,
    side: Side,
    names: tuple[str, str],
    rank: int | None = None,
) -> None:
    """Give a layer the weight and bias of both, and make the norm an identity, in place.

    `rank` is that of the norm's input, where a step between the two moves the channels.

        scale = weight / sqrt(running_var + eps),  shift = bias - running_mean * scale
        before the norm: (scale W) x + (scale b + shift),  behind it: (W scale) x + (W shift + b)

    In float64, rounded once to the layer's dtype.

    Raises:
        Refusal: the two do not fit, or it would not be exact.
        ModelError: a number that is not finite, or a running_var below 0, by its channel.
    """
    new = _with_rest(norm, plain, Folded(_rank(layer, plain, side, rank)))
    if side == "behind" and not isinstance(new, Folded):
        raise Refusal("an activation of its own")
    scale, shift = _affine(plain, names[0])
    weight, bias = _combined(layer, scale, shift, side)
    own = layer.weight
    assert isinstance(own, Tensor), "asked for its rank"
    rounded = [torch.empty_like(own).copy_(weight), own.new_empty(len(bias)).copy_(bias)]
    finite = _table(layer, rounded[0]).flatten(2).isfinite().all(2).flatten()
    finite &= rounded[1].isfinite()
    if not finite.all():
        raise ModelError(
            f"fold of {names[0]!r}: channel {_first(~finite)} of {names[1]!r} would not be finite "
            f"in {str(own.dtype).removeprefix('torch.')}; correct its numbers, or use a wider dtype"
        )
    _check_pair(layer, norm, new, weight, bias, side, rank or 0)
    layer.weight, layer.bias = (nn.Parameter(t, own.requires_grad) for t in rounded)
    # the object stays, so that whoever holds the norm holds what became of it
    norm.__class__, norm.__dict__ = type(new), new.__dict__


def _rank(layer: nn.Module, plain: Plain, side: Side, moved: int | None) -> int:
    """Return the rank of the norm's input, if the neighbour fits it and can take it in."""
    weight = layer._parameters.get("weight")
    if weight is None or "bias" not in layer._parameters:
        raise Refusal(f"the weight of {type(layer).__name__} is computed from others")
    if is_lazy(weight):
        raise Refusal(f"{type(layer).__name__} is lazy; run the model once on a batch before")
    if moved is not None and not isinstance(layer, nn.Linear):
        raise Refusal(f"{type(layer).__name__} has its channels on another axis")
    rank = moved or weight.dim()
    table = _table(layer, weight)
    facing = table.shape[1] if side == "before" else table.shape[2]
    if plain.dims not in (None, max(rank - 2, 1)) or table.shape[0] * facing != plain.features:
        raise Refusal(f"{type(layer).__name__} has its channels on another axis")
    if side == "before":
        return rank
    if isinstance(layer, TRANSPOSED) or type(layer) not in LINEAR:
        raise Refusal(f"the shift would miss at the edges of {type(layer).__name__}")
    if any(_pads(layer)) and layer.padding_mode == "zeros":
        raise Refusal(f"the zeros with which {type(layer).__name__} pads are not normalised")
    return rank


def _affine(plain: Plain, name: str) -> tuple[Tensor, Tensor]:
    """Return scale and shift, (C,), of a norm in eval(), in float64."""
    own = {key: t.cpu().double() for key, t in plain.tensors.items() if t is not None and t.dim()}
    least = {"running_var": 0.0}
    for key, values in own.items():
        bad = ~values.isfinite() | (values < least.get(key, -math.inf))
        if bad.any():
            channel = _first(bad)
            allowed = (
                f"must be finite and at least {least[key]:g}" if key in least else "must be finite"
            )
            raise ModelError(
                f"fold of {name!r}: channel {channel} has {key} {values[channel].item():g}; it "
                f"{allowed}, so correct or recalibrate the layer before"
            )
    scale = own.get("weight", torch.ones(())) / (own["running_var"] + plain.eps).sqrt()
    if not scale.isfinite().all():
        raise ModelError(
            f"fold of {name!r}: channel {_first(~scale.isfinite())} has running_var 0 and the norm "
            "eps 0, which divides by zero; give the norm an eps"
        )
    return scale, own.get("bias", torch.zeros(())) - own["running_mean"] * scale


def _combined(layer: nn.Module, scale: Tensor, shift: Tensor, side: Side) -> tuple[Tensor, Tensor]:
    """Compute the neighbour's weight and bias with the norm in them, in float64."""
    own = {key: t.cpu().double() for key, t in layer._parameters.items() if t is not None}
    table, bias = _table(layer, own["weight"]), own.get("bias", torch.zeros(()))
    facing = (-1, 1) if side == "before" else (1, -1)
    shape = (table.shape[0], *facing, *(1,) * (table.dim() - 3))
    scaled = table * scale.reshape(shape)
    if isinstance(layer, TRANSPOSED):
        scaled = scaled.transpose(1, 2)
    if side == "before":
        return scaled.flatten(0, 1), shift + scale * bias
    return scaled.flatten(0, 1), bias + (table * shift.reshape(shape)).flatten(2).sum(2).flatten()


def _table(layer: nn.Module, weight: Tensor) -> Tensor:
    """View a weight as (groups, outputs, inputs, *kernel)."""
    groups = layer.groups if hasattr(layer, "groups") else 1
    table: Tensor = weight.unflatten(0, (groups, -1))
    return table.transpose(1, 2) if isinstance(layer, TRANSPOSED) else table


def _with_rest(norm: nn.Module, plain: Plain, new: nn.Module) -> nn.Module:
    """Put the activations that the norm brought along behind a module."""
    rest: dict[str, nn.Module] = {}
    if plain.behind:
        rest = {key: norm.get_submodule(key) for key in ("drop", "act")}
    elif plain.act is not None:
        rest = {"act": ACTIVATIONS[plain.act]()}
    if all(type(module) is nn.Identity for module in rest.values()):
        return new.eval()
    return nn.Sequential(OrderedDict(norm=new, **rest)).eval()


def _check_pair(
    layer: nn.Module,
    norm: nn.Module,
    new: nn.Module,
    weight: Tensor,
    bias: Tensor,
    side: Side,
    rank: int,
) -> None:
    """Run both, and what they become, on random numbers in float64.

    Raises:
        Refusal: they differ; a class with a forward of its own computes something else.
    """
    pair = copy.deepcopy([layer, norm, new])
    layer, norm, new = (without_hooks(module.cpu().double()) for module in pair)
    x = torch.randn(_shape(layer), dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def run(norm: nn.Module) -> Tensor:
        y: Tensor = layer(x) if side == "before" else x
        y = norm(y.reshape(*y.shape, *(1,) * (rank - y.dim())))
        return y if side == "before" else layer(y.flatten(1) if rank else y)

    try:
        before = run(norm)
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        after = run(new)
        gap = difference([before], [after])
    except Exception as problem:
        raise Refusal(f"the pair cannot be run by itself ({reason(problem)})") from problem
    if not gap <= AGREE:
        raise Refusal(
            f"{type(layer).__name__} and {type(norm).__name__} compute more than their weights say"
        )


def _shape(layer: nn.Module) -> tuple[int, ...]:
    """Return the shape of a small input: two samples, a few positions of the kernel."""
    weight = layer.weight
    assert isinstance(weight, Tensor), "every linear layer has one"
    if isinstance(layer, nn.Linear):
        return (2, layer.in_features)
    if isinstance(layer, TRANSPOSED):
        return (2, layer.in_channels, *(3,) * (weight.dim() - 2))
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)), "the only others"
    sizes = (
        max(d * (k - 1) + 1 - 2 * pad, pad + 1 if layer.padding_mode != "zeros" else 1) + s
        for k, d, s, pad in zip(
            layer.kernel_size, layer.dilation, layer.stride, _pads(layer), strict=True
        )
    )
    return (2, layer.in_channels, *sizes)


def _pads(layer: nn.Module) -> tuple[int, ...]:
    """Return how far a convolution pads, per dimension."""
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return ()
    if isinstance(layer.padding, str):
        full = layer.padding == "same"
        reach = zip(layer.dilation, layer.kernel_size, strict=True)
        return tuple((d * (k - 1) + 1) // 2 if full else 0 for d, k in reach)
    return tuple(int(pad) for pad in layer.padding)


def difference(before: list[Tensor], after: list[Tensor]) -> float:
    """Return the largest difference over the largest value of before; NaN equals NaN."""
    size = max((largest(x) for x in before), default=0.0)
    gaps = (largest_gap(a, b, size) for a, b in zip(before, after, strict=True))
    return max(gaps, default=0.0)


def _first(bad: Tensor) -> int:
    return int(bad.nonzero()[0])
