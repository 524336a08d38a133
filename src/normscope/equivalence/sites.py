"""What one layer of a network held and computed in one run, small enough to keep."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

VALUES = 2**16  # of a tensor are kept, evenly spaced, at least LEAST per channel
LEAST = 32
TENSORS = ("running_mean", "running_var", "weight", "bias")

Kind = Literal["norm", "linear", "other"]


@dataclass(frozen=True, eq=False)
class Sketch:
    """Part of a tensor, channel by channel, and the moments of all of it.

    Attributes:
        shape: of the whole tensor.
        dtype: likewise.
        values: (C, P) float64, evenly spaced.
        mean, var: (C,) float64, of all values; the variance is biased.
        largest: the largest absolute value that is finite.
        count: values per channel.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    values: Tensor
    mean: Tensor
    var: Tensor
    largest: float
    count: int

    @classmethod
    def of(cls, tensor: Tensor, axis: int) -> "Sketch":
        """Take the channels from `axis`."""
        tensor = tensor.detach()
        rows = tensor.movedim(axis, 0).flatten(1) if tensor.dim() > 1 else tensor.unsqueeze(1)
        rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        if not rows.is_floating_point():
            rows = rows.float()
        channels, count = rows.shape
        step = max(1, count // max(LEAST, VALUES // max(channels, 1)))
        step += step > 1 and step % 2 == 0  # an even step would stay in the same columns
        nothing = torch.zeros(channels, dtype=torch.float64)
        var, mean = (nothing, nothing)
        if count:
            var, mean = torch.var_mean(rows, 1, correction=0)
        finite = rows if bool(rows.isfinite().all()) else rows.nan_to_num(0, 0, 0)
        return cls(
            tuple(tensor.shape),
            tensor.dtype,
            rows[:, ::step].cpu().double(),
            mean.cpu().double(),
            var.cpu().double(),
            float(finite.abs().max()) if rows.numel() else 0.0,
            count,
        )


@dataclass(eq=False)
class Site:
    """One call of one layer.

    Attributes:
        name: of the module, "#2" behind it at its second call; "" where a program names none.
        label: what to call it: the name, else the operator and its number.
        kind: "norm" for what normalises with statistics; "other" for what stands in its place.
        order: of execution.
        layer: class or operator.
        before, after: its input and its scaled and shifted output.
        activated: that output behind the activation inside the layer, where there is one.
        tensors: (C,) float64 as it held them before the run; those that there are.
        dtypes: of those.
        settings: eps, momentum, training; those that are known.
    """

    name: str
    label: str
    kind: Kind
    order: int
    layer: str
    before: Sketch
    after: Sketch
    activated: Sketch | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """How many the output has."""
        return len(self.after.values)

    @property
    def eps(self) -> float:
        """NaN where it is unknown."""
        return float(self.settings.get("eps", float("nan")))


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
        """Those of one kind."""
        return [site for site in self.sites if site.kind == kind]


def gap(a: Sketch, b: Sketch) -> float:
    """Largest difference, over the largest value of the first; NaN equals NaN."""
    if a.values.shape != b.values.shape or a.shape[0] != b.shape[0]:
        return float("inf")
    return largest_gap(a.values, b.values, max(a.largest, 1e-30))


def largest_gap(a: Tensor, b: Tensor, size: float | None = None) -> float:
    """Largest absolute difference over `size`, the largest finite value of `a` where none is given.

    NaN equals NaN; a value beside a NaN is infinitely far.
    """
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    a, b = a.double(), b.double()
    alike = (a == b) | (a.isnan() & b.isnan())
    off = float(torch.where(alike, 0.0, (a - b).abs()).max())
    if off != off:
        return float("inf")
    if size is None:
        size = max(float(a.nan_to_num(0, 0, 0).abs().max()), 1e-30)
    return off / size


def numbers(tensors: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, torch.dtype]]:
    """Copies of what a norm holds, in float64, and their dtypes."""
    held = {k: tensors[k] for k in TENSORS if isinstance(tensors.get(k), Tensor)}
    wide = {k: t.detach().cpu().double().clone() for k, t in held.items()}
    return wide, {k: t.dtype for k, t in held.items()}
