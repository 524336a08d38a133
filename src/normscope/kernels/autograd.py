"""The operator with its gradient: statistics over a partition, and the map that uses them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad

from normscope.kernels import reference
from normscope.moments import Moments


@dataclass(frozen=True, eq=False)
class Partition:
    """Which values share statistics, which count, and which ranks hold the others.

    Attributes:
        groups: (N,) int64, or None: one group. They choose the rows of every (K, C) table.
        num_groups: groups with statistics of their own; 1 leaves `groups` to the affine rows.
        mask: (N, 1, *S) bool, or None.
        process_group: ranks whose values belong to the same groups; None: this process alone.
    """

    groups: Tensor | None = None
    num_groups: int = 1
    mask: Tensor | None = None
    process_group: dist.ProcessGroup | None = None

    def rows(self, num_rows: int) -> Tensor | None:
        """The groups, where a table has a row for each."""
        return self.groups if num_rows > 1 else None


def is_transformed() -> bool:
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


def statistics(x: Tensor, partition: Partition, kernel: Any) -> Moments:
    """Moments of each group, (K, C), over all ranks of the process group."""
    groups = partition.rows(partition.num_groups)
    local = Moments(*kernel.moments(x, groups, partition.num_groups, partition.mask))
    if partition.process_group is None:
        return local
    return local.all_reduce(partition.process_group)


@dataclass(frozen=True, eq=False)
class Stored:
    """Statistics that are given: constants, or functions of x that were computed before.

    Attributes:
        mean, rstd: (1 or K, C) float64.
        inverse_count: (1 or K, 1), 1 over how many values they are functions of; None: constants.
    """

    mean: Tensor
    rstd: Tensor
    inverse_count: Tensor | None


@dataclass(frozen=True, eq=False)
class FromBatch:
    """Statistics that a fused kernel takes from x itself, and what it does with them.

    Attributes:
        eps: added to the variance.
        running: mean and var, (rows, C) contiguous; None: not tracked.
        share: (K,) float64 array, of the batch in their update; None: no update.
        min_count: groups of fewer values are filled up with running values; 0: none is.
        on_moments: receives the batch's Moments; None: nobody asks.
    """

    eps: float
    running: tuple[Tensor, Tensor] | None
    share: Any
    min_count: int
    on_moments: Callable[[Moments], None] | None


def standardise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str | None,
    source: Stored | FromBatch,
    partition: Partition,
    kernel: Any,
) -> Tensor:
    """y = act((x - mean) * rstd * weight + bias + residual), differentiable twice."""
    y: Tensor = _Standardise.apply(x, weight, bias, residual, act, source, partition, kernel)
    return y


class _Standardise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        act: str | None,
        source: Stored | FromBatch,
        partition: Partition,
        kernel: Any,
    ) -> Tensor:
        groups, mask = partition.groups, partition.mask
        ctx.fused = None
        if isinstance(source, FromBatch):
            fused = kernel.forward(
                x,
                weight,
                bias,
                residual,
                act,
                source.eps,
                groups,
                partition.num_groups,
                mask,
                source.running,
                source.share,
                source.min_count,
            )
            if source.on_moments is not None:
                source.on_moments(fused.moments)
            ctx.fused = fused.kept
            y, mean, rstd, inverse_count = fused.y, fused.mean, fused.rstd, None
        else:
            mean, rstd, inverse_count = source.mean, source.rstd, source.inverse_count
            y = kernel.normalize(x, mean, rstd, weight, bias, residual, act, groups, mask)
        # mean and rstd are ours, never the module's buffers: those may change before backward
        ctx.save_for_backward(
            x,
            weight,
            bias,
            residual if act is not None else None,
            mean,
            rstd,
            inverse_count,
            groups,
            mask,
        )
        ctx.partition = Partition(None, partition.num_groups, None, partition.process_group)
        ctx.act, ctx.kernel, ctx.added = act, kernel, residual is not None
        result: Tensor = y
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, weight, bias, residual, mean, rstd, inverse_count, groups, mask = ctx.saved_tensors
        act = ctx.act
        wants_x, wants_weight, wants_bias, wants_residual = ctx.needs_input_grad[:4]
        wants_x = wants_x or (wants_residual and act is not None)
        twice = torch.is_grad_enabled()  # somebody will differentiate this
        if ctx.fused is not None and not twice:
            dx, dweight, dbias, dresidual = ctx.kernel.backward(
                dy, x, mean, rstd, weight, bias, residual, act, ctx.fused, wants_x
            )
        else:
            if ctx.fused is not None:
                inverse_count = ctx.fused.inverse_count()
            partition = Partition(
                groups, ctx.partition.num_groups, mask, ctx.partition.process_group
            )
            kernel = reference if twice else ctx.kernel
            if twice and inverse_count is not None:  # express it through x
                mean, rstd = _as_functions_of(x, mean, rstd, inverse_count, partition)
            sums = wants_weight or wants_bias or inverse_count is not None
            dx, dweight, dbias, dresidual = _unfused(
                dy,
                x,
                Stored(mean, rstd, inverse_count),
                (weight, bias, residual, act),
                partition,
                kernel,
                wants_x,
                sums,
            )
        if ctx.added and act is None:
            dresidual = dy if mask is None else torch.where(mask, dy, 0)
        found = (dx, dweight, dbias, dresidual)
        wanted = ctx.needs_input_grad[:4]
        return (*(g if w else None for g, w in zip(found, wanted, strict=True)), *[None] * 4)


def _unfused(
    dy: Tensor,
    x: Tensor,
    source: Stored,
    mapping: tuple[Tensor | None, Tensor | None, Tensor | None, str | None],
    partition: Partition,
    kernel: Any,
    wants_x: bool,
    wants_sums: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients by the verbs one after the other, with a collective between them."""
    weight, bias, residual, act = mapping
    mean, rstd, inverse_count = source.mean, source.rstd, source.inverse_count
    groups, mask = partition.groups, partition.mask
    # one partition serves the sums: the finer of statistics and affine
    num_rows = max(
        partition.num_groups, *(t.shape[0] for t in (weight, bias, mean) if t is not None)
    )
    dx = dweight = dbias = dresidual = mean_g = mean_g_xhat = None
    if wants_sums:
        rows = partition.rows(num_rows)
        sum_g, sum_g_xhat = kernel.backward_reduce(
            dy, x, mean, rstd, weight, bias, residual, act, rows, num_rows, mask
        )
        dweight = None if weight is None else _affine_grad(sum_g_xhat, weight)
        dbias = None if bias is None else _affine_grad(sum_g, bias)
        if inverse_count is not None:
            sums = torch.stack([sum_g, sum_g_xhat])
            if weight is not None:  # of g * weight from here on
                sums = sums * weight
            if partition.num_groups == 1:  # one set of statistics over several affine rows
                sums = sums.sum(1, keepdim=True)
            if partition.process_group is not None:
                sums = _SumOverRanks.apply(sums, partition.process_group)
            mean_g, mean_g_xhat = (sums * inverse_count).unbind(0)
    if wants_x:
        dx, dresidual = kernel.backward_input(
            dy, x, mean, rstd, weight, bias, residual, act, mean_g, mean_g_xhat, groups, mask
        )
    return dx, dweight, dbias, dresidual


