"""Batch norm over a ragged partition, as functions: arguments, gradients, running statistics."""

import math
from array import array
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from normscope.arguments import (
    Activation,
    check_batch_size,
    check_choices,
    check_impl,
    check_tensors,
    checked_groups,
    checked_mask,
    rows_needed,
)
from normscope.kernels import reference
from normscope.kernels.autograd import (
    FromBatch,
    FromRunning,
    Stored,
    is_transformed,
    standardise,
    statistics,
)
from normscope.kernels.dispatch import explanation, kernel_for
from normscope.kernels.problem import Affine, Epilogue, Problem, Statistics
from normscope.moments import Moments

FORMS = 4096  # how many forms of calls are remembered as checked
_CHECKED: dict[Any, Any] = {}  # form to kernel


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    num_batches_tracked: Tensor | None = None,
    groups: Tensor | None = None,
    num_groups: int = 1,
    mask: Tensor | None = None,
    act: Activation | None = None,
    residual: Tensor | None = None,
    process_group: dist.ProcessGroup | None = None,
    min_count: int = 2,
    on_moments: Callable[[Moments], None] | None = None,
    impl: str = "auto",
) -> Tensor:
    """Standardise each group per channel and map it back with weight (gamma) and bias (beta).

        y = act((x - mean_k) / sqrt(var_k + eps) * weight_k + bias_k + residual)

    k is the sample's group. In training mean and var are those of the group's values in this
    batch; otherwise the running ones. Biased variance normalises, unbiased variance is stored:
    running = (1 - momentum) * running + momentum * batch.

    Args:
        x: (N, C, *S), float16, bfloat16, float32 or float64.
        running_mean: (num_groups, C), or (C,) for all groups pooled; updated in place in
            training, once per call. None: not tracked.
        running_var: as running_mean.
        weight: (C,), or (K, C) for one scale per group. None: 1.
        bias: as weight. None: 0.
        training: normalise by the batch, and update the running statistics where given.
        momentum: share of the batch in the update. None: 1 / num_batches_tracked, which makes
            the running statistics the plain average over batches.
        eps: added to the variance.
        num_batches_tracked: int64, () or (num_groups,); counts the updates, in place.
        groups: (N,) integers, the group of each sample. None: all samples are one group.
        num_groups: how many groups have statistics of their own. 1 with `groups` given: one set
            of statistics for all, and groups choose only the rows of weight and bias.
        mask: (N,), (N, *S) or (N, 1, *S) bool, True where a value counts. What is masked enters
            no statistic, receives no gradient and leaves as zero, whatever it holds.
        act: "relu", "leaky_relu" or "silu" on the result.
        residual: shaped as x; added before act.
        process_group: ranks that share each group's statistics; every rank must make the call,
            one without samples too. None: this process alone.
        min_count: with `groups`, a group of fewer values per channel is filled up to so many with
            pseudo-values that have its running mean and variance, so a tiny group never fails.
        on_moments: receives the batch's Moments (detached) in place of the update of the running
            statistics; for those who decide themselves when and whether to update.
        impl: "auto": the kernel of x's device, see `why`. Or by name, and then never another one
            instead: "cpu" (Numba), "gpu" (Triton), "reference" (the definition in plain PyTorch).

    Returns:
        (N, C, *S) in x's dtype and memory format.

    An empty batch or group changes no statistic and gets zero gradients. A group of one value
    leaves its running statistics; without running statistics it comes out as bias. NaN stays in
    its channel and group.

    Differentiable to second order in eager mode and to any order, forward mode included, through
    `torch.func` and `torch.compile`.

    Raises:
        ValueError: one value per channel in training (as torch), eps <= 0 in training, a group
            id outside 0..K-1, shapes that do not fit, an unknown act or impl.
        RuntimeError: channels or dtypes that do not fit each other (as torch).
        TypeError: groups that are not integers.

    Source: Ioffe and Szegedy 2015, "Batch Normalization", algorithms 1 and 2.
    """
    if has_torch_function_unary(x):  # as torch's own: one operation to whoever watches or wraps
        return handle_torch_function(
            batch_norm,
            (x,),
            x,
            running_mean,
            running_var,
            weight,
            bias,
            training,
            momentum,
            eps,
            num_batches_tracked=num_batches_tracked,
            groups=groups,
            num_groups=num_groups,
            mask=mask,
            act=act,
            residual=residual,
            process_group=process_group,
            min_count=min_count,
            on_moments=on_moments,
            impl=impl,
        )
    use_batch = training or running_mean is None or running_var is None
    if is_transformed():
        form = None
    else:
        tables = (running_mean, running_var, weight, bias)
        form = (
            x.shape,
            x.dtype,
            x.device,
            type(x),
            *[None if t is None else (t.shape, t.dtype, t.device) for t in tables],
            training,
            eps,
            groups is None,
            num_groups,
            act,
            None if residual is None else residual.shape,
            process_group is None,
            impl,
        )
    kernel = _CHECKED.get(form)
    if kernel is None:  # no call of this form has passed the checks yet
        check_choices(eps, use_batch, act, impl)
        check_tensors(x, num_groups, running_mean, running_var, weight, bias)
        if groups is None and num_groups != 1:
            raise ValueError(
                f"num_groups is {num_groups} but groups is None; give each sample's group"
            )
        if groups is None and rows_needed(1, weight, bias) > 1:
            raise ValueError("weight or bias has a row per group but groups is None; give groups")
        if groups is None and use_batch and process_group is None:
            check_batch_size(x.shape[0] * math.prod(x.shape[2:]), x)
        if residual is not None and residual.shape != x.shape:
            raise ValueError(
                f"residual is {tuple(residual.shape)}; it must be as x {tuple(x.shape)}"
            )
        kernel = reference if form is None else kernel_for(x, impl)
        if form is not None:
            if len(_CHECKED) >= FORMS:
                _CHECKED.clear()
            _CHECKED[form] = kernel
    if groups is not None:
        groups = checked_groups(groups, x, rows_needed(num_groups, weight, bias))
    if mask is not None:
        mask = checked_mask(mask, x)

    problem = Problem(x, groups, num_groups, mask)
    epilogue = Epilogue(Affine(weight, bias), residual, act)
    differentiable = form is None or impl == "reference"
    fill = 0 if groups is None else min_count
    fused = not differentiable and hasattr(kernel, "forward")
    running = None
    if running_mean is not None and running_var is not None:
        running = running_mean, running_var
        # the loops reach the buffers by address
        fused = fused and running_mean.is_contiguous() and running_var.is_contiguous()
    source: Stored | FromBatch | FromRunning
    if fused and running is not None and not use_batch:
        source = FromRunning(eps, running)
        return standardise(problem, epilogue, source, process_group, kernel)
    if fused and use_batch and process_group is None:
        share = None
        if running is not None and training and on_moments is None:
            share = _shares(momentum, num_batches_tracked, num_groups)
        source = FromBatch(eps, running, share, fill, num_batches_tracked, on_moments)
        return standardise(problem, epilogue, source, process_group, kernel)
    stored = _stored(running_mean, running_var, num_groups)
    updates = training and on_moments is None and stored is not None
    if use_batch:
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            batch = statistics(problem, process_group, kernel)
        if groups is None and process_group is not None:
            check_batch_size(batch.count, x)
        mean, var, inverse_count = _filled_up(batch, stored, fill)
        if on_moments is not None:
            on_moments(batch.detach())
        elif updates:
            assert running_mean is not None, "stored"
            assert running_var is not None, "stored"
            update_running(running_mean, running_var, num_batches_tracked, batch, momentum)
    else:
        assert stored is not None, "checked above"
        dtype = reference.accumulate_dtype(x)
        # copies: the buffers may change between this forward and its backward
        mean, var, inverse_count = stored[0].to(dtype, copy=True), stored[1].to(dtype), None
    # a checkpoint may hold a variance below zero; for every valid one the clamp changes nothing
    rstd = torch.rsqrt(var.clamp(min=0) + eps)
    if differentiable:  # mean and rstd carry the graph
        epilogue = epilogue._replace(affine=epilogue.affine.as_rows())
        return reference.normalize(problem, Statistics(mean, rstd), epilogue)
    source = Stored(mean, rstd, inverse_count)
    return standardise(problem, epilogue, source, process_group, kernel)


