"""Batch norm over a ragged partition, as functions: arguments, gradients, running statistics."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from normscope.errors import InputError
from normscope.kernels import ops, reference
from normscope.moments import Moments

Activation = Literal["relu", "leaky_relu", "silu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
}
IMPLS = ("auto", "reference")

# a group needs two values per channel for a variance; smaller ones use the running statistics
MIN_COUNT = 2


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
    impl: str = "auto",
) -> Tensor:
    """Standardise each group per channel and map it back with weight (gamma) and bias (beta).

        y = act((x - mean_k) / sqrt(var_k + eps) * weight_k + bias_k + residual)

    k is the sample's group. In training mean and var are those of the group's values in this
    batch; otherwise the running ones. Biased variance normalises, unbiased variance is stored:
    running = (1 - momentum) * running + momentum * batch.

    Args:
        x: (N, C, *S), float16, bfloat16, float32 or float64.
        running_mean: (C,), or (num_groups, C); updated in place in training. None: not tracked.
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
        impl: "auto", or "reference" for the definition in plain PyTorch.

    Returns:
        (N, C, *S) in x's dtype and memory format.

    An empty batch or group changes no statistic and gets zero gradients. With `groups`, a group
    of one value per channel uses its running statistics and does not update them (without
    running statistics it comes out as bias). NaN stays in its channel and group.

    Differentiable to second order in eager mode and to any order, forward mode included, through
    `torch.func` and `torch.compile`.

    Raises:
        ValueError: one value per channel in training (as torch), eps <= 0 in training, a group
            id outside 0..K-1, shapes that do not fit, an unknown act or impl.
        RuntimeError: channels or dtypes that do not fit each other (as torch).
        TypeError: groups that are not integers.

    Source: Ioffe and Szegedy 2015, "Batch Normalization", algorithms 1 and 2.
    """
    use_batch = training or running_mean is None or running_var is None
    _check_choices(eps, use_batch, act, impl)
    _check_tensors(x, num_groups, running_mean, running_var, weight, bias)
    if groups is not None:
        groups = _checked_groups(groups, x, _rows_needed(num_groups, weight, bias))
    elif num_groups != 1:
        raise ValueError(f"num_groups is {num_groups} but groups is None; give each sample's group")
    elif use_batch:
        _check_batch_size(x)
    if mask is not None:
        mask = _checked_mask(mask, x)
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual is {tuple(residual.shape)}; it must be as x {tuple(x.shape)}")

    composite = impl == "reference" or _is_transformed()
    stat_groups = groups if num_groups > 1 else None
    stored = _stored(running_mean, running_var, num_groups)
    if use_batch:
        with torch.set_grad_enabled(composite and torch.is_grad_enabled()):
            verbs = reference if composite else ops
            moments = Moments(*verbs.moments(x, stat_groups, num_groups, mask))
        mean, var, inverse_count = _batch_statistics(moments, stored)
        if training and stored is not None:
            _update_running(stored, num_batches_tracked, moments, momentum, groups is None)
    else:
        assert stored is not None, "checked above"
        dtype = reference.accumulate_dtype(x)
        # copies: the buffers may change between this forward and its backward
        mean, var, inverse_count = stored[0].to(dtype, copy=True), stored[1].to(dtype), None
    # a checkpoint may hold a variance below zero; for every valid one the clamp changes nothing
    rstd = torch.rsqrt(var.clamp(min=0) + eps)

    weight, bias = _as_rows(weight), _as_rows(bias)
    y: Tensor
    if composite:
        y = reference.normalize(x, mean, rstd, weight, bias, groups, mask)
    else:
        y = _Normalize.apply(
            x, weight, bias, mean, rstd, inverse_count, groups, num_groups, mask, eps
        )
    if residual is not None:
        y = y + residual
    return y if act is None else ACTIVATIONS[act](y)


def moments(
    x: Tensor, groups: Tensor | None = None, num_groups: int = 1, mask: Tensor | None = None
) -> Moments:
    """Count, mean and centred sum of squares of each group and channel, in float64.

    Args:
        x: (N, C, *S), any float dtype.
        groups: (N,) integers in 0..num_groups-1; None: one group.
        num_groups: K.
        mask: as in `batch_norm`.

    Returns:
        Moments with count (K,), mean (K, C), m2 (K, C); zeros for an empty group. Carries
        gradients where x does.
    """
    if groups is not None:
        groups = _checked_groups(groups, x, num_groups)
    elif num_groups != 1:
        raise ValueError(f"num_groups is {num_groups} but groups is None; give each sample's group")
    if mask is not None:
        mask = _checked_mask(mask, x)
    wants_grad = torch.is_grad_enabled() and x.requires_grad
    verbs = reference if wants_grad or _is_transformed() else ops
    return Moments(*verbs.moments(x, groups, num_groups, mask))


class _Normalize(torch.autograd.Function):
    """normalize with the gradient of the whole batch norm; mean and rstd are functions of x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        inverse_count: Tensor | None,
        groups: Tensor | None,
        num_groups: int,
        mask: Tensor | None,
        eps: float,
    ) -> Tensor:
        # mean and rstd are ours, never the module's buffers: those may change before backward
        ctx.save_for_backward(x, weight, bias, mean, rstd, inverse_count, groups, mask)
        ctx.num_groups, ctx.eps = num_groups, eps
        y: Tensor = ops.normalize(x, mean, rstd, weight, bias, groups, mask)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, weight, bias, mean, rstd, inverse_count, groups, mask = ctx.saved_tensors
        verbs: ModuleType = ops
        if torch.is_grad_enabled():  # somebody will differentiate this: express it through x
            verbs = reference
            if inverse_count is not None:
                mean, rstd = _statistics_of(x, mean, rstd, inverse_count, groups, mask, ctx)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        # one partition serves the sums: the finer of statistics and affine
        rows = max(ctx.num_groups, *(t.shape[0] for t in (weight, bias) if t is not None), 1)
        by_group = groups if rows > 1 else None
        dx = dweight = dbias = mean_g = mean_g_xhat = None
        if wants_weight or wants_bias or inverse_count is not None:
            sum_g, sum_g_xhat = verbs.backward_reduce(dy, x, mean, rstd, by_group, rows, mask)
            dweight = _affine_grad(sum_g_xhat, weight) if wants_weight else None
            dbias = _affine_grad(sum_g, bias) if wants_bias else None
            if inverse_count is not None:
                mean_g = _group_mean(sum_g, weight, inverse_count)
                mean_g_xhat = _group_mean(sum_g_xhat, weight, inverse_count)
        if wants_x:
            dx = verbs.backward_input(dy, x, mean, rstd, weight, mean_g, mean_g_xhat, groups, mask)
        return dx, dweight, dbias, None, None, None, None, None, None, None