def _affine_grad(total: Tensor, parameter: Tensor) -> Tensor:
    return (total if parameter.shape[0] > 1 else total.sum(0, keepdim=True)).to(parameter.dtype)


def _as_functions_of(
    x: Tensor, mean: Tensor, rstd: Tensor, inverse_count: Tensor, partition: Partition
) -> tuple[Tensor, Tensor]:
    """mean and rstd with their values as they are and their derivatives in x.

    Pseudo-values of a prior count in n = 1 / inverse_count but not in the sums over x:
    d mean / dx_i = 1/n, d var / dx_i = 2 (x_i - mean) / n.
    """
    groups = partition.rows(partition.num_groups)
    local = Moments(*reference.moments(x, groups, partition.num_groups, partition.mask))
    count = local.count.unsqueeze(1)
    mean = _moved(mean, local.mean * count * inverse_count, partition)
    off = local.mean - mean  # zero in all, but for a prior or other ranks
    square = local.m2 + count * (off * off + 2 * off.detach() * (mean - mean.detach()))
    return mean, _moved(rstd**-2, square * inverse_count, partition).rsqrt()


def _moved(value: Tensor, by: Tensor, partition: Partition) -> Tensor:
    """`value`, with the derivatives of `by` summed over all ranks."""
    if partition.process_group is not None:
        by = _SumOverRanks.apply(by, partition.process_group)
    return value + (by - by.detach())


class _SumOverRanks(torch.autograd.Function):
    """all_reduce(sum), which is its own transpose: differentiable to any order."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, process_group: dist.ProcessGroup) -> Tensor:
        ctx.process_group = process_group
        total = values.contiguous().clone()
        dist.all_reduce(total, group=process_group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _SumOverRanks.apply(grads[0], ctx.process_group), None
