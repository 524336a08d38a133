"""What passes through the normalisation layers of a model while it runs."""

import copy
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normscope.functional import batch_norm
from normscope.layers import FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d
from normscope.layers.batch import Normalizer
from normscope.layers.conditional import current_condition
from normscope.layers.statistics import RunningStatistics
from normscope.probe.hooks import uncompiled
from normscope.probe.layers import CONDITIONAL, Norm, bare

# element-wise maps that people put behind a norm, by the names that torch gives them at run time
# fmt: off
ACTIVATIONS = frozenset({
    "celu", "clamp", "clamp_min", "clip", "elu", "gelu", "hardshrink", "hardsigmoid",
    "hardswish", "hardtanh", "leaky_relu", "log_sigmoid", "mish", "prelu", "relu", "relu6",
    "rrelu", "selu", "sigmoid", "silu", "softplus", "softshrink", "softsign", "tanh",
    "tanhshrink", "threshold",
})
# fmt: on

# what normalises inside a layer that also activates
NORMALISING = frozenset({"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"})

SIGNATURE = 64  # values by which an output is known again after it was copied

# these may add a residual and activate by themselves
_FUSING = (Normalizer, FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d)


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
        """Take a layer's input, and its scaled and shifted output before any activation."""

    def activated(self, call: Call, activation: str, after: Tensor) -> None:
        """Take what the activation of it gave; comes after `normed` of the same call, or never."""


# a call that is about to run, the activation that made its input, and what that was given
Preceded = Callable[[Call, str, Tensor | None], None]


@contextmanager
def observe(
    model: nn.Module, norms: list[Norm], watcher: Watcher, *, preceded: Preceded | None = None
) -> Iterator[None]:
    """Tell `watcher` of every call of `norms` (those not skipped) while the model runs inside.

        with preserved(model), observe(model, find_norms(model), watcher):
            model(x)

    An activation belongs to a layer's call if its input *is* that call's output: the same tensor
    object, not written to since. Functions, methods, modules and in-place forms are all seen; the
    first one counts. Where the output was copied on its way (cloned, made contiguous, detached),
    execution order decides: the next activation whose input has the same shape and the same
    values at SIGNATURE places. A residual sum or a reshape between the two breaks the pair.

    An activation module of somebody's own (x * sigmoid(x), say) is one activation, its output the
    module's. Code under torch.compile runs as it was written while it is observed.

    With `preceded`, a call whose input is an activation's output (conv, ReLU, norm) is told before
    it runs. The first forward shows which activations those are, without what they were given;
    from the second on that is kept until the layer runs, and of no other activation.
    """
    names = {norm.module: norm.name for norm in norms if norm.skipped is None}
    observer = _Observer(names, watcher, preceded)
    with ExitStack() as undo:
        hook = bare(model).register_forward_pre_hook(lambda module, args: observer.start(module))
        undo.callback(hook.remove)
        for module in names:
            before = module.register_forward_pre_hook(observer.enter, with_kwargs=True)
            undo.callback(before.remove)
            after = module.register_forward_hook(observer.leave, with_kwargs=True)
            undo.callback(after.remove)
        for module in model.modules():
            if module not in names and _activates(module):
                before = module.register_forward_pre_hook(observer.enter_activation)
                undo.callback(before.remove)
                after = module.register_forward_hook(observer.leave_activation)
                undo.callback(after.remove)
        undo.enter_context(uncompiled())
        undo.enter_context(observer)
        yield


def _activates(module: nn.Module) -> bool:
    """Return whether it is called an activation, and holds no layer that may be another."""
    name = type(module).__name__.lower()
    named = any(word.replace("_", "") in name for word in (*ACTIVATIONS, "swish"))
    return named and not list(module.children())


@dataclass
class _Activation:
    """An activation module's forward that has begun: whose output it takes, and by what name."""

    module: nn.Module
    call: Call | None
    name: str
    given: "_Given | None" = None
    function: str | None = None  # the last activation function in it
    result: "_Mark | None" = None  # and what that returned


@dataclass
class _Given:
    """What an activation was given that no norm layer put out, and its number in the forward."""

    number: int
    values: Tensor | None
    name: str = ""
    result: "_Mark | None" = None


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
        """Return whether `value` is the same tensor object, and was not written to since."""
        tensor = self._tensor()
        return tensor is not None and tensor is value and _version(tensor) == self._version


