"""Conditional batch norm: statistics and affine map chosen by a condition that is known."""

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn

from normscope.arguments import check_settings, check_tensors, checked_mask, listed
from normscope.errors import InputError
from normscope.functional import batch_norm
from normscope.kernels.autograd import is_transformed
from normscope.layers.batch import Ranks, check_rank, resolved
from normscope.layers.mixture import mixed, own_moments
from normscope.layers.statistics import (
    AS_TORCH,
    RunningStatistics,
    mean_of_groups,
    pooled,
    reset_statistics,
)
from normscope.layers.tracing import is_traced, one_step
from normscope.moments import Moments

Missing = Literal["error", "pooled", "infer"] | int


class _Current(threading.local):  # torch.compile can read it, which it cannot a ContextVar
    ids: Tensor | None = None


_current = _Current()
# layers that need no further search for unseen conditions; outside them, so that they stay as saved
_searched: WeakSet[nn.Module] = WeakSet()


@contextmanager
def condition(ids: Tensor) -> Iterator[None]:
    """Set the condition of every conditional layer in a model, at any depth.

        with normscope.condition(domain):
            logits = model(x)

    Args:
        ids: (N,) integers, one per sample. A condition given to a layer's forward wins.

    Nested uses shadow one another; each thread sees its own.

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), normscope.ConditionalBatchNorm1d(3, 2))
    >>> with normscope.condition(torch.tensor([0, 0, 1, 1])):
    ...     net(torch.randn(4, 4)).shape
    torch.Size([4, 3])
    """
    outer, _current.ids = _current.ids, ids
    try:
        yield
    finally:
        _current.ids = outer


def current_condition() -> Tensor | None:
    """Return the condition of the innermost `with condition(ids)` around this call, or None."""
    return _current.ids


