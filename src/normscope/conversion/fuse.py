"""Let converted norm layers do the activations behind them."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from normscope.arguments import Activation
from normscope.conversion.activation_pairs import (
    NoActivationError,
    activation_of,
    find_pairs,
)
from normscope.conversion.blend import Behind
from normscope.conversion.former import Former, remembered
from normscope.conversion.fused_forward import fused_class
from normscope.conversion.kinds import Kind, Refusal
from normscope.conversion.tracing import has_hook
from normscope.layers import FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d
from normscope.layers.batch import Normalizer
from normscope.records import Fusion, Left

FUSING: tuple[Kind, ...] = ("batch", "ghost", "renorm", "evalnorm", "frozen")
LAYERS = (Normalizer, FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d)


def fuse_layers(
    model: nn.Module, layers: Mapping[str, nn.Module], former: list[Former]
) -> tuple[tuple[Fusion, ...], tuple[Left, ...]]:
    """Fuse what can be; each change is noted in `former` before it is made.

    Args:
        model: what holds the layers.
        layers: by name, after their conversion.
        former: what was changed so far.

    Returns:
        What layers do now, and the layers that do no activation.
    """
    names = {module: name for name, module in model.named_modules()}
    open_: dict[str, Any] = {}
    fused: list[Fusion] = []
    for layer in layers.values():
        if isinstance(layer, LAYERS) and layer.fused_act is None:
            name = names[layer]
            own = _fuse_inside(layer, name, former)
            if own is not None:
                fused.append(own)
            else:
                open_[name] = layer
    pairs, reasons = find_pairs(model, [name for name in open_ if name])
    for name, place, act in pairs:
        module = model.get_submodule(place)
        fused.append(Fusion(name, act, place))
        _take(open_.pop(name), act, former)
        if type(module) is not nn.Identity:  # it is the first of several layers
            former.append(Former(module, type(module), None, {}))
            module.__class__ = nn.Identity
    inside: dict[str, list[str]] = {}  # norms by the block that calls them
    for name, reason in reasons.items():
        parent = _block(model, name)
        if parent is not None and not isinstance(reason, NoActivationError):
            inside.setdefault(parent, []).append(name)
    for place, those in inside.items():
        block = model.get_submodule(place)
        try:
            cls = fused_class(block, place)
        except NoActivationError:
            continue
        except Refusal as problem:
            for name in those:
                shown = repr(place) if place else type(model).__name__
                reasons[name] = Refusal(f"{reasons[name]}; {shown} stays: {problem}")
            continue
        former.append(Former(block, type(block), None, {}))
        block.__class__ = cls
        for call in cls.fused:
            open_.pop(call.norm, None)
            fused.append(Fusion(call.norm, call.act or "", call.place, call.residual))
    alone = Refusal("it is the whole model")
    left = [
        Left(name or type(layer).__name__, type(layer).__name__, str(reasons.get(name, alone)))
        for name, layer in open_.items()
    ]
    return tuple(fused), tuple(left)


def _fuse_inside(layer: Any, name: str, former: list[Former]) -> Fusion | None:
    """Take over the activation that a layer runs in a module of its own, as timm's do."""
    if not isinstance(layer, Behind) or type(layer.drop) is not nn.Identity:
        return None
    act = activation_of(layer.act)
    if act is None or has_hook(layer.act) or has_hook(layer.drop):
        return None
    _take(layer, act, former)
    former.append(Former(layer.act, type(layer.act), None, {}))
    layer.act.__class__ = nn.Identity
    return Fusion(name, act, f"{name}.act")


def _take(layer: Any, act: Activation, former: list[Former]) -> None:
    former.append(remembered(layer))
    if isinstance(layer, Behind):
        layer.taken_act = act
    else:
        layer.act = act


def _block(model: nn.Module, name: str) -> str | None:
    """Find the module whose forward calls a layer; None where that is one of torch's own."""
    place = name
    while True:
        place = place.rpartition(".")[0]
        block = model.get_submodule(place)
        if not isinstance(block, (nn.ModuleList, nn.ModuleDict)):
            return None if type(block).__module__.startswith("torch.nn.") else place
        if not place:
            return None
