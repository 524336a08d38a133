"""The normalisation layers of a model or of a checkpoint alone, in one form."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normscope import probe
from normscope.errors import ModelError
from normscope.probe.layers import without_norms
from normscope.probe.run import tensors_of
from normscope.records import Passport

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
        if norm.skipped is not None:
            continue
        layer = norm.module
        mean, var = tensors_of(layer)
        tracked = getattr(layer, "num_batches_tracked", None)
        eps = probe.eps_of(layer)
        found.append(
            LayerState(
                name=norm.name,
                mean=_wide(mean),
                var=_wide(var),
                weight=_wide(getattr(layer, "weight", None)),
                bias=_wide(getattr(layer, "bias", None)),
                tracked=_count(tracked),
                momentum=getattr(layer, "momentum", MOMENTUM),
                eps=EPS if eps is None else eps,
                dtype=mean.dtype,
                module=layer,
                unseen=_unseen(mean, var, tracked),
            )
        )
    return found


def without_statistics(model: nn.Module) -> str:
    """Say in a sentence why a model has nothing for the doctor."""
    others = [type(n.module).__name__ for n in probe.find_norms(model)]
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
    for key, mean in state.items():
        if key.rpartition(".")[2] != "running_mean":
            continue
        prefix = key.removesuffix("running_mean")
        var = state.get(prefix + "running_var")
        if var is None:
            continue
        if var.shape != mean.shape or mean.dim() not in (1, 2):
            raise ModelError(
                f"{prefix}running_mean is {tuple(mean.shape)} and running_var "
                f"{tuple(var.shape)}; both must be (C,), or (K, C)"
            )
        name = prefix.removesuffix(".") or "BatchNorm"
        own = known.get(name)
        found.append(
            LayerState(
                name=name,
                mean=_wide(mean),
                var=_wide(var),
                weight=_fitting(state.get(prefix + "weight"), mean),
                bias=_fitting(state.get(prefix + "bias"), mean),
                tracked=_count(state.get(prefix + "num_batches_tracked")),
                momentum=momentum if own is None else own.momentum,
                eps=eps if own is None else own.eps,
                dtype=mean.dtype,
                unseen=_unseen(mean, var, state.get(prefix + "num_batches_tracked")),
            )
        )
    if not found:
        raise ModelError(
            "the checkpoint holds no running_mean with a running_var; "
            "it is of a model without batch norm, or was saved without buffers"
        )
    return found


def _unseen(mean: Tensor, var: Tensor, tracked: object) -> tuple[int, ...]:
    """Mark rows of statistics by group that hold their start, and whose counter is 0."""
    if mean.dim() != 2 or not isinstance(tracked, Tensor) or tracked.shape != mean.shape[:1]:
        return ()
    start = (mean == 0).all(1) & (var == 1).all(1) & (tracked == 0)
    return tuple(start.nonzero().flatten().tolist())


def _wide(value: Any) -> Any:
    return value.detach().cpu().double() if isinstance(value, Tensor) else None


def _fitting(value: Tensor | None, mean: Tensor) -> Tensor | None:
    """Return a scale or shift that belongs to these statistics."""
    fits = value is not None and value.dim() in (1, 2) and value.shape[-1] == mean.shape[-1]
    return _wide(value) if fits else None


def _count(tracked: object) -> int | None:
    return int(tracked.max()) if isinstance(tracked, Tensor) and tracked.numel() else None