class _ConditionalBatchNorm(RunningStatistics):
    ranks: ClassVar[tuple[int, ...]]
    weight: Tensor | None
    bias: Tensor | None
    filled_up: Tensor
    temperature: Tensor

    def __init__(
        self,
        num_features: int,
        num_conditions: int,
        *,
        stats: Literal["condition", "shared"] = "condition",
        affine: Literal["condition", "shared", "none"] = "condition",
        missing: Missing = "error",
        min_count: int = 2,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
        process_group: Ranks = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _one_of("stats", stats, ("condition", "shared"))
        _one_of("affine", affine, ("condition", "shared", "none"))
        if isinstance(missing, str):
            _one_of("missing", missing, ("error", "pooled", "infer"))
        elif not 0 <= missing < num_conditions:
            raise InputError(f"missing is {missing}; a condition is 0..{num_conditions - 1}")
        if num_conditions < 1:
            raise InputError(f"num_conditions is {num_conditions}; at least 1 is needed")
        if missing == "infer" and (stats, track_running_stats) != ("condition", True):
            raise InputError(
                'missing="infer" judges by each condition\'s running statistics; it needs '
                'stats="condition" and track_running_stats=True'
            )
        check_settings(eps, momentum)
        self.num_features = num_features
        self.num_conditions = num_conditions
        self.stats = stats
        self.affine = affine
        self.missing = missing
        self.min_count = min_count
        self.process_group = process_group
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
        small = torch.zeros(num_conditions, dtype=torch.long, device=device)
        self.register_buffer("filled_up", small, persistent=False)
        if missing == "infer":
            self.register_buffer("temperature", torch.ones((), device=device))
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Set mean 0, variance 1, nothing tracked."""
        _searched.discard(self)
        reset_statistics(self)

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, fresh running statistics, nothing filled up, temperature 1."""
        self.reset_running_stats()
        self.filled_up.zero_()
        if self.missing == "infer":
            self.temperature.fill_(1)
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(
        self, input: Tensor, condition: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Normalise each sample with the statistics and affine map of its condition.

        Args:
            input: (N, C, *S).
            condition: (N,) integers; None takes the one given by `normscope.condition`.
            mask: (N,), (N, *S) or (N, 1, *S) bool, True where a value counts.
        """
        if is_traced(input):
            return one_step(self, input, condition, mask)
        check_rank(input, self.ranks)
        if condition is None:
            condition = _current.ids
        if condition is None:
            return self._without_condition(input, mask)
        # the operator's own update is quickest; counts then come from the conditions alone
        ranks = resolved(self.process_group) if self.training else None
        alone = mask is None and ranks is None and self.stats == "condition"
        plain = alone and self.policy == AS_TORCH and not is_transformed()
        y = batch_norm(
            input,
            *self.stored(),
            self.weight,
            self.bias,
            training=self.normalizes_by_batch(),
            momentum=self.momentum,
            eps=self.eps,
            num_batches_tracked=self.num_batches_tracked,
            groups=condition if "condition" in (self.stats, self.affine) else None,
            num_groups=self.num_conditions if self.stats == "condition" else 1,
            mask=mask,
            process_group=ranks,
            min_count=self.min_count,
            on_moments=None if plain else self.observe,
        )
        each = input.numel() // max(1, input.shape[0] * input.shape[1])  # values of a sample
        if plain and self.training and each < self.min_count and not input.is_meta:
            samples = torch.bincount(condition, minlength=self.num_conditions)
            self._count_small(samples * each)
        if self.training and self.missing == "infer":
            self._calibrate(input, condition, mask)
        if not (self.training or is_transformed() or self in _searched):
            self._warn_of_unseen(condition)
        return y

    def _warn_of_unseen(self, condition: Tensor) -> None:
        """Warn once of conditions whose statistics no batch has updated, where others were updated.

        A layer that saw no batch at all is a new one, of which torch's layers say nothing either.
        """
        tracked = self.num_batches_tracked
        if tracked is None or not tracked.dim() or not tracked.any():
            return
        every = bool(tracked.all())
        unseen = [] if every else condition[tracked[condition] == 0].unique().tolist()
        if every or unseen:
            _searched.add(self)
        if unseen:
            warnings.warn(
                f"{type(self).__name__}: no batch of condition {', '.join(map(str, unseen[:9]))} "
                "has updated the running statistics, which are still mean 0 and variance 1; train "
                "on it, recalibrate with it, or leave the condition out with missing='pooled'",
                stacklevel=3,
            )

    def posterior(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return p(condition | sample) under the running statistics, (N, K) float64.

            log p_nk = -1/2 sum_c [log var_kc + mean_s (x_ncs - mean_kc)^2 / var_kc] / T + const

        Channels are taken as independent Gaussians, which makes the likelihood too sure of
        itself; the temperature T, fitted in training on the known conditions, takes that back
        (missing="infer"; otherwise T is 1). All conditions are equally likely beforehand.
        """
        mask = None if mask is None else checked_mask(mask, input)
        return (self._log_likelihood(own_moments(input, mask)) / self._heat()).softmax(1)

    def observe(self, batch: Moments) -> None:
        """Update statistics as every layer; count the conditions that had too few values."""
        if self.training and batch.count.shape == self.filled_up.shape:
            self._count_small(batch.count)
        super().observe(batch)

    def _count_small(self, count: Tensor) -> None:
        small = (count > 0) & (count < self.min_count)
        self.filled_up.add_(small.to(self.filled_up.dtype))

    def pooled(self) -> dict[str, Tensor]:
        """Return the five keys of a plain batch norm with the statistics of all conditions pooled.

        Statistics by the law of total variance, each condition weighted by the batches it was
        seen in (equally where none was); weight and bias are plain means over conditions.
        """
        return pooled(self)

    def extra_repr(self) -> str:
        """Show the arguments that differ between layers."""
        return (
            f"{self.num_features}, {self.num_conditions}, stats={self.stats!r}, "
            f"affine={self.affine!r}, eps={self.eps}, momentum={self.momentum}, "
            f"track_running_stats={self.track_running_stats}, missing={self.missing!r}"
        )

    def _without_condition(self, input: Tensor, mask: Tensor | None) -> Tensor:
        if self.training or self.missing == "error":
            raise InputError(
                "no condition: call the layer with one, or the model inside "
                "`with normscope.condition(ids)`; "
                'missing="pooled", "infer" or a condition\'s number does without in eval()'
            )
        if isinstance(self.missing, int):
            same = torch.full((input.shape[0],), self.missing, device=input.device)
            return self(input, same, mask)  # type: ignore[no-any-return]
        if self.missing == "infer":
            return self._inferred(input, mask)
        pooled = self.pooled()
        return batch_norm(
            input,
            pooled.get("running_mean"),
            pooled.get("running_var"),
            None if self.weight is None else mean_of_groups(self.weight),  # these have gradients
            None if self.bias is None else mean_of_groups(self.bias),
            training="running_mean" not in pooled,
            eps=self.eps,
            mask=mask,
        )

    def _inferred(self, input: Tensor, mask: Tensor | None) -> Tensor:
        assert self.running_mean is not None, "infer tracks"
        assert self.running_var is not None, "infer tracks"
        check_tensors(input, self.num_conditions, self.running_mean, None, self.weight, None)
        mask = None if mask is None else checked_mask(mask, input)
        own = own_moments(input, mask)
        share = (self._log_likelihood(own) / self._heat()).softmax(1)
        rstd = torch.rsqrt(self.running_var.double().clamp(min=0) + self.eps)
        one, zero = torch.ones_like(rstd), torch.zeros_like(rstd)
        weight = one if self.weight is None else self.weight.expand_as(one)
        bias = zero if self.bias is None else self.bias.expand_as(zero)
        return mixed(input, own, share, self.running_mean.double(), rstd, weight, bias, mask)

    def _log_likelihood(self, own: Moments) -> Tensor:
        """Return (N, K) up to a constant: of each sample's mean position, channels independent."""
        assert self.running_mean is not None, "infer tracks"
        assert self.running_var is not None, "infer tracks"
        precision = 1 / (self.running_var.double().clamp(min=0) + self.eps)  # (K, C)
        center = self.running_mean.double().mean(0)
        off, mean = own.mean - center, self.running_mean.double() - center
        spread = own.m2 / own.count.clamp(min=1).unsqueeze(1) + off * off
        distance = (
            spread @ precision.T - 2 * off @ (mean * precision).T + (mean * mean * precision).sum(1)
        )
        return -0.5 * (distance - precision.log().sum(1))

    def _heat(self) -> Tensor | float:
        return self.temperature if self.missing == "infer" else 1.0

    @torch.no_grad()
    def _calibrate(self, input: Tensor, condition: Tensor, mask: Tensor | None) -> None:
        """Take a damped Newton step on log(1/T), down the posterior's loss on known conditions."""
        mask = None if mask is None else checked_mask(mask, input)
        scores = self._log_likelihood(own_moments(input, mask))
        scores = (scores - scores.amax(1, keepdim=True)) / self.temperature
        probability = scores.softmax(1)
        expected = (probability * scores).sum(1)
        truth = condition.to(scores.device, torch.int64).unsqueeze(1)
        slope = (expected - scores.gather(1, truth).squeeze(1)).mean()
        curve = ((probability * scores * scores).sum(1) - expected**2 + slope.abs()).mean()
        step = (slope / curve.clamp(min=1e-6)).clamp(-1, 1)
        moved = self.temperature * torch.exp(0.1 * step)
        self.temperature.copy_(torch.where(moved.isfinite(), moved.clamp(1e-2, 1e6), 1.0))

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        _searched.discard(self)
        # a plain batch-norm checkpoint serves every condition: one row becomes K equal rows
        state = dict(state_dict)
        for name, own in {**self._parameters, **self._buffers}.items():
            given = state.get(prefix + name)
            if own is not None and given is not None and given.shape == own.shape[1:]:
                state[prefix + name] = given.expand(own.shape).clone()  # load may assign it
        if self.num_batches_tracked is not None:  # not in checkpoints of torch before 0.4.1
            state.setdefault(prefix + "num_batches_tracked", self.num_batches_tracked)
        if self.missing == "infer":  # no other checkpoint knows it
            state.setdefault(prefix + "temperature", self.temperature)
        super()._load_from_state_dict(state, prefix, *args, **kwargs)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}; it can be {listed(allowed)}")


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
        missing: what a call without a condition does in eval(): "error"; "pooled" for the
            statistics of all conditions by the law of total variance and the mean affine map;
            "infer" for the mixture of all conditions by their posterior under the running
            statistics, see `posterior`; or the number of a condition, such as the clean one of
            clean and adversarial.
        min_count: a condition with fewer values per channel in a batch is filled up to so many
            with pseudo-values that have its running mean and variance. `filled_up` (K,) counts.
        process_group: as `BatchNorm1d`.
        eps, momentum, track_running_stats, device, dtype: as `torch.nn.BatchNorm`.

    State: the five keys of `torch.nn.BatchNorm`, with a leading axis K where something is kept
    per condition (the counter too). A plain checkpoint loads by broadcasting.

    A condition absent from a batch keeps its statistics and counter and gets zero gradients; one
    with a single value per channel keeps its statistics. The biased variance normalises, the
    unbiased one is stored.

    Raises:
        ValueError: wrong rank, a condition outside 0..K-1, not one per sample, or none given.
        TypeError: conditions that are not integers.

    Source: de Vries et al. 2017, "Modulating early visual processing by language" (affine);
    Chang et al. 2019, "Domain-specific batch normalization" (statistics).

    >>> import torch
    >>> import normscope
    >>> layer = normscope.ConditionalBatchNorm1d(3, num_conditions=2)
    >>> layer(torch.randn(8, 3), torch.arange(8) % 2).shape
    torch.Size([8, 3])
    """

    ranks = (2, 3)


class ConditionalBatchNorm2d(_ConditionalBatchNorm):
    """Conditional batch norm over (N, C, H, W); see `ConditionalBatchNorm1d`.

    >>> layer = normscope.ConditionalBatchNorm2d(3, num_conditions=2)
    >>> layer(torch.randn(8, 3, 5, 5), torch.arange(8) % 2).shape
    torch.Size([8, 3, 5, 5])
    """

    ranks = (4,)


class ConditionalBatchNorm3d(_ConditionalBatchNorm):
    """Conditional batch norm over (N, C, D, H, W); see `ConditionalBatchNorm1d`.

    >>> layer = normscope.ConditionalBatchNorm3d(3, num_conditions=2)
    >>> layer(torch.randn(8, 3, 2, 5, 5), torch.arange(8) % 2).shape
    torch.Size([8, 3, 2, 5, 5])
    """

    ranks = (5,)
