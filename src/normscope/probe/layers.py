"""Which layers of a model normalise, and what they are called."""

import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from normscope.layers import ConditionalBatchNorm1d, ConditionalBatchNorm2d, ConditionalBatchNorm3d
from normscope.layers.statistics import RunningStatistics

# people's own layers, and those that normalise by the sample under names of their own
_NAMED = re.compile(r"(layer|rms|group|instance|response|evo)_?norm(act)?(\d*d)?$", re.IGNORECASE)
# modules around a model that pass its inputs through
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_COMPILED = "_orig_mod"  # what torch.compile puts into names
_PER_SAMPLE = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm, _InstanceNorm)
CONDITIONAL = (ConditionalBatchNorm1d, ConditionalBatchNorm2d, ConditionalBatchNorm3d)


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
    """
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif isinstance(inner := getattr(model, _COMPILED, None), nn.Module):
            model = inner
        else:
            return model


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Walk as `model.named_modules()`, without wrappers and torch.compile, and their names."""
    for name, module in bare(model).named_modules():
        if _COMPILED in module._modules:
            continue  # the module inside follows by the same name
        yield ".".join(part for part in name.split(".") if part != _COMPILED), module


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
        elif isinstance(mean, Tensor) and isinstance(var, Tensor) and hasattr(module, "eps"):
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
