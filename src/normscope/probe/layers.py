"""Which layers of a model normalise, and what they are called."""

import copy
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from normscope.arguments import check_model
from normscope.errors import few
from normscope.layers import ConditionalBatchNorm1d, ConditionalBatchNorm2d, ConditionalBatchNorm3d
from normscope.layers.statistics import RunningStatistics

# people's own layers, and those that normalise by the sample under names of their own
_NAMED = re.compile(r"(layer|rms|group|instance|response|evo)_?norm(act)?(\d*d)?$", re.IGNORECASE)
# modules around a model that pass its inputs through
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_COMPILED = "_orig_mod"  # what torch.compile puts into names
_PER_SAMPLE = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm, _InstanceNorm)
CONDITIONAL = (ConditionalBatchNorm1d, ConditionalBatchNorm2d, ConditionalBatchNorm3d)
EPS = ("eps", "epsilon", "variance_epsilon")
# a batch norm that its owner wrote, by its class or by what it keeps
_OWN = re.compile(r"batch_?norm|^(bn|norm)\d*d?$", re.IGNORECASE)
_OWN_STATISTICS = re.compile(r"(moving|running|global|ema)_?(mean|avg|average|var|variance|std)$")


@dataclass(frozen=True)
class Norm:
    """A normalisation layer of a model.

    Attributes:
        name: as in `model.named_modules()`; the class name where the model itself is the layer.
        module: the layer.
        skipped: why classes cannot be followed through it, as a message key; None where they can.
    """

    name: str
    module: nn.Module
    skipped: str | None


def bare(model: nn.Module) -> nn.Module:
    """Unwrap a model from DistributedDataParallel, DataParallel and torch.compile.

    Its forward is the same, and neither exchanges buffers with other ranks nor hides its layers.

    Raises:
        ModelError: it is no module.
    """
    check_model(model)
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif isinstance(inner := getattr(model, _COMPILED, None), nn.Module):
            model = inner
        else:
            return model


