"""The normalisation layers of a model or of a checkpoint alone, in one form."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from normscope import probe
from normscope.errors import ModelError
from normscope.layers.statistics import RunningStatistics
from normscope.probe.layers import tried_alone, without_norms
from normscope.records import Passport

HELD = ("running_mean", "running_var", "num_batches_tracked", "weight", "bias")
MOMENTUM, EPS = 0.1, 1e-5  # torch's defaults, assumed where a checkpoint does not say


@dataclass(frozen=True, eq=False)
class LayerState:
    """What is stored of one layer with running statistics; all on the CPU, in float64.

    Attributes:
        name: as in `model.named_modules()`.
        mean, var: (C,), or (K, C) where something is kept per condition.
        weight, bias: likewise; None where the layer has none.
        tracked: batches seen, the most over conditions; None where it is not counted.
        momentum: None for a cumulative average.
        eps: added to the variance.
        dtype: of the statistics.
        module: the layer; None from a checkpoint, where momentum and eps are torch's defaults.
        unseen: rows of a (K, C) layer that were never updated.
    """

    name: str
    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    tracked: int | None
    momentum: float | None
    eps: float
    dtype: torch.dtype
    module: nn.Module | None = None
    unseen: tuple[int, ...] = ()

    @property
    def fresh(self) -> bool:
        """Whether the statistics are those that every layer starts with."""
        return bool((self.mean == 0).all()) and bool((self.var == 1).all())

    @property
    def init_share(self) -> float:
        """(1 - momentum)^tracked, the share of the start that is left; NaN where it is unknown."""
        if self.momentum is None or self.tracked is None or not 0 <= self.momentum <= 1:
            return float("nan")
        return float((1 - self.momentum) ** self.tracked)

    def corrected(self) -> tuple[Tensor, Tensor] | None:
        """Return mean and variance without what is left of the start; None where it cannot be so.

            running = (1 - w) true + w start,   w = (1 - momentum)^tracked,   start = (0, 1)

        A variance below w refutes that the layer started so and always had this momentum.
        """
        w = self.init_share
        if not 0 < w < 1 or self.fresh or not bool((self.var >= w * (1 - 1e-6)).all()):
            return None
        return self.mean / (1 - w), ((self.var - w) / (1 - w)).clamp(min=0)


def of_model(model: nn.Module) -> list[LayerState]:
    """Find every layer with running statistics per channel, or per condition and channel."""
    found = []
    for norm in probe.find_norms(model):
        if norm.skipped is None:
            eps, momentum = probe.eps_of(norm.module), _momentum(norm.module)
            held = {name: getattr(norm.module, name, None) for name in HELD}
            found.append(
                _state(norm.name, held, momentum, EPS if eps is None else eps, norm.module)
            )
    return found


def _momentum(layer: nn.Module) -> float | None:
    """Return the weight of a new batch in a layer's running average; None: it is cumulative.

    In a layer of its owner's making the attribute may be the weight of the old average, as in
    Keras: what a batch of ones leaves of a mean of 0 tells.
    """
    given: float | None = getattr(layer, "momentum", MOMENTUM)
    if given is None or isinstance(layer, (_NormBase, RunningStatistics)):
        return given
    tried = tried_alone(layer, torch.ones(2), training=True)
    share = 0.0 if tried is None else float(tried[0].running_mean[0])
    return round(share, 9) if 0 < share <= 1 else given


def without_statistics(model: nn.Module) -> str:
    """Say in a sentence why a model has nothing for the doctor."""
    found = [n.module for n in probe.find_norms(model)]
    others = [type(module).__name__ for module in found]
    soft = [m for m in found if getattr(m, "running_mean", None) is not None]
    if soft:
        return (
            f"the model ({type(model).__name__}) keeps running statistics in "
            f"{type(soft[0]).__name__} alone, whose soft groups nothing here can measure again; "
            "give it some batches in train() with momentum=None after reset_running_stats()"
        )
    kinds = ", ".join(sorted(set(others)))
    has = f" (it normalises with {kinds}, which do the same in both modes)" if others else ""
    return (
        f"the model ({type(model).__name__}) has no layer with running statistics{has}: no norm "
        "layer makes train() and eval() differ; where they do, look at dropout, drop path and "
        f"calls of F.batch_norm in a forward{without_norms(model)}"
    )


def of_checkpoint(
    state: Mapping[str, Tensor],
    momentum: float = MOMENTUM,
    eps: float = EPS,
    passport: Passport | None = None,
) -> list[LayerState]:
    """Find a checkpoint's layers: prefixes with running_mean and running_var.

    Args:
        state: named tensors.
        momentum: of training, which a checkpoint does not say.
        eps: likewise.
        passport: says both for every norm that is in it.

    Raises:
        ModelError: there is none, or a pair does not fit.
    """
    found = []
    known = {} if passport is None else {norm.name: norm for norm in passport.norms}
    for key in state:
        prefix = key.removesuffix("running_mean")
        held = {name: state.get(prefix + name) for name in HELD}
        mean, var = held["running_mean"], held["running_var"]
        if key.rpartition(".")[2] != "running_mean" or mean is None or var is None:
            continue
        if var.shape != mean.shape or mean.dim() not in (1, 2):
            raise ModelError(
                f"{prefix}running_mean is {tuple(mean.shape)} and running_var "
                f"{tuple(var.shape)}; both must be (C,), or (K, C)"
            )
        name = prefix.removesuffix(".") or "BatchNorm"
        own = known.get(name)
        settings = (momentum, eps) if own is None else (own.momentum, own.eps)
        found.append(_state(name, held, *settings))
    if not found:
        raise ModelError(
            "the checkpoint holds no running_mean with a running_var; "
            "it is of a model without batch norm, or was saved without buffers"
        )
    return found


def _state(
    name: str,
    held: Mapping[str, Any],
    momentum: float | None,
    eps: float,
    module: nn.Module | None = None,
) -> LayerState:
    mean, var, tracked = (held[n] for n in HELD[:3])
    weight, bias = (_fitting(held[n], mean) for n in HELD[3:])
    return LayerState(
        name, _wide(mean), _wide(var), weight, bias, _count(tracked), momentum, eps, mean.dtype,
        module, _unseen(mean, var, tracked),
    )  # fmt: skip


def _unseen(mean: Tensor, var: Tensor, tracked: object) -> tuple[int, ...]:
    """Mark rows of statistics by group that hold their start, and whose counter is 0."""
    if mean.dim() != 2 or not isinstance(tracked, Tensor) or tracked.shape != mean.shape[:1]:
        return ()
    start = (mean == 0).all(1) & (var == 1).all(1) & (tracked == 0)
    return tuple(start.nonzero().flatten().tolist())


def _wide(value: Tensor) -> Tensor:
    return value.detach().cpu().double()


def _fitting(value: Any, mean: Tensor) -> Tensor | None:
    """Return a scale or shift that belongs to these statistics."""
    known = isinstance(value, Tensor) and value.dim() in (1, 2)
    return _wide(value) if known and value.shape[-1] == mean.shape[-1] else None


def _count(tracked: object) -> int | None:
    if not isinstance(tracked, Tensor) or not tracked.numel():
        return None
    most = int(tracked.max())
    return most if most >= 0 else None  # one below 0 has overflowed, and counts nothing
