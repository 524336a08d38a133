"""Batch norm over a ragged partition, as functions: arguments, gradients, running statistics."""

import math
from collections.abc import Callable
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
    check_one_group,
    check_tensors,
    checked_groups,
    checked_mask,
    plain,
    rows_needed,
)
from normscope.errors import InputError
from normscope.kernels import autograd, cpu, recomputation, reference
from normscope.kernels.as_torch import by_torch
from normscope.kernels.dispatch import explanation, kernel_for, prefers_torch
from normscope.kernels.problem import Affine, Epilogue, Problem, Statistics, check_storage
from normscope.moments import Moments


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
        groups: (N,) integers, the group of each sample. None: all samples are one group. The
            "gpu" kernel does not wait for the device to look for a group that does not exist:
            its samples enter no statistic and leave as NaN.
        num_groups: how many groups have statistics of their own. 1 with `groups` given: one set
            of statistics for all, and groups choose only the rows of weight and bias.
        mask: (N,), (N, *S) or (N, 1, *S) bool, True where a value counts. What is masked enters
            no statistic, receives no gradient and leaves as zero, whatever it holds.
        act: "relu", "leaky_relu" or "silu" on the result.
        residual: shaped as x; added before act. One of another dtype promotes the result, as
            `batch_norm(x) + residual` does.
        process_group: ranks that share each group's statistics; every rank must make the call,
            one without samples too. None: this process alone.
        min_count: with `groups`, a group of fewer values per channel is filled up to so many with
            pseudo-values that have its running mean and variance, so a tiny group never fails.
        on_moments: receives the batch's Moments (detached) in place of the update of the running
            statistics; for those who decide themselves when and whether to update.
        impl: "auto": the kernel of x's device, or torch's own functions, see `why`. Or by name,
            and then never another one instead: "cpu" (C++), "gpu" (Triton), "reference" (the
            definition in plain PyTorch).

    Returns:
        (N, C, *S) in the memory format of torch's batch norm: channels last stays in four and five
        dimensions, all else is contiguous. In x's dtype unless a residual promotes it.

    An empty batch or group changes no statistic and gets zero gradients. A group of one value
    leaves its running statistics; without running statistics it comes out as bias. NaN stays in
    its channel and group.

    Differentiable to second order in eager mode and to any order, forward mode included, through
    `torch.func` and `torch.compile`.

    Raises:
        ValueError: one value per channel in training (as torch), eps <= 0 in training, eps or
            momentum NaN, a group id outside 0..K-1, shapes that do not fit, an unknown act or impl.
        RuntimeError: channels, dtypes or devices that do not fit each other (as torch); a tensor
            whose storage was freed.
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
    transformed = autograd.is_transformed()
    plain_call = groups is None and mask is None and process_group is None and on_moments is None
    if plain_call and impl == "auto" and torch._C._get_tracing_state() is not None:
        # sizes are tensors in torch.jit.trace, and the graph needs no normscope to run
        return by_torch(
            act, x, running_mean, running_var, weight, bias, use_batch, training, momentum, eps,
            num_batches_tracked, residual,
        )  # fmt: skip
    on_cpu = process_group is None and not transformed and x.is_cpu
    if mask is not None:
        mask = checked_mask(mask, x)
    if on_cpu and impl in ("auto", "cpu") and (groups is None or isinstance(groups, Tensor)):
        update = training and running_mean is not None and on_moments is None
        y = _compiled(
            act, on_moments, x, running_mean, running_var, weight, bias, use_batch, update,
            momentum, eps, num_batches_tracked, groups, num_groups, mask, cpu.ACTS.get(act, -1),
            residual, min_count,
        )  # fmt: skip
        if y is not None:
            return y
    # not taken: something is wrong, or to be made right, or for another kernel
    check_choices(eps, momentum, use_batch, act, impl)
    check_tensors(x, num_groups, running_mean, running_var, weight, bias, residual)
    if not transformed:
        check_storage("num_batches_tracked", num_batches_tracked)
    rows = rows_needed(num_groups, weight, bias)
    if groups is None:
        check_one_group(num_groups, rows)
        if use_batch and process_group is None:
            check_batch_size(x.shape[0] * math.prod(x.shape[2:]), x)
    else:
        groups = checked_groups(groups, x, rows, look=impl != "gpu")
    if residual is not None and residual.dtype != x.dtype:
        # as torch: the layer in x's dtype, the sum in the one that both are promoted to
        y = batch_norm(
            x, running_mean, running_var, weight, bias, training, momentum, eps,
            num_batches_tracked=num_batches_tracked, groups=groups, num_groups=num_groups,
            mask=mask, process_group=process_group, min_count=min_count, on_moments=on_moments,
            impl=impl,
        )  # fmt: skip
        y = y + residual
        y = y if act is None else reference.ACTIVATIONS[act](y)
        return y if mask is None else torch.where(mask, y, 0)
    if plain_call and impl == "auto" and prefers_torch(x):
        return by_torch(
            act, x, running_mean, running_var, weight, bias, use_batch, training, momentum, eps,
            num_batches_tracked, residual,
        )  # fmt: skip
    kernel = reference if transformed else kernel_for(x, impl)
    if kernel is not reference:
        x, weight, bias, residual, groups, mask = map(
            plain, (x, weight, bias, residual, groups, mask)
        )
    if kernel is cpu and on_cpu:
        y = _compiled(
            act, on_moments, x, running_mean, running_var, weight, bias, use_batch, update,
            momentum, eps, num_batches_tracked, groups, num_groups, mask, cpu.ACTS[act], residual,
            min_count,
        )  # fmt: skip
        if y is not None:
            return y
        if impl == "cpu":
            raise InputError(
                "impl='cpu' cannot serve this call: its loops take plain tensors and running "
                "statistics that are contiguous; use impl='auto'"
            )
        kernel = reference

    problem = Problem(x, groups, num_groups, mask)
    epilogue = Epilogue(Affine(weight, bias), residual, act)
    if process_group is None and kernel not in (reference, cpu):
        running = None
        if running_mean is not None and running_var is not None:
            running = kernel.Running(running_mean, running_var, num_batches_tracked, momentum)
            num_groups = num_groups if use_batch else running_mean.numel() // x.shape[1]
        call = kernel.Call(
            num_groups=num_groups,
            running=running,
            eps=eps,
            by_batch=use_batch,
            update=training and running is not None and on_moments is None,
            fill=min_count if groups is not None and running is not None and use_batch else None,
            on_moments=on_moments,
        )
        whole: Tensor = kernel.batch_norm(problem, epilogue, call)
        return whole
    differentiable = transformed or impl == "reference"
    stored = _stored(running_mean, running_var, num_groups)
    if use_batch:
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            batch = autograd.statistics(problem, process_group, kernel)
        if groups is None and process_group is not None:
            check_batch_size(batch.count, x)
        mean, var, inverse_count = _filled_up(batch, stored, 0 if groups is None else min_count)
        if on_moments is not None:
            on_moments(batch.detach())
        elif training and running_mean is not None and running_var is not None:
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
    return autograd.standardise(
        problem, epilogue, autograd.Stored(mean, rstd, inverse_count), process_group, kernel
    )