def in_training(model: nn.Module) -> bool:
    """Whether a model is in train(), parts of it left aside that somebody put into eval().

    A wrapper that was made around a model in eval() is in train(), as every new module is; it
    does nothing by itself, so what counts is whether any layer inside is.
    """
    model = bare(model)
    return model.training and any(m.training for m in model.modules() if not m._modules)


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Walk as `model.named_modules()`, without wrappers and torch.compile, and their names."""
    for name, module in bare(model).named_modules():
        if _COMPILED in module._modules:
            continue  # the module inside follows by the same name
        yield ".".join(part for part in name.split(".") if part != _COMPILED), module


def stored_eps(module: nn.Module) -> float | None:
    """Return the eps that a layer keeps as an attribute; None where it keeps none."""
    values = (getattr(module, name, None) for name in EPS)
    return next((float(value) for value in values if isinstance(value, (int, float))), None)


def eps_of(module: nn.Module) -> float | None:
    """Return the eps of a layer with running statistics, also of one that does not keep it.

    Such a layer, as DETR's frozen batch norm, has it as a number in its forward: a step of 1 comes
    out as weight / sqrt(eps). None where the layer does something else.
    """
    known = stored_eps(module)
    tried = None if known is not None else tried_alone(module, torch.arange(2))
    if tried is None:
        return known
    alone, y = tried
    weight = torch.ones_like(y[0]) if getattr(alone, "weight", None) is None else alone.weight
    if getattr(weight, "shape", None) != y[0].shape:
        return None
    eps = (weight / (y[1] - y[0])).square()[weight != 0]
    same = len(eps) and bool((eps - eps[0]).abs().max() <= 1e-6 * eps[0])
    return float(eps[0]) if same and 0 < float(eps[0]) < 1 else None


def tried_alone(
    module: nn.Module, values: Tensor, *, training: bool = False
) -> tuple[Any, Tensor] | None:
    """Run a copy whose statistics are 0 on values that all channels share; None where it fails."""
    mean = getattr(module, "running_mean", None)
    if not isinstance(mean, Tensor) or is_lazy(mean) or mean.is_meta or mean.dim() != 1:
        return None
    for rank in (4, 2, 3, 5):
        try:
            alone: Any = copy.deepcopy(module).double().train(training)
            x = values.to(mean.device, torch.float64).view(-1, *[1] * (rank - 1))
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                alone.running_mean.zero_()
                alone.running_var.zero_()
                return alone, alone(x.expand(len(x), len(mean), *[1] * (rank - 2))).flatten(1)
        except Exception:  # it takes another rank, or cannot be copied
            continue
    return None


def own_norms(model: nn.Module) -> list[str]:
    """Name the layers that seem to be batch norms of their owner's making, which none can follow.

    Their class is called so, or they keep statistics under names of their own.
    """
    found = []
    known = {id(norm.module) for norm in find_norms(model)}
    for name, module in named_layers(model):
        if id(module) in known or list(module.children()):
            continue
        keeps = [key for key in (*vars(module), *module._buffers) if _OWN_STATISTICS.search(key)]
        if keeps or _OWN.search(type(module).__name__):
            what = f", which keeps {' and '.join(keeps[:2])}" if keeps else ""
            found.append(f"{name or 'the model'} ({type(module).__name__}{what})")
    return found


def without_norms(model: nn.Module) -> str:
    """Say what may normalise in a model in which no layer is known to; empty where nothing does."""
    own = own_norms(model)
    if not own:
        return ""
    return (
        f"; {few(own, 1)} may be a batch norm of your own: it is followed if it has buffers "
        "running_mean and running_var, (C,), an eps, and weight and bias, (C,)"
    )


def find_norms(model: nn.Module, *, per_sample: bool = False) -> list[Norm]:
    """List every normalisation layer, in the order of `model.named_modules()`, each module once.

    A layer can be followed if it keeps running_mean and running_var per channel: in eval mode it
    is then one affine map per channel, the same for every sample (of a condition). That holds
    for torch's BatchNorm and SyncBatchNorm and their subclasses, for frozen batch norm, for
    InstanceNorm with running statistics, and for ours. With `per_sample` those that normalise each
    sample by itself count too, which `lens.per_sample` tells apart by what they do.
    """
    found = []
    for name, module in named_layers(model):
        mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        skipped: str | None = None
        if isinstance(module, RunningStatistics) and module.policy.use == "batch":
            skipped = "lens.skip.no_statistics"
        elif isinstance(mean, Tensor) and isinstance(var, Tensor) and eps_of(module) is not None:
            if not is_lazy(mean) and mean.dim() != 1 and not isinstance(module, CONDITIONAL):
                skipped = "lens.skip.not_per_channel"
        elif isinstance(module, _PER_SAMPLE):
            skipped = "lens.skip.per_sample"
        elif isinstance(module, (_BatchNorm, CONDITIONAL)):
            skipped = "lens.skip.no_statistics"
        elif _NAMED.search(type(module).__name__) and not list(module.children()):
            skipped = "lens.skip.per_sample"
        else:
            continue
        if per_sample and skipped == "lens.skip.per_sample":
            skipped = None
        found.append(Norm(name or type(module).__name__, module, skipped))
    return found


def has_statistics(model: nn.Module) -> bool:
    """Return whether a model has a norm with running statistics per channel."""
    return any(norm.skipped is None for norm in find_norms(model))


def culprit(model: nn.Module, problem: BaseException) -> str:
    """Name the innermost module of `model` that was running when `problem` was raised."""
    model = bare(model)
    names = {id(module): name for name, module in named_layers(model)}
    running = [
        frame.f_locals["self"]
        for frame, _ in traceback.walk_tb(problem.__traceback__)
        if id(frame.f_locals.get("self")) in names
    ]
    if not running or running[-1] is model:
        return f"the model ({type(model).__name__})"
    return f"layer {names[id(running[-1])]} ({type(running[-1]).__name__})"