def why(x: Tensor, impl: str = "auto") -> str:
    """Which kernel serves `batch_norm(x, impl=impl)` in eager mode, and why, as a sentence."""
    check_impl(impl)
    return explanation(x, impl)


def empty_cache() -> int:
    """Give the memory that waits for the next large results back to the system.

    Large results of the CPU kernels use memory again (docs/speed.md). The system takes it by
    itself when it runs short; this gives it back at once.

    Returns:
        Bytes given back.
    """
    from normscope.kernels.cpu.pages import shelf  # compiled kernels load when first needed

    kept = shelf.kept
    shelf.clear()
    return kept


def moments(
    x: Tensor,
    groups: Tensor | None = None,
    num_groups: int = 1,
    mask: Tensor | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Moments:
    """Count, mean and centred sum of squares of each group and channel, in float64.

    Args:
        x: (N, C, *S), any float dtype.
        groups: (N,) integers in 0..num_groups-1; None: one group.
        num_groups: K.
        mask: as in `batch_norm`.
        process_group: ranks whose values are merged, without gradients; None: this process.

    Returns:
        Moments with count (K,), mean (K, C), m2 (K, C); zeros for an empty group. Carries
        gradients where x does.
    """
    if groups is not None:
        groups = checked_groups(groups, x, num_groups)
    elif num_groups != 1:
        raise ValueError(f"num_groups is {num_groups} but groups is None; give each sample's group")
    if mask is not None:
        mask = checked_mask(mask, x)
    wants_grad = torch.is_grad_enabled() and x.requires_grad
    problem = Problem(x, groups, num_groups, mask)
    differentiable = wants_grad or is_transformed()
    kernel = reference if differentiable else kernel_for(x, "auto")
    return statistics(problem, process_group, kernel)


def _filled_up(
    batch: Moments, stored: tuple[Tensor, Tensor] | None, min_count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """mean, biased var and 1/count; a group below min_count is filled up with running values.

    The fill is min_count - count pseudo-values that have the running mean and variance.
    """
    if min_count and stored is not None:
        running_mean, running_var = (t.to(batch.mean.dtype) for t in stored)
        missing = (min_count - batch.count).clamp(min=0)
        batch = batch + Moments(missing, running_mean, running_var * missing.unsqueeze(1))
    count = batch.count.clamp(min=1).unsqueeze(1)
    return batch.mean, batch.m2 / count, 1 / count


def _shares(momentum: float | None, tracked: Tensor | None, num_groups: int) -> "array[float]":
    """The batch's share in the update of each group's running statistics, (K,) float64."""
    if momentum is not None:
        return _constant(momentum, num_groups)
    if tracked is None:  # without a counter nothing moves, as in torch
        return _constant(0.0, num_groups)
    shares = array("d", [1 / max(times + 1, 1) for times in tracked.reshape(-1).tolist()])
    return shares if len(shares) == num_groups else shares * num_groups


@lru_cache(64)
def _constant(value: float, num_groups: int) -> "array[float]":
    return array("d", [value]) * num_groups


@torch.no_grad()
def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    batch: Moments,
    momentum: float | None,
    *,
    skip_nonfinite: bool = False,
) -> Tensor:
    """running = (1 - momentum) * running + momentum * batch, in place, unbiased variance.

    Args:
        running_mean: (K, C), or (C,): the groups of the batch are then pooled first.
        running_var: as running_mean.
        num_batches_tracked: (K,) or (); one more where the batch updates. None: not counted.
        batch: count (K,), mean and m2 (K, C).
        momentum: None for 1 / num_batches_tracked.
        skip_nonfinite: leave the channels alone whose mean or variance is NaN or infinite.

    Returns:
        (), int64: how many channels were skipped as not finite.

    A group with fewer than two values has no unbiased variance and changes nothing; where there
    is only one set of statistics its batch is counted all the same, as in torch.
    """
    batched = torch._C._functorch.is_batchedtensor  # no public question exists
    if not torch.compiler.is_compiling() and batched(batch.mean) and not batched(running_mean):
        raise RuntimeError(
            "Batch norm got a batched tensor as input while the running_mean or running_var, "
            "which will be updated in place, were not batched."
        )
    if running_mean.dim() == 1 and batch.mean.shape[0] > 1:
        batch = batch.pool()
        batch = Moments(batch.count[None], batch.mean[None], batch.m2[None])
    enough = batch.count > 1
    if num_batches_tracked is not None:
        one = num_batches_tracked.dim() == 0
        num_batches_tracked.add_(1 if one else enough.to(num_batches_tracked.dtype))
    share: float | Tensor = 0.0 if momentum is None else momentum
    if momentum is None and num_batches_tracked is not None:
        # stays a tensor: no synchronisation, no break in a compiled graph
        share = 1 / num_batches_tracked.clamp(min=1).to(batch.mean.dtype).reshape(-1, 1)
    finite = batch.mean.isfinite() & batch.m2.isfinite()
    moves = enough.unsqueeze(1) & (finite | (not skip_nonfinite))
    for running, now in ((running_mean, batch.mean), (running_var, batch.var(correction=1))):
        old = running.to(now.dtype).view(now.shape)
        running.copy_(torch.where(moves, (1 - share) * old + share * now, old).view(running.shape))
    return (enough.unsqueeze(1) & ~moves).sum()


def _stored(
    running_mean: Tensor | None, running_var: Tensor | None, num_groups: int
) -> tuple[Tensor, Tensor] | None:
    """The running statistics as (1 or num_groups, C) views; None where they are not tracked."""
    if running_mean is None or running_var is None:
        return None
    shape = (-1 if running_mean.numel() else num_groups, running_mean.shape[-1])
    return running_mean.view(shape), running_var.view(shape)