def plain_call(x: Tensor) -> Callable[..., Tensor | None] | None:
    """Choose the C++ operator for calls that only plain eager autograd observes.

    It takes the arguments of `_compiled` and checks all of them itself; None, here or from it,
    leaves the call to `batch_norm`.
    """
    if autograd.is_transformed() or type(x) is not Tensor or has_torch_function_unary(x):
        return None
    return cpu.ready("batch_norm") if recomputation.active.get() is None else None


def _compiled(
    act: str | None, on_moments: Callable[[Moments], None] | None, *arguments: Any
) -> Tensor | None:
    """Run a call in C++; None where C++ does not support it."""
    if on_moments is None and recomputation.active.get() is None:
        return cpu.batch_norm(*arguments)
    made = cpu.batch_norm_recorded(*arguments)
    if made is None:
        return None
    if on_moments is not None and made.counts is not None:
        on_moments(Moments(made.counts, made.table[2], made.table[3]))
    x, _, _, weight, bias, *_, groups, num_groups, mask, _, residual, _ = arguments
    epilogue = Epilogue(Affine(weight, bias), residual, act)
    problem = Problem(x, groups, num_groups, mask)
    autograd.remember(made.y, problem, epilogue, made.table[0], made.table[1], cpu)
    return made.y


def why(x: Tensor, impl: str = "auto") -> str:
    """Say which kernel serves `batch_norm(x, impl=impl)` in eager mode, and why."""
    check_impl(impl)
    return explanation(x, impl)


