"""What each layer of the family is, in the five tensors of plain batch norm and its arguments."""

import inspect
import sys
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from normscope import layers
from normscope.arguments import Activation, listed
from normscope.conversion.blend import Behind
from normscope.errors import InputError
from normscope.layers.batch import Ranks
from normscope.layers.guarding import policy_of
from normscope.layers.statistics import AS_TORCH, RunningStatistics, pooled
from normscope.probe import eps_of
from normscope.records import NormKind

Kind = NormKind
KINDS: tuple[Kind, ...] = get_args(Kind)
PLAIN = ("torch", "sync", "batch")  # the same function of one batch, in training too

CLASSES: dict[Kind, tuple[type[nn.Module], ...]] = {
    "torch": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    "sync": (nn.SyncBatchNorm,) * 3,
    "batch": (layers.BatchNorm1d, layers.BatchNorm2d, layers.BatchNorm3d),
    "ghost": (layers.GhostBatchNorm1d, layers.GhostBatchNorm2d, layers.GhostBatchNorm3d),
    "renorm": (layers.BatchRenorm1d, layers.BatchRenorm2d, layers.BatchRenorm3d),
    "evalnorm": (layers.EvalNorm1d, layers.EvalNorm2d, layers.EvalNorm3d),
    "frozen": (layers.FrozenBatchNorm1d, layers.FrozenBatchNorm2d, layers.FrozenBatchNorm3d),
    "conditional": (
        layers.ConditionalBatchNorm1d,
        layers.ConditionalBatchNorm2d,
        layers.ConditionalBatchNorm3d,
    ),
    "mode": (layers.ModeNorm1d, layers.ModeNorm2d, layers.ModeNorm3d),
    "group": (nn.GroupNorm,) * 3,
}
# what every layer takes; the other arguments of a class are its options
SHARED = (
    *("num_features", "eps", "momentum", "affine", "track_running_stats", "device", "dtype"),
    *("bias", "act", "num_channels"),
)
ON_ONE_RANK = ("ghost", "evalnorm")  # kinds that take a process group and do not share with it
NEEDED: dict[Kind, str] = {
    "ghost": "ghost_size",
    "conditional": "num_conditions",
    "mode": "num_modes",
    "group": "num_groups",
}
NAMES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class Refusal(Exception):
    """Why a layer cannot become another without losing something, as a phrase."""


@dataclass(frozen=True)
class Plain:
    """A layer as plain batch norm.

    Attributes:
        kind: what it is; "instance" for torch's InstanceNorm with running statistics.
        base: the class of the family that it is, or is derived from.
        dims: spatial dimensions' rank, 1 to 3; None where the class takes any.
        features: C.
        eps: added to the variance.
        momentum: of the running statistics; None is the cumulative mean.
        tensors: the five keys, each (C,), as the layer holds them; None where it has none.
        exact: whether one (C,) row says all: no groups that differ.
        act: its own activation, by name.
        behind: it runs modules `drop` and `act` of its own behind the normalisation, as timm's do.
        ranks: it normalises together with these other processes.
    """

    kind: str
    base: type[nn.Module]
    dims: int | None
    features: int
    eps: float
    momentum: float | None
    tensors: dict[str, Tensor | None]
    exact: bool = True
    act: Activation | None = None
    behind: bool = False
    ranks: Ranks = None
    options: dict[str, Any] = field(default_factory=dict)


def read(layer: nn.Module) -> Plain | None:
    """Return what a module is in the family; None for a module that is no part of it.

    Raises:
        Refusal: it belongs to the family, but as something that cannot be known or carried.
    """
    own = (*layer._parameters.values(), *layer._buffers.values())
    if isinstance(layer, _BatchNorm) and any(t is not None and is_lazy(t) for t in own):
        raise Refusal("it is lazy and has no shape yet; run the model once on a batch before")
    kind, base, dims, behind = _family(layer)
    if kind is None:
        return None
    if isinstance(layer, torch.jit.ScriptModule):
        raise Refusal("it is TorchScript, which cannot change")
    if (policy := policy_of(layer)) != AS_TORCH:
        raise Refusal(f"it follows {policy}; end the guard, or set_policy(Policy()), before")
    tensors = {name: getattr(layer, name, None) for name in NAMES}
    if kind == "instance" and tensors["running_mean"] is None:
        raise Refusal("it keeps no running statistics: each sample has its own, in eval too")
    exact = True
    if kind in ("conditional", "mode"):
        assert isinstance(layer, RunningStatistics)
        tables = [t for t in tensors.values() if t is not None and t.is_floating_point()]
        exact = all(t.dim() == 1 or bool((t == t[0]).all()) for t in tables)
        tensors |= pooled(layer)
    ranks = getattr(layer, "process_group", None)
    return Plain(
        kind=kind,
        base=base,
        dims=dims,
        features=_features(layer, tensors),
        eps=eps_of(layer) or 0.0,
        momentum=getattr(layer, "momentum", 0.1),
        tensors=tensors,
        exact=exact,
        act=getattr(layer, "fused_act", None),
        behind=behind,
        ranks="world" if kind == "sync" and ranks is None else ranks,
        options={name: getattr(layer, name, None) for name in options_of(kind)},
    )


def is_norm(module: nn.Module) -> bool:
    """Return whether a module belongs to the family, even as one that cannot be read."""
    try:
        return read(module) is not None
    except Refusal:
        return True


