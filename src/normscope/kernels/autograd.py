"""The operator with its gradient: statistics over a partition, and the map that uses them."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad

from normscope.kernels import recomputation, reference
from normscope.kernels.problem import (
    Affine,
    Epilogue,
    Problem,
    Statistics,
    check_storage,
    laid_out,
)
from normscope.moments import Moments

Ranks = dist.ProcessGroup | None  # whose values belong to the same groups; None: this process


def is_transformed() -> bool:
    """Whether something other than plain eager autograd looks at this call.

    Compilers, torch.func, dispatch modes and forward-mode AD get the differentiable definition in
    plain ATen: compilers fuse it, and exported graphs need no normscope to run.
    """
    return bool(
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


def held(*tables: Tensor) -> tuple[Tensor, ...]:
    """Copy tables of one shape, which backward needs, before running statistics move on."""
    # compilers may compute cheap values again in backward, from buffers that forward has updated
    # by then; they keep the result of a stack
    return torch.stack(tables).unbind(0)


def statistics(problem: Problem, process_group: Ranks, kernel: Any) -> Moments:
    """Moments of each group, (K, C), over all ranks of the process group."""
    local = Moments(*kernel.moments(problem))
    return local if process_group is None else local.all_reduce(process_group)


class Stored(NamedTuple):
    """Statistics that are given: constants, or functions of x that were computed before.

    Attributes:
        mean, rstd: (1 or K, C) float64.
        inverse_count: (1 or K, 1), 1 over how many values they are functions of; None: constants.
    """

    mean: Tensor
    rstd: Tensor
    inverse_count: Tensor | None


def standardise(
    problem: Problem, epilogue: Epilogue, source: Stored, process_group: Ranks, kernel: Any
) -> Tensor:
    """y = act((x - mean) * rstd * weight + bias + residual), differentiable twice."""
    x, *partition = problem
    (weight, bias), residual, act = epilogue
    y: Tensor = _Standardise.apply(
        x, weight, bias, residual, act, source, partition, process_group, kernel
    )
    remember(y, problem, epilogue, source.mean, source.rstd, kernel)
    return y


def remember(
    y: Tensor, problem: Problem, epilogue: Epilogue, mean: Tensor, rstd: Tensor, kernel: Any
) -> None:
    """Within `recompute`, let y be mapped again from x rather than kept."""
    outputs = recomputation.active.get()
    if outputs is not None and y.grad_fn is not None and epilogue.residual is None:
        rows = epilogue._replace(affine=epilogue.affine.as_rows())
        outputs.add(y, kernel.normalize, problem, Statistics(mean, rstd), rows)


class _Standardise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        act: str | None,
        source: Stored,
        partition: tuple[Tensor | None, int, Tensor | None],
        process_group: Ranks,
        kernel: Any,
    ) -> Tensor:
        groups, num_groups, mask = partition
        epilogue = Epilogue(Affine(weight, bias).as_rows(), residual, act)
        statistics = Statistics(source.mean, source.rstd)
        y = laid_out(kernel.normalize(Problem(x, *partition), statistics, epilogue), x)
        ctx.rest = act, kernel, residual is not None, num_groups, process_group
        if act is None:
            residual = None  # its gradient is dy
        # these are ours, never the module's buffers: those may change before backward
        ctx.source = source
        ctx.save_for_backward(x, weight, bias, residual, groups, mask)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, weight, bias, residual, groups, mask = ctx.saved_tensors
        act, kernel, added, num_groups, process_group = ctx.rest
        wanted, source = ctx.needs_input_grad, ctx.source
        problem = Problem(x, groups, num_groups, mask)
        epilogue = Epilogue(Affine(weight, bias), residual, act)
        if torch.is_grad_enabled():  # somebody will differentiate this: express it through x
            kernel, source = reference, _as_functions_of(problem, source, process_group)
        wants_x = wanted[0] or (wanted[3] and act is not None)
        wants_sums = wanted[1] or wanted[2] or source.inverse_count is not None
        *found, dresidual = _gradients(
            dy, problem, epilogue, source, process_group, kernel, wants_x, wants_sums
        )
        if added and act is None:
            dresidual = dy if mask is None else torch.where(mask, dy, 0)
        if found[0] is not None:
            found[0] = laid_out(found[0], x)
        found.append(dresidual)
        kept = [g if want else None for g, want in zip(found, wanted, strict=False)]
        return (*kept, None, None, None, None, None)


def _gradients(
    dy: Tensor,
    problem: Problem,
    epilogue: Epilogue,
    source: Stored,
    process_group: Ranks,
    kernel: Any,
    wants_x: bool,
    wants_sums: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients by the verbs one after the other, with a collective between them."""
    check_storage("the gradient that came back", dy)
    given = epilogue.affine
    epilogue = epilogue._replace(affine=given.as_rows())
    weight = epilogue.affine.weight
    mean, rstd, inverse_count = source
    dx = dweight = dbias = dresidual = mean_g = mean_g_xhat = None
    if wants_sums:
        # one partition serves the sums: the finer of statistics and affine
        sum_g, sum_g_xhat = kernel.backward_reduce(dy, problem, Statistics(mean, rstd), epilogue)
        dweight = None if given.weight is None else _affine_grad(sum_g_xhat, given.weight)
        dbias = None if given.bias is None else _affine_grad(sum_g, given.bias)
        if inverse_count is not None:
            sums = torch.stack([sum_g, sum_g_xhat])
            if weight is not None:  # of g * weight from here on
                sums = sums * weight
            if problem.num_groups == 1:  # one set of statistics over several affine rows
                sums = sums.sum(1, keepdim=True)
            if process_group is not None:
                sums = _SumOverRanks.apply(sums, process_group)
            mean_g, mean_g_xhat = (sums * inverse_count).unbind(0)
    if wants_x:
        statistics = Statistics(mean, rstd, mean_g, mean_g_xhat)
        dx, dresidual = kernel.backward_input(dy, problem, statistics, epilogue)
    return dx, dweight, dbias, dresidual


