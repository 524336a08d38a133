"""What one norm or linear layer held and computed in one run, small enough to keep."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from normscope.layers.statistics import RunningStatistics
from normscope.probe.compare import largest, largest_gap
from normscope.probe.observe import Call
from normscope.probe.operators import OperatorCall

VALUES = 2**14  # of a tensor are kept, evenly spaced, at least LEAST per channel
LEAST = 32
STATISTICS = ("running_mean", "running_var")
TENSORS = (*STATISTICS, "weight", "bias")
NAN = float("nan")

Kind = Literal["norm", "linear", "other"]


@dataclass(frozen=True, eq=False)
class Sketch:
    """Part of a tensor, channel by channel.

    Attributes:
        shape: of the whole tensor.
        dtype: likewise.
        values: (C, P) float64, evenly spaced.
        largest: the largest absolute value of these that is finite.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    values: Tensor
    largest: float

    @classmethod
    def of(cls, tensor: Tensor, axis: int) -> "Sketch":
        """Take the channels from `axis`."""
        shape, kind = tuple(tensor.shape), tensor.dtype
        tensor = _floating(tensor)
        rows = tensor.movedim(axis, 0) if tensor.dim() > 1 else tensor.unsqueeze(1)
        channels, count = len(rows), math.prod(rows.shape[1:])
        step = max(1, count // max(LEAST, VALUES // max(channels, 1)))
        step += step > 1 and step % 2 == 0  # an even step would stay in the same columns
        values = rows[_places(tuple(rows.shape[1:]), step)] if step > 1 else rows.flatten(1)
        values = values.to("cpu", torch.float64, copy=True)
        return cls(shape, kind, values, largest(values))


@lru_cache(512)  # a network has fewer shapes
def _places(shape: tuple[int, ...], step: int) -> tuple[Any, ...]:
    """Return the indices of every `step`-th place in every channel."""
    places = torch.unravel_index(torch.arange(0, math.prod(shape), step), shape)
    return slice(None), *places


def _floating(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _batch_statistics(tensor: Tensor, axis: int) -> dict[str, Tensor]:
    """Return what normalising by this very batch makes of running_mean and running_var."""
    tensor = _floating(tensor)
    axes = [d for d in range(tensor.dim()) if d != axis % tensor.dim()]
    mean = tensor.mean(axes, keepdim=True)
    var = (tensor - mean).square_().mean(axes)  # many times as fast as torch.var_mean
    return {"running_mean": mean.flatten().cpu().double(), "running_var": var.cpu().double()}


@dataclass(eq=False)
class Site:
    """One call of one norm or linear layer, in any form of a network.

    Attributes:
        name: of the module, "#2" behind it at its second call; "" where a program names none.
        label: the name, else the operator and its number.
        kind: "norm" for what normalises with statistics; "other" for what stands in its place.
        order: of execution.
        layer: class or operator.
        before, after: its input and its scaled and shifted output.
        activated: that output behind the activation inside the layer, where there is one.
        tensors: (C,) float64 as it held them before the run; those that there are.
        dtypes: of those.
        settings: eps, momentum, training; those that are known.
        axis: of the channels in its output.
        batch: running_mean and running_var as the input of a norm would make them, (C,) float64.
    """

    name: str
    label: str
    kind: str
    order: int
    layer: str
    before: Sketch
    after: Sketch
    activated: Sketch | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    axis: int = 1
    batch: dict[str, Tensor] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """How many the output has."""
        return len(self.after.values)

    @property
    def eps(self) -> float:
        """NaN where it is unknown."""
        return float(self.settings.get("eps", NAN))

    def rounding(self, key: str) -> float:
        """One rounding error of the dtype of a tensor; 0 where it holds whole numbers."""
        kind = self.dtypes[key]
        return torch.finfo(kind).eps if kind.is_floating_point else 0.0


@dataclass(eq=False)
class Run:
    """One run of one form in one mode.

    Attributes:
        outputs: every floating point tensor, on the CPU.
        sites: in the order of execution.
        statistics: running statistics behind the run, by name; of a run in train() only.
        quantised: whether it computed in quantised arithmetic.
        watched: outputs of the run whose sites these are, where `outputs` are of compiled code.
    """

    outputs: list[Tensor]
    sites: list[Site]
    statistics: dict[str, Tensor] = field(default_factory=dict)
    quantised: bool = False
    watched: list[Tensor] | None = None

    def of(self, kind: Kind) -> list[Site]:
        """Return the sites of one kind."""
        return [site for site in self.sites if site.kind == kind]

    @property
    def rounding(self) -> float:
        """One rounding error of the coarsest dtype that the run computed in."""
        kinds = {s.after.dtype for s in self.sites} | {y.dtype for y in self.outputs}
        return max(torch.finfo(kind).eps for kind in kinds if kind.is_floating_point)


class Collector:
    """Makes the sites of a run from the calls of its layers and operators."""

    def __init__(self, *, values_only: bool = False) -> None:
        """With `values_only` a site has neither tensors nor the statistics of its batch."""
        self._values_only = values_only
        self.sites: list[Site] = []
        self._inner: OperatorCall | None = None  # the batch norm inside the layer that runs
        self._calls: Counter[tuple[str, str]] = Counter()
        self._product: OperatorCall | None = None
        self._last: tuple[Any, Tensor, Sketch] | None = None

    def normed(self, call: Call, before: Tensor, after: Tensor) -> None:
        """Add the site of a norm layer, with what the operator inside it really used."""
        inner, self._inner = self._inner, None
        layer = call.module
        settings: dict[str, Any] = {"eps": getattr(layer, "eps", NAN)}
        if isinstance(layer, RunningStatistics):  # whose kernels are operators of their own
            settings["training"] = layer.training
        held: Mapping[str, Any] = {**layer._parameters, **layer._buffers}
        if inner is not None and inner.after.shape == after.shape:
            settings, held = dict(inner.settings), inner.tensors
        if (momentum := getattr(layer, "momentum", None)) is not None:
            settings["momentum"] = momentum
        kind = type(layer).__name__
        with torch._C._DisableTorchDispatch():  # the collector's own operators are not watched
            self.add(OperatorCall("norm", call.name, kind, 1, before, after, held, settings))

    def activated(self, call: Call, activation: str, after: Tensor) -> None:
        """Keep what the activation behind a norm gave, where it is part of the layer."""
        own = getattr(call.module, "fused_act", None) is not None or any(call.module.children())
        for site in reversed(self.sites) if own else ():
            if site.name == call.name:
                with torch._C._DisableTorchDispatch():
                    site.activated = Sketch.of(after, 1)
                return

    def inside(self, call: OperatorCall) -> None:
        """Add an operator of a module whose norms are told to `normed`."""
        if call.kind == "norm":
            self._inner = call
        else:
            self.operator(call)

    def operator(self, call: OperatorCall) -> None:
        """Add an operator of a program; a sum behind a product is what a norm became."""
        product = self._product_of(call)
        if product is not None:
            held, x = {**product.tensors, **call.tensors}, product.before
            call = replace(call, kind="other", operator="mul, add", axis=1, before=x, tensors=held)
        if call.kind in ("norm", "linear", "other"):
            name, operator = self._numbered(call), call.operator.removeprefix("aten::")
            self.add(replace(call, name=name, operator=operator))

    def _product_of(self, call: OperatorCall) -> OperatorCall | None:
        """Return the product per channel that a sum per channel is taken of."""
        product, self._product = self._product, call if call.kind == "scale" else None
        if call.kind != "shift" or product is None or product.name != call.name:
            return None
        return product if product.after is call.before else None

    def add(self, call: OperatorCall) -> None:
        """Add a site, with copies of its tensors."""
        kind, layer, axis = call.kind, call.operator, call.axis
        held = {} if self._values_only else call.tensors
        known = kind == "norm" and call.before.numel() and not self._values_only
        found = {k: t.detach() for k in TENSORS if isinstance(t := held.get(k), Tensor)}
        self.sites.append(
            Site(
                name=call.name,
                label=call.name or f"{layer} {sum(s.kind == kind for s in self.sites) + 1}",
                kind=kind,
                order=len(self.sites),
                layer=layer,
                before=self._sketch(call.before, axis),
                after=self._sketch(call.after, axis),
                tensors={k: t.to("cpu", torch.float64, copy=True) for k, t in found.items()},
                dtypes={k: t.dtype for k, t in found.items()},
                settings=call.settings,
                axis=axis,
                batch=_batch_statistics(call.before, axis) if known else {},
            )
        )

    def _sketch(self, tensor: Tensor, axis: int) -> Sketch:
        """Look at a tensor once where one layer puts out what the next one takes."""
        version = 0 if tensor.is_inference() else tensor._version
        state = tensor.data_ptr(), version, tensor.shape, tensor.stride(), axis % tensor.dim()
        if self._last is None or self._last[0] != state:
            # the tensor is kept, so that no other one gets its place in memory
            self._last = state, tensor, Sketch.of(tensor, axis)
        return self._last[2]

    def _numbered(self, call: OperatorCall) -> str:
        """Return the name of a call, with a number from the second of its kind on."""
        key = call.kind, call.name
        self._calls[key] += 1
        count = self._calls[key]
        return call.name if count == 1 or not call.name else f"{call.name}#{count}"


def gap(a: Sketch, b: Sketch) -> float:
    """Measure the largest difference, over the largest value of the first; NaN equals NaN."""
    if a.values.shape != b.values.shape or a.shape[0] != b.shape[0]:
        return float("inf")
    return largest_gap(a.values, b.values, max(a.largest, 1e-30))
