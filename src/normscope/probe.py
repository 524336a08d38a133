"""Find the normalisation layers of any model, observe what passes through them, leave no trace."""

import random
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from normscope.errors import ModelError
from normscope.functional import batch_norm
from normscope.layers import (
    ConditionalBatchNorm1d,
    ConditionalBatchNorm2d,
    ConditionalBatchNorm3d,
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
)
from normscope.layers.batch import Normalizer
from normscope.layers.conditional import current_condition
from normscope.layers.statistics import RunningStatistics

# element-wise maps that people put behind a norm, by the names that torch gives them at run time
# fmt: off
ACTIVATIONS = frozenset({
    "celu", "clamp", "clamp_min", "clip", "elu", "gelu", "hardshrink", "hardsigmoid",
    "hardswish", "hardtanh", "leaky_relu", "log_sigmoid", "mish", "prelu", "relu", "relu6",
    "rrelu", "selu", "sigmoid", "silu", "softplus", "softshrink", "softsign", "tanh",
    "tanhshrink", "threshold",
})
# fmt: on

_PER_SAMPLE = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm, _InstanceNorm)
_CONDITIONAL = (ConditionalBatchNorm1d, ConditionalBatchNorm2d, ConditionalBatchNorm3d)
# these may add a residual and activate by themselves
_FUSING = (Normalizer, FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d)


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


@dataclass(frozen=True)
class Call:
    """One call of one layer within one forward of the model.

    Attributes:
        layer: the layer's name.
        index: 0 for the first call in this forward.
        module: the layer.
        condition: (N,) the condition of each sample; None for layers that know none.
        masked: whether the layer was told to leave some positions out.
    """

    layer: str
    index: int
    module: nn.Module
    condition: Tensor | None
    masked: bool = False

    @property
    def name(self) -> str:
        """The layer's name, with "#2" on its second call in a forward."""
        return self.layer if self.index == 0 else f"{self.layer}#{self.index + 1}"


class Watcher(Protocol):
    """Who is told what passes; the tensors are the model's own, not to be kept or written to."""

    def normed(self, call: Call, before: Tensor, after: Tensor) -> None:
        """A layer ran: its input, and its scaled and shifted output before any activation."""

    def activated(self, call: Call, activation: str, after: Tensor) -> None:
        """The activation of that output ran; comes after `normed` of the same call, or never."""


def find_norms(model: nn.Module) -> list[Norm]:
    """Every normalisation layer, in the order of `model.named_modules()`, each module once.

    A layer can be followed if it keeps running_mean and running_var per channel: in eval mode it
    is then one affine map per channel, the same for every sample (of a condition). That holds
    for torch's BatchNorm and SyncBatchNorm and their subclasses, for frozen batch norm, for
    InstanceNorm with running statistics, and for ours.
    """
    found = []
    for name, module in model.named_modules():
        mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        skipped: str | None = None
        if isinstance(module, RunningStatistics) and module.policy.use == "batch":
            skipped = "lens.skip.no_statistics"
        elif isinstance(mean, Tensor) and isinstance(var, Tensor) and hasattr(module, "eps"):
            if not is_lazy(mean) and mean.dim() != 1 and not isinstance(module, _CONDITIONAL):
                skipped = "lens.skip.not_per_channel"
        elif isinstance(module, _PER_SAMPLE):
            skipped = "lens.skip.per_sample"
        elif isinstance(module, (_BatchNorm, _CONDITIONAL)):
            skipped = "lens.skip.no_statistics"
        else:
            continue
        found.append(Norm(name or type(module).__name__, module, skipped))
    return found


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run `model` in eval mode without gradients, and hand it back as it was.

    Modes are set and restored per module (an overridden `train()` is not called), buffers that
    were replaced or written to get their old identity and content, and the state of every random
    generator returns to where it was, also after an exception or Ctrl-C.

    Raises:
        ModelError: a lazy layer has no shape yet; its first forward would change the model.
    """
    modules = list(model.modules())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ModelError(
                f"{name} has no shape yet (a lazy layer); run the model once on a batch before"
            )
    modes = [module.training for module in modules]
    tables = [dict(module._buffers) for module in modules]
    contents = [
        (buffer, buffer._version, buffer.clone())
        for buffer in model.buffers()
        if not buffer.is_inference()
    ]
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.no_grad(), torch.random.fork_rng(gpus):
        try:
            for module in modules:
                module.training = False
            yield
        finally:
            for module, mode, table in zip(modules, modes, tables, strict=True):
                module.training = mode
                module._buffers.clear()
                module._buffers.update(table)
            for buffer, version, content in contents:
                if buffer._version != version:
                    buffer.copy_(content)
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def observe(model: nn.Module, norms: list[Norm], watcher: Watcher) -> Iterator[None]:
    """Tell `watcher` of every call of `norms` (those not skipped) while the model runs inside.

        with untouched(model), observe(model, find_norms(model), watcher):
            model(x)

    An activation belongs to a layer's call if its input *is* that call's output: the same tensor
    object, not written to since. Functions, methods, modules and in-place forms are all seen; the
    first one counts. A residual sum or a reshape between the two breaks the pair.
    """
    names = {norm.module: norm.name for norm in norms if norm.skipped is None}
    observer = _Observer(names, watcher)
    with ExitStack() as undo:
        hook = model.register_forward_pre_hook(lambda module, args: observer.start(module))
        undo.callback(hook.remove)
        for module in names:
            before = module.register_forward_pre_hook(observer.enter, with_kwargs=True)
            undo.callback(before.remove)
            after = module.register_forward_hook(observer.leave, with_kwargs=True)
            undo.callback(after.remove)
        undo.enter_context(observer)
        yield


def culprit(model: nn.Module, problem: BaseException) -> str:
    """The innermost module of `model` that was running when `problem` was raised, as a phrase."""
    names = {id(module): name for name, module in model.named_modules()}
    running = [
        frame.f_locals["self"]
        for frame, _ in traceback.walk_tb(problem.__traceback__)
        if id(frame.f_locals.get("self")) in names
    ]
    if not running or running[-1] is model:
        return f"the model ({type(model).__name__})"
    return f"layer {names[id(running[-1])]} ({type(running[-1]).__name__})"


@dataclass
class _Frame:
    """A norm layer's forward that has begun and not ended."""

    call: Call
    before: Tensor
    inner: "_Mark | None" = None  # what torch's or our batch_norm inside it returned
    told: bool = False


