"""Conditional batch norm: statistics and affine map chosen by a condition that is known."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from normscope.errors import InputError
from normscope.functional import batch_norm
from normscope.layers.batch import check_rank
from normscope.moments import Moments


class _Current(threading.local):  # torch.compile can read it, which it cannot a ContextVar
    ids: Tensor | None = None


_current = _Current()


@contextmanager
def condition(ids: Tensor) -> Iterator[None]:
    """Hand the condition to every conditional layer inside a model, whatever its depth.

        with normscope.condition(domain):
            logits = model(x)

    Args:
        ids: (N,) integers, one per sample. A condition given to a layer's forward wins.

    Nested uses shadow one another; each thread sees its own.
    """
    outer, _current.ids = _current.ids, ids
    try:
        yield
    finally:
        _current.ids = outer


def current_condition() -> Tensor | None:
    """The condition of the innermost `with condition(ids)` around this call; None outside."""
    return _current.ids


class _ConditionalBatchNorm(nn.Module):
    ranks: ClassVar[tuple[int, ...]]
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        num_conditions: int,
        *,
        stats: Literal["condition", "shared"] = "condition",
        affine: Literal["condition", "shared", "none"] = "condition",
        missing: Literal["error", "pooled"] = "error",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _one_of("stats", stats, ("condition", "shared"))
        _one_of("affine", affine, ("condition", "shared", "none"))
        _one_of("missing", missing, ("error", "pooled"))
        if num_conditions < 1:
            raise InputError(f"num_conditions is {num_conditions}; at least 1 is needed")
        self.num_features = num_features
        self.num_conditions = num_conditions
        self.stats = stats
        self.affine = affine
        self.missing = missing
        self.eps = eps
        self.momentum = momentum
        self.track_running_stats = track_running_stats
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        one, each = (num_features,), (num_conditions, num_features)
        if affine == "none":
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        else:
            shape = each if affine == "condition" else one
            self.weight = nn.Parameter(torch.empty(shape, **place))
            self.bias = nn.Parameter(torch.empty(shape, **place))
        if track_running_stats:
            shape = each if stats == "condition" else one
            counter = torch.empty(shape[:-1], dtype=torch.long, device=device)
            self.register_buffer("running_mean", torch.empty(shape, **place))
            self.register_buffer("running_var", torch.empty(shape, **place))
            self.register_buffer("num_batches_tracked", counter)
        else:
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                self.register_buffer(name, None)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Mean 0, variance 1, nothing tracked."""
        if self.running_mean is not None:
            assert self.running_var is not None, "made together"
            assert self.num_batches_tracked is not None, "made together"
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, and fresh running statistics."""
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor, condition: Tensor | None = None) -> Tensor:
        """Normalise each sample with the statistics and affine map of its condition.

        Args:
            input: (N, C, *S).
            condition: (N,) integers; None takes the one given by `normscope.condition`.
        """
        check_rank(input, self.ranks)
        if condition is None:
            condition = _current.ids
        if condition is None:
            if self.missing == "pooled" and not self.training:
                return self._pooled_forward(input)
            raise InputError(
                "no condition: call the layer with one, or the model inside "
                '`with normscope.condition(ids)`; missing="pooled" does without in eval()'
            )
        per_condition = self.stats == "condition"
        use_buffers = self.track_running_stats or not self.training
        return batch_norm(
            input,
            self.running_mean if use_buffers else None,
            self.running_var if use_buffers else None,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
            num_batches_tracked=self.num_batches_tracked,
            groups=condition if "condition" in (self.stats, self.affine) else None,
            num_groups=self.num_conditions if per_condition else 1,
        )

    def pooled(self) -> dict[str, Tensor]:
        """The five keys of a plain batch norm that stands for all conditions at once.

        Statistics by the law of total variance, each condition weighted by the batches it was
        seen in (equally where none was); weight and bias are plain means over conditions.
        """
        state: dict[str, Tensor] = {}
        for name in ("weight", "bias"):
            table = getattr(self, name)
            if table is not None:
                state[name] = table.detach().mean(0) if table.dim() == 2 else table.detach()
        if self.running_mean is not None:
            assert self.running_var is not None, "made together"
            assert self.num_batches_tracked is not None, "made together"
            mean, var, seen = self.running_mean, self.running_var, self.num_batches_tracked
            if mean.dim() == 2:
                share = seen.double() if bool((seen > 0).any()) else torch.ones_like(seen).double()
                sets = Moments(share, mean.double(), var.double() * share.unsqueeze(1))
                total = sets.pool()
                mean, var = total.mean.to(mean.dtype), total.var(correction=0).to(var.dtype)
                seen = seen.sum()
            state |= {"running_mean": mean, "running_var": var, "num_batches_tracked": seen}
        return state

    def extra_repr(self) -> str:
        """The arguments that differ in meaning between layers."""
        return (
            f"{self.num_features}, {self.num_conditions}, stats={self.stats!r}, "
            f"affine={self.affine!r}, eps={self.eps}, momentum={self.momentum}, "
            f"track_running_stats={self.track_running_stats}, missing={self.missing!r}"
        )

    def _pooled_forward(self, input: Tensor) -> Tensor:
        pooled = self.pooled()
        return batch_norm(
            input,
            pooled.get("running_mean"),
            pooled.get("running_var"),
            pooled.get("weight"),
            pooled.get("bias"),
            training="running_mean" not in pooled,
            eps=self.eps,
        )

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # a plain batch-norm checkpoint serves every condition: one row becomes K equal rows
        state = dict(state_dict)
        for name, own in {**self._parameters, **self._buffers}.items():
            given = state.get(prefix + name)
            if own is not None and given is not None and given.shape == own.shape[1:]:
                state[prefix + name] = given.expand(own.shape)
        super()._load_from_state_dict(state, prefix, *args, **kwargs)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}; it can be {', '.join(map(repr, allowed))}")


class ConditionalBatchNorm1d(_ConditionalBatchNorm):
    """Batch norm over (N, C) or (N, C, L) whose statistics and affine map follow a condition.

        y = (x - mean_k) / sqrt(var_k + eps) * weight_k + bias_k,   k = the sample's condition

    For conditions that are known at inference: a domain, a style, a task, clean or adversarial.
    (Choosing k by the class needs the label, which is what a classifier does not have.) All
    conditions may be mixed in one batch; the cost does not grow with their number.

    Args:
        num_features: C.
        num_conditions: K.
        stats: "condition" for one mean and variance per condition, "shared" for one in all.
        affine: "condition" for one weight and bias per condition, "shared", or "none".
        missing: what a call without a condition does in eval(): "error", or "pooled" for the
            statistics of all conditions by the law of total variance and the mean affine map.
        eps, momentum, track_running_stats, device, dtype: as `torch.nn.BatchNorm`.

    State: the five keys of `torch.nn.BatchNorm`, with a leading axis K where something is kept
    per condition (the counter too). A plain checkpoint loads by broadcasting.

    A condition absent from a batch keeps its statistics and counter and gets zero gradients. One
    with a single value per channel is normalised by its running statistics. The biased variance
    normalises, the unbiased one is stored.

    Raises:
        ValueError: wrong rank, a condition outside 0..K-1, not one per sample, or none given.
        TypeError: conditions that are not integers.

    Source: de Vries et al. 2017, "Modulating early visual processing by language" (affine);
    Chang et al. 2019, "Domain-specific batch normalization" (statistics).
    """

    ranks = (2, 3)


class ConditionalBatchNorm2d(_ConditionalBatchNorm):
    """Conditional batch norm over (N, C, H, W); see `ConditionalBatchNorm1d`."""

    ranks = (4,)


class ConditionalBatchNorm3d(_ConditionalBatchNorm):
    """Conditional batch norm over (N, C, D, H, W); see `ConditionalBatchNorm1d`."""

    ranks = (5,)