def _affine_grad(total: Tensor, parameter: Tensor) -> Tensor:
    several = parameter.dim() == 2 and parameter.shape[0] > 1
    return (total if several else total.sum(0)).to(parameter.dtype).reshape(parameter.shape)


def _as_functions_of(problem: Problem, source: Stored, process_group: Ranks) -> Stored:
    """Mean and rstd with their values as they are and their derivatives in x.

    Pseudo-values of a prior count in n = 1 / inverse_count but not in the sums over x:
    d mean / dx_i = 1/n, d var / dx_i = 2 (x_i - mean) / n.
    """
    mean, rstd, inverse_count = source
    if inverse_count is None:
        return source
    local = Moments(*reference.moments(problem))
    count = local.count.unsqueeze(1)
    mean = _moved(mean, local.mean * count * inverse_count, process_group)
    off = local.mean - mean  # zero in all, but for a prior or other ranks
    square = local.m2 + count * (off * off + 2 * off.detach() * (mean - mean.detach()))
    rstd = _moved(rstd**-2, square * inverse_count, process_group).rsqrt()
    return Stored(mean, rstd, inverse_count)


def _moved(value: Tensor, by: Tensor, process_group: Ranks) -> Tensor:
    """`value`, with the derivatives of `by` summed over all ranks."""
    if process_group is not None:
        by = _SumOverRanks.apply(by, process_group)
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


_library = torch.library.Library("normscope", "FRAGMENT")
_library.define(
    "backward_by_reference(Tensor dy, Tensor x, Tensor? groups, int num_groups, Tensor? mask, "
    "Tensor? weight, Tensor? bias, Tensor? residual, int act, Tensor table, "
    "Tensor? inverse_count, bool wants_x) -> Tensor[]"
)


def _backward_by_reference(
    dy: Tensor,
    x: Tensor,
    groups: Tensor | None,
    num_groups: int,
    mask: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    act: int,
    table: Tensor,
    inverse_count: Tensor | None,
    wants_x: bool,
) -> list[Tensor]:
    """Gradients of x, weight, bias and residual, those that there are, as differentiable ones.

    C++ calls this in backward where a graph of the gradients is asked for.
    """
    problem = Problem(x, groups, num_groups, mask)
    epilogue = Epilogue(Affine(weight, bias), residual, (None, *reference.ACTIVATIONS)[act])
    source = Stored(table[0], table[1], inverse_count)
    if torch.is_grad_enabled():
        source = _as_functions_of(problem, source, None)
    found = _gradients(dy, problem, epilogue, source, None, reference, wants_x, wants_sums=True)
    return [gradient for gradient in found if gradient is not None]


for _key in ("CompositeImplicitAutograd", "Batched"):  # the second: many cotangents at once
    _library.impl("backward_by_reference", _backward_by_reference, _key)