def made(plain: Plain, kind: Kind, dims: int | None, options: dict[str, Any]) -> nn.Module:
    """Make a layer of `kind` with a plain layer's arguments, its tensors not yet filled in.

    Raises:
        Refusal: no layer of this kind can do what the plain one does.
        InputError: an option's value is not allowed.
    """
    dims = plain.dims or dims
    if dims is None:
        if kind not in ("sync", "group"):
            raise Refusal("SyncBatchNorm does not say how many dimensions it has; give dims=2")
        dims = 2
    t = plain.tensors
    affine, tracks = t["weight"] is not None, t["running_mean"] is not None
    like = next((t[n] for n in ("weight", "running_mean") if t[n] is not None), None)
    place = {} if like is None else {"device": like.device, "dtype": like.dtype}
    target = CLASSES[kind][dims - 1]
    if plain.act is not None and kind in ("torch", "sync", "conditional", "mode", "group"):
        raise Refusal(f"it activates by itself (act={plain.act!r}), which {kind} does not")
    if plain.behind and kind in ("sync", "conditional", "mode", "group"):
        raise Refusal(f"it runs modules drop and act of its own, which {kind} does not")
    if kind in ("frozen", "renorm", "mode") and not tracks:
        raise Refusal(f"it keeps no running statistics, which {kind} needs")
    if kind == "mode" and not (affine and t["bias"] is not None):
        raise Refusal("it has no weight or no bias, which mode always has")
    common: dict[str, Any] = {"eps": plain.eps, **place}
    if kind == "frozen":
        return target(plain.features, **common, act=plain.act, **options)
    if kind == "group":
        return target(options.pop("num_groups"), plain.features, affine=affine, **common)
    common["momentum"] = plain.momentum
    if kind == "mode":
        return target(plain.features, **common, **options)
    if kind == "conditional":
        if not affine:
            options = {"affine": "none", **options}
        elif options.get("affine") == "none":
            raise Refusal("it has weight and bias, which affine='none' would lose")
        return target(plain.features, **common, track_running_stats=tracks, **options)
    common |= {"affine": affine, "track_running_stats": tracks}
    if kind in ("batch", "renorm", "ghost", "evalnorm"):
        common["act"] = plain.act
    return target(plain.features, **common, **options)


def equality(plain: Plain, kind: Kind, layer: nn.Module) -> Literal["always", "eval", "never"]:
    """Tell where a layer of `kind` computes what the plain one did: training too, eval, never."""
    own = (plain.options.get("own_weight", 0.0), getattr(layer, "own_weight", 0.0))
    if kind == "group" or not plain.exact or own[0] != own[1]:
        return "never"
    new_ranks = getattr(layer, "process_group", None) or ("world" if kind == "sync" else None)
    if plain.kind in PLAIN and kind in PLAIN and plain.ranks == new_ranks:
        return "always"
    return "always" if plain.kind == kind == "frozen" else "eval"


def check_options(kind: str, options: dict[str, Any]) -> Kind:
    """Return the kind, if it and the names of its options are known.

    Raises:
        InputError: they are not.
    """
    known = next((k for k in KINDS if k == kind), None)
    if known is None:
        raise InputError(f"to is {kind!r}; it can be {listed(KINDS)}")
    there = options_of(known)
    for name in options:
        if name not in there:
            allowed = f"it takes {listed(there)}" if there else "it takes none"
            raise InputError(f"{known} has no option {name!r}; {allowed}")
    needed = NEEDED.get(known)
    if needed is not None and needed not in options:
        raise InputError(f"{known} needs {needed}, as in convert(model, {known!r}, {needed}=8)")
    return known


def _family(layer: nn.Module) -> tuple[str | None, type[nn.Module], int | None, bool]:
    """Return kind, class in the family, rank and whether timm's drop and act run behind."""
    for mine in type(layer).__mro__:
        behind = _is_timm(mine)
        if behind and mine.__name__.startswith("Frozen"):
            return "frozen", mine, 2, True
        if behind:
            return "torch", mine, 2, True
        if mine is nn.SyncBatchNorm:
            return "sync", mine, None, isinstance(layer, Behind)
        for kind, classes in CLASSES.items():
            if kind != "group" and mine in classes:
                return kind, mine, classes.index(mine) + 1, isinstance(layer, Behind)
        if issubclass(mine, _InstanceNorm) and mine.__module__ == _InstanceNorm.__module__:
            dims = {"1": 1, "2": 2, "3": 3}.get(mine.__name__[-2])
            return "instance", mine, dims, False
        if "FrozenBatchNorm" in mine.__name__ and eps_of(layer) is not None:
            return "frozen", mine, 2, False  # of torchvision, detectron2, DETR and its kin
        if mine is _BatchNorm:
            raise Refusal(f"its class {type(layer).__name__} takes inputs of an unknown rank")
    return None, type(layer), None, False


def _is_timm(kind: type) -> bool:
    """Return whether a class is one of timm's batch norms that drop and activate by themselves."""
    home = sys.modules.get("timm.layers.norm_act")
    names = ("BatchNormAct2d", "FrozenBatchNormAct2d")
    return home is not None and any(kind is getattr(home, name, None) for name in names)


@cache
def options_of(kind: str) -> tuple[str, ...]:
    """Return the arguments that a kind's layers have beyond those of all; none for "instance"."""
    found = next((classes[0] for known, classes in CLASSES.items() if known == kind), None)
    own = {"affine"} if kind == "conditional" else set()  # it has a meaning of its own there
    without = {*SHARED, *(("process_group",) if kind in ON_ONE_RANK else ())} - own
    names = () if found is None else inspect.signature(found).parameters
    return tuple(name for name in names if name not in without)


def _features(layer: nn.Module, tensors: dict[str, Tensor | None]) -> int:
    given = getattr(layer, "num_features", None)
    if given is not None:
        return int(given)
    return next(t.shape[-1] for t in tensors.values() if t is not None and t.dim())