class _Mark:
    """A tensor as it is now; weak, so that no memory is held for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = weakref.ref(tensor)
        self._version = _version(tensor)

    def stands_for(self, value: object) -> TypeGuard[Tensor]:
        """Whether `value` is the same tensor object, and was not written to since."""
        tensor = self._tensor()
        return tensor is not None and tensor is value and _version(tensor) == self._version


class _Observer(TorchFunctionMode):
    """Pairs the calls of norm layers with the activations that follow, by tensor identity."""

    def __init__(self, names: Mapping[nn.Module, str], watcher: Watcher) -> None:
        super().__init__()
        self._names = names
        self._watcher = watcher
        self._calls: Counter[nn.Module] = Counter()
        self._running: list[_Frame] = []
        self._waiting: dict[int, tuple[_Mark, Call]] = {}  # outputs, by id, without activation yet

    def start(self, model: nn.Module) -> None:
        """A forward of the model begins, unless the model calls itself."""
        if not self._is_running(model):
            self._calls.clear()
            self._running.clear()
            self._waiting.clear()

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A norm layer's forward begins."""
        before = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        ids = None
        if isinstance(module, _CONDITIONAL):
            ids = kwargs.get("condition", args[1] if len(args) > 1 else None)
            ids = current_condition() if ids is None else ids
        mask = kwargs.get("mask", args[2] if len(args) > 2 else None)
        masked = isinstance(module, RunningStatistics) and mask is not None
        call = Call(self._names[module], self._calls[module], module, ids, masked)
        again = self._is_running(module)  # a layer that calls itself is told of once, from outside
        self._calls[module] += not again
        self._running.append(_Frame(call, before, told=again))

    def leave(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], after: Tensor
    ) -> None:
        """A norm layer's forward ends; one that raised inside a model that went on is dropped."""
        while (frame := self._running.pop()).call.module is not module:
            pass
        if frame.told:
            return
        residual = kwargs.get("residual", args[1] if len(args) > 1 else None)
        act = getattr(module, "fused_act", None)
        with torch._C.DisableTorchFunction():  # the watcher's own work is not watched
            if isinstance(module, _FUSING) and (act is not None or residual is not None):
                self._watcher.normed(frame.call, frame.before, _plain_output(module, frame.before))
                if residual is None:
                    self._watcher.activated(frame.call, str(act), after)
            else:
                self._tell(frame.call, frame.before, after)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        if name not in ACTIVATIONS:
            result = func(*args, **kwargs)
            if name == "batch_norm" and self._running:
                self._running[-1].inner = _Mark(result)
            return result
        subject = args[0] if args else kwargs.get("input")
        frame = self._running[-1] if self._running else None
        if frame and not frame.told and frame.inner and frame.inner.stands_for(subject):
            # the layer activates its own output: take that now, an in-place form overwrites it
            self._tell(frame.call, frame.before, subject)
            frame.told = True
        call = self._take(subject)
        result = func(*args, **kwargs)
        if call is not None:
            self._watcher.activated(call, name, result)
        return result

    def _is_running(self, module: nn.Module) -> bool:
        return any(frame.call.module is module for frame in self._running)

    def _tell(self, call: Call, before: Tensor, after: Tensor) -> None:
        self._watcher.normed(call, before, after)
        self._waiting[id(after)] = (_Mark(after), call)

    def _take(self, subject: object) -> Call | None:
        mark, call = self._waiting.get(id(subject), (None, None))
        if mark is None or not mark.stands_for(subject):
            return None
        del self._waiting[id(subject)]
        return call


def _plain_output(layer: Any, before: Tensor) -> Tensor:
    """What one of our layers makes of `before` without its residual and activation."""
    return batch_norm(
        before, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps
    )


def _version(tensor: Tensor) -> int:
    """How often the tensor was written to; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version