def _as_rows(table: Tensor | None) -> Tensor | None:
    return table.unsqueeze(0) if table is not None and table.dim() == 1 else table


def _group_mean(total: Tensor, weight: Tensor | None, inverse_count: Tensor) -> Tensor:
    """Means of g = dy * weight over each statistics group, from sums of dy over the rows."""
    if weight is not None:
        total = total * weight
    if inverse_count.shape[0] == 1:  # one set of statistics over several affine rows
        total = total.sum(0, keepdim=True)
    return total * inverse_count


def _affine_grad(total: Tensor, parameter: Tensor) -> Tensor:
    return (total if parameter.shape[0] > 1 else total.sum(0, keepdim=True)).to(parameter.dtype)


def _statistics_of(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    inverse_count: Tensor,
    groups: Tensor | None,
    mask: Tensor | None,
    ctx: Any,
) -> tuple[Tensor, Tensor]:
    """Mean and rstd again, as differentiable functions of x where they came from x."""
    stat_groups = groups if ctx.num_groups > 1 else None
    again = Moments(*reference.moments(x, stat_groups, ctx.num_groups, mask))
    from_batch = inverse_count > 0
    var = again.m2 * inverse_count
    return (
        torch.where(from_batch, again.mean, mean),
        torch.where(from_batch, torch.rsqrt(var + ctx.eps), rstd),
    )


def _batch_statistics(
    moments: Moments, stored: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """mean, biased var and 1/count (zero where the group is too small to be its own judge)."""
    count = moments.count.unsqueeze(1)
    mean, var = moments.mean, moments.m2 / count.clamp(min=1)
    if stored is None:
        return mean, var, 1 / count.clamp(min=1)
    enough = count >= MIN_COUNT
    return (
        torch.where(enough, mean, stored[0].to(mean.dtype)),
        torch.where(enough, var, stored[1].to(var.dtype)),
        torch.where(enough, 1 / count.clamp(min=1), 0),
    )


@torch.no_grad()
def _update_running(
    stored: tuple[Tensor, Tensor],
    counter: Tensor | None,
    moments: Moments,
    momentum: float | None,
    whole: bool,
) -> None:
    running_mean, running_var = stored
    batched = torch._C._functorch.is_batchedtensor  # no public question exists
    if not torch.compiler.is_compiling() and batched(moments.mean) and not batched(running_mean):
        raise RuntimeError(
            "Batch norm got a batched tensor as input while the running_mean or running_var, "
            "which will be updated in place, were not batched."
        )
    enough = moments.count >= MIN_COUNT
    if counter is not None:
        # as in torch an empty batch counts; a group that is absent or too small does not
        counter.add_(1 if whole or counter.dim() == 0 else enough.to(counter.dtype))
    share: float | Tensor = 0.0 if momentum is None else momentum
    if momentum is None and counter is not None:
        # stays a tensor: no synchronisation, no break in a compiled graph
        share = 1 / counter.clamp(min=1).to(moments.mean.dtype).reshape(-1, 1)
    enough = enough.unsqueeze(1)
    for running, batch in ((running_mean, moments.mean), (running_var, moments.var(correction=1))):
        old = running.to(batch.dtype)
        running.copy_(torch.where(enough, (1 - share) * old + share * batch, old))


def _stored(
    running_mean: Tensor | None, running_var: Tensor | None, num_groups: int
) -> tuple[Tensor, Tensor] | None:
    """The running statistics as (num_groups, C) views; None where they are not tracked."""
    if running_mean is None or running_var is None:
        return None
    shape = (num_groups, running_mean.shape[-1])
    return running_mean.view(shape), running_var.view(shape)


def _is_transformed() -> bool:
    """Whether something other than plain eager autograd looks at this call.

    Compilers, torch.func and forward-mode AD get the differentiable definition in plain ATen:
    compilers fuse it, and exported graphs need no normscope to run.
    """
    return bool(
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


# --- arguments --------------------------------------------------------------------------------


def _rows_needed(num_groups: int, *affine: Tensor | None) -> int:
    return max(num_groups, *(t.shape[0] for t in affine if t is not None and t.dim() == 2), 1)


def _check_batch_size(x: Tensor) -> None:
    values = x.shape[0]
    for size in x.shape[2:]:
        values *= size
    if values == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.shape}; "
            "drop the last batch (drop_last=True), use a larger one, or call eval()"
        )