class _Observer(TorchFunctionMode):
    """Pairs the calls of norm layers with the activations that follow, by tensor identity."""

    def __init__(
        self, names: Mapping[nn.Module, str], watcher: Watcher, preceded: Preceded | None
    ) -> None:
        super().__init__()
        self._names = names
        self._watcher = watcher
        self._preceded = preceded
        self._forwards = 0
        self._number = 0  # of the next activation of what no norm layer put out
        self._feeding: set[int] = set()  # those of them whose output a norm layer took
        self._given: _Given | None = None  # the last of them
        self._calls: Counter[nn.Module] = Counter()
        self._running: list[_Frame] = []
        self._activating: list[_Activation] = []
        self._last: tuple[tuple[int, ...], Tensor, int] | None = None  # shape, values, id
        self._waiting: dict[int, tuple[_Mark, Call]] = {}  # outputs, by id, without activation yet

    def start(self, model: nn.Module) -> None:
        """Begin a forward of the model, unless the model calls itself."""
        if not self._is_running(model):
            self._calls.clear()
            self._running.clear()
            self._activating.clear()
            self._last = None
            self._waiting.clear()
            self._forwards += 1
            self._number, self._given = 0, None

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a norm layer's forward."""
        before = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        ids = None
        if isinstance(module, CONDITIONAL):
            ids = kwargs.get("condition", args[1] if len(args) > 1 else None)
            ids = current_condition() if ids is None else ids
        mask = kwargs.get("mask", args[2] if len(args) > 2 else None)
        masked = isinstance(module, RunningStatistics) and mask is not None
        call = Call(self._names[module], self._calls[module], module, ids, masked)
        again = self._is_running(module)  # a layer that calls itself is told of once, from outside
        self._calls[module] += not again
        given, self._given = self._given, None
        if self._preceded and given and given.result and given.result.stands_for(before):
            self._feeding.add(given.number)
            self._preceded(call, given.name, given.values)
        self._running.append(_Frame(call, before, told=again))

    def leave(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], after: Tensor
    ) -> None:
        """End a norm layer's forward; drop one that raised inside a model that went on."""
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

    def enter_activation(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Begin an activation module; functions inside it are a part of it."""
        call = self._claim(args[0]) if args else None
        frame = _Activation(module, call, type(module).__name__.lower())
        if call is None and args:
            frame.given = self._keep(args[0])
        self._activating.append(frame)

    def leave_activation(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """End an activation module; its output is what the layer's output became."""
        while (frame := self._activating.pop()).module is not module:
            pass
        if frame.call is None or not isinstance(output, Tensor):
            self._kept(frame.given, frame.name, output)
            return
        with torch._C.DisableTorchFunction():
            plain = frame.result is not None and frame.result.stands_for(output)
            name = frame.function if plain and frame.function else frame.name
            self._watcher.activated(frame.call, name, output)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        if name not in ACTIVATIONS:
            result = func(*args, **kwargs)
            if name in NORMALISING and self._running:
                self._running[-1].inner = _Mark(result)
            return result
        subject = args[0] if args else kwargs.get("input")
        if self._activating and self._activating[-1].call is not None:
            result = func(*args, **kwargs)
            self._activating[-1].function = name
            self._activating[-1].result = _Mark(result)
            return result
        call = self._claim(subject)
        given = self._keep(subject) if call is None and not self._activating else None
        result = func(*args, **kwargs)
        if call is not None:
            self._watcher.activated(call, name, result)
        self._kept(given, name, result)
        return result

    def _keep(self, subject: object) -> _Given | None:
        """Note what an activation is given, if a norm layer may take its output."""
        self._given = None
        if self._preceded is None or self._running or not isinstance(subject, Tensor):
            return None
        number, self._number = self._number, self._number + 1
        if self._forwards == 1:
            return _Given(number, None)
        if number not in self._feeding:
            return None
        with torch._C.DisableTorchFunction():  # an in-place form will overwrite it
            return _Given(number, subject.detach().clone())

    def _kept(self, given: _Given | None, name: str, result: object) -> None:
        """Take the output of the activation."""
        if given is not None and isinstance(result, Tensor):
            given.name, given.result = name, _Mark(result)
            self._given = given

    def _is_running(self, module: nn.Module) -> bool:
        return any(frame.call.module is module for frame in self._running)

    def _tell(self, call: Call, before: Tensor, after: Tensor) -> None:
        self._watcher.normed(call, before, after)
        self._waiting[id(after)] = (_Mark(after), call)
        self._last = (after.shape, _signature(after), id(after))

    def _claim(self, subject: object) -> Call | None:
        """Find the call that an activation of `subject` belongs to, inside or behind the layer."""
        frame = self._running[-1] if self._running else None
        if frame and not frame.told and frame.inner and frame.inner.stands_for(subject):
            # the layer activates its own output: take that now, an in-place form overwrites it
            with torch._C.DisableTorchFunction():
                self._tell(frame.call, frame.before, subject)
            frame.told = True
        return self._take(subject)

    def _take(self, subject: object) -> Call | None:
        """Find the call whose output `subject` is; it waits for an activation no longer."""
        place = id(subject)
        mark, call = self._waiting.get(place, (None, None))
        if (mark is None or not mark.stands_for(subject)) and self._is_copy(subject):
            assert self._last is not None, "there is something to be a copy of"
            place = self._last[2]
            _, call = self._waiting.get(place, (None, None))
        elif mark is None or not mark.stands_for(subject):
            return None
        self._waiting.pop(place, None)
        return call

    def _is_copy(self, subject: object) -> bool:
        """Return whether it holds the values that the last layer put out."""
        if self._last is None or not isinstance(subject, Tensor):
            return False
        shape, values, _ = self._last
        with torch._C.DisableTorchFunction():
            return subject.shape == shape and torch.equal(_signature(subject), values)


def _plain_output(layer: Any, before: Tensor) -> Tensor:
    """Compute what one of our layers makes of `before` without its residual and activation."""
    if getattr(layer, "own_weight", 0.0):
        alone = copy.copy(layer)
        alone.act = None
        return cast(Tensor, alone.forward(before))
    return batch_norm(
        before, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps
    )


def _signature(tensor: Tensor) -> Tensor:
    """Return SIGNATURE values at evenly spaced places, float32; independent of strides."""
    step = max(1, tensor.numel() // SIGNATURE)
    if tensor.is_contiguous():
        return tensor.detach().view(-1)[::step].float().clone()
    places = torch.arange(0, tensor.numel(), step, device=tensor.device)
    return tensor.detach()[torch.unravel_index(places, tensor.shape)].float()


def _version(tensor: Tensor) -> int:
    """Return how often the tensor was written to; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version