def moments(
    x: Tensor,
    groups: Tensor | None = None,
    num_groups: int = 1,
    mask: Tensor | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Moments:
    """Return count, mean and centred sum of squares of each group and channel, in float64.

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
    else:
        check_one_group(num_groups, num_groups)
    if mask is not None:
        mask = checked_mask(mask, x)
    wants_grad = torch.is_grad_enabled() and x.requires_grad
    kernel = reference if wants_grad or autograd.is_transformed() else kernel_for(x, "auto")
    if kernel is not reference:
        x, groups, mask = map(plain, (x, groups, mask))
    return autograd.statistics(Problem(x, groups, num_groups, mask), process_group, kernel)


def _filled_up(
    batch: Moments, stored: tuple[Tensor, Tensor] | None, min_count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, biased var and 1/count; groups below min_count are filled with running values.

    The fill is min_count - count pseudo-values that have the running mean and variance.
    """
    if min_count and stored is not None:
        running_mean, running_var = autograd.held(*(t.to(batch.mean.dtype) for t in stored))
        missing = (min_count - batch.count).clamp(min=0)
        batch = batch + Moments(missing, running_mean, running_var * missing.unsqueeze(1))
    count = batch.count.clamp(min=1).unsqueeze(1)
    return batch.mean, batch.m2 / count, 1 / count


@torch.no_grad()
def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    batch: Moments,
    momentum: float | None,
    *,
    skip_nonfinite: bool = False,
    count_empty: bool = True,
) -> Tensor:
    """Set running = (1 - momentum) * running + momentum * batch, in place, unbiased variance.

    Args:
        running_mean: (K, C), or (C,): the groups of the batch are then pooled first.
        running_var: as running_mean.
        num_batches_tracked: (K,) or (); one more where the batch updates. None: not counted.
        batch: count (K,), mean and m2 (K, C).
        momentum: None for 1 / num_batches_tracked.
        skip_nonfinite: leave the channels alone whose mean or variance is NaN or infinite.
        count_empty: one set of statistics counts a batch without values, as torch does.

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
        batch = batch.pool()[None]
    enough = batch.count > 1
    if num_batches_tracked is not None:
        counted = enough if num_batches_tracked.dim() else batch.count[0] > 0
        every = count_empty and not num_batches_tracked.dim()
        num_batches_tracked.add_(1 if every else counted.to(num_batches_tracked.dtype))
    share: float | Tensor = 0.0 if momentum is None else momentum
    if momentum is None and num_batches_tracked is not None:
        # stays a tensor: no synchronisation, no break in a compiled graph
        share = 1 / num_batches_tracked.clamp(min=1).to(batch.mean.dtype).reshape(-1, 1)
    moves = enough.unsqueeze(1)
    if skip_nonfinite:
        moves = moves & batch.mean.isfinite() & batch.m2.isfinite()
    for running, now in ((running_mean, batch.mean), (running_var, batch.var(correction=1))):
        old = running.to(now.dtype).view(now.shape)
        running.copy_(torch.where(moves, (1 - share) * old + share * now, old).view(running.shape))
    return (enough.unsqueeze(1) & ~moves).sum()


def _stored(
    running_mean: Tensor | None, running_var: Tensor | None, num_groups: int
) -> tuple[Tensor, Tensor] | None:
    """View the running statistics as (1 or num_groups, C); None where they are not tracked."""
    if running_mean is None or running_var is None:
        return None
    shape = (-1 if running_mean.numel() else num_groups, running_mean.shape[-1])
    return running_mean.view(shape), running_var.view(shape)