def _check_choices(eps: float, use_batch: bool, act: str | None, impl: str) -> None:
    if impl not in IMPLS:
        raise ValueError(f"impl is {impl!r}; it can be {_listed(IMPLS)}")
    if act is not None and act not in ACTIVATIONS:
        raise ValueError(f"act is {act!r}; it can be None, {_listed(ACTIVATIONS)}")
    if eps < 0 or (use_batch and eps == 0):
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")


def _check_tensors(
    x: Tensor,
    num_groups: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> None:
    if x.dim() < 2:
        raise ValueError(f"expected x of (N, C, *S), got {x.dim()}D input")
    if not x.is_floating_point():
        kind = str(x.dtype).removeprefix("torch.")
        raise NotImplementedError(
            f'"batch_norm" not implemented for {kind!r}; give a floating point input'
        )
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    tables = {"running_mean": running_mean, "running_var": running_var}
    for name, tensor in {**tables, "weight": weight, "bias": bias}.items():
        if tensor is None:
            continue
        if tensor.shape[-1] != x.shape[1]:
            raise RuntimeError(
                f"{name} should contain {x.shape[1]} elements not {tensor.shape[-1]}: "
                f"the input {tuple(x.shape)} has {x.shape[1]} channels"
            )
        if tensor.dtype != x.dtype and not (narrow and tensor.dtype == torch.float32):
            raise RuntimeError(
                f"mixed dtype: {name} is {tensor.dtype}, the input {x.dtype}; all must share the "
                "same datatype, or be torch.float32 for a 16-bit input"
            )
        if name in tables and tensor.numel() != num_groups * x.shape[1]:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}; num_groups={num_groups} needs "
                f"{(num_groups, x.shape[1])}"
            )


def _checked_groups(groups: Tensor, x: Tensor, num_groups: int) -> Tensor:
    if groups.dtype.is_floating_point or groups.dtype.is_complex or groups.dtype == torch.bool:
        raise TypeError(f"groups are {groups.dtype}; they must be integers, one per sample")
    if groups.shape != (x.shape[0],):
        raise ValueError(
            f"groups are {tuple(groups.shape)}; one per sample is needed: ({x.shape[0]},)"
        )
    groups = groups.to(device=x.device, dtype=torch.int64)
    if groups.numel() and not _is_transformed():
        lowest, highest = groups.aminmax()
        if int(lowest) < 0 or int(highest) >= num_groups:
            wrong = int(((groups < 0) | (groups >= num_groups)).nonzero()[0])
            raise InputError(
                f"group {int(groups[wrong])} of sample {wrong} is outside 0..{num_groups - 1}"
            )
    return groups


def _checked_mask(mask: Tensor, x: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        raise TypeError(f"mask is {mask.dtype}; it must be torch.bool, True where a value counts")
    n, positions = x.shape[0], x.shape[2:]
    if mask.shape == (n,):
        mask = mask.reshape(n, *[1] * (x.dim() - 1))
    elif mask.shape == (n, *positions):
        mask = mask.unsqueeze(1)
    elif mask.shape != (n, 1, *positions):
        raise ValueError(
            f"mask is {tuple(mask.shape)}; it must be {(n,)}, {(n, *positions)} "
            f"or {(n, 1, *positions)}"
        )
    return mask.expand(n, 1, *positions)


def _listed(names: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(repr(name) for name in names)
