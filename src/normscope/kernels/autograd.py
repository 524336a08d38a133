"""The operator with its gradient: statistics over a partition, and the map that uses them."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad

from normscope.kernels import ops, reference
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


def statistics(x: Tensor, partition: Partition, differentiable: bool) -> Moments:
    """Moments of each group, (K, C), over all ranks of the process group."""
    verbs: Any = reference if differentiable else ops
    groups = partition.rows(partition.num_groups)
    local = Moments(*verbs.moments(x, groups, partition.num_groups, partition.mask))
    if partition.process_group is None:
        return local
    return local.all_reduce(partition.process_group)


def standardise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    inverse_count: Tensor | None,
    partition: Partition,
    differentiable: bool,
) -> Tensor:
    """y = (x - mean) * rstd * weight + bias; tables are (1 or K, C).

    inverse_count (1 or K, 1) says that mean and rstd are functions of x over that many values;
    None: they are constants. With `differentiable` the caller's mean and rstd carry the graph.
    """
    if differentiable:
        return reference.normalize(x, mean, rstd, weight, bias, partition.groups, partition.mask)
    y: Tensor = _Standardise.apply(x, weight, bias, mean, rstd, inverse_count, partition)
    return y


class _Standardise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        inverse_count: Tensor | None,
        partition: Partition,
    ) -> Tensor:
        # mean and rstd are ours, never the module's buffers: those may change before backward
        ctx.save_for_backward(
            x, weight, bias, mean, rstd, inverse_count, partition.groups, partition.mask
        )
        ctx.partition = Partition(None, partition.num_groups, None, partition.process_group)
        y: Tensor = ops.normalize(x, mean, rstd, weight, bias, partition.groups, partition.mask)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, weight, bias, mean, rstd, inverse_count, groups, mask = ctx.saved_tensors
        partition = Partition(groups, ctx.partition.num_groups, mask, ctx.partition.process_group)
        verbs: Any = ops
        if torch.is_grad_enabled():  # somebody will differentiate this: express it through x
            verbs = reference
            if inverse_count is not None:
                mean, rstd = _as_functions_of(x, mean, rstd, inverse_count, partition)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        # one partition serves the sums: the finer of statistics and affine
        num_rows = max(
            partition.num_groups, *(t.shape[0] for t in (weight, bias, mean) if t is not None)
        )
        dx = dweight = dbias = mean_g = mean_g_xhat = None
        if wants_weight or wants_bias or inverse_count is not None:
            sum_g, sum_g_xhat = verbs.backward_reduce(
                dy, x, mean, rstd, partition.rows(num_rows), num_rows, mask
            )
            dweight = _affine_grad(sum_g_xhat, weight) if wants_weight else None
            dbias = _affine_grad(sum_g, bias) if wants_bias else None
            if inverse_count is not None:
                sums = torch.stack([sum_g, sum_g_xhat])
                if weight is not None:  # of g = dy * weight from here on
                    sums = sums * weight
                if partition.num_groups == 1:  # one set of statistics over several affine rows
                    sums = sums.sum(1, keepdim=True)
                if partition.process_group is not None:
                    sums = _SumOverRanks.apply(sums, partition.process_group)
                mean_g, mean_g_xhat = (sums * inverse_count).unbind(0)
        if wants_x:
            dx = verbs.backward_input(dy, x, mean, rstd, weight, mean_g, mean_g_xhat, groups, mask)
        return dx, dweight, dbias, None, None, None, None


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
