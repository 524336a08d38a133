"""A whole layer with its gradient: at most four programs forward, three backward, no waiting."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normscope.errors import InputError
from normscope.kernels import recomputation
from normscope.kernels.gpu import programs
from normscope.kernels.gpu.cutting import Order, alike, rows_of
from normscope.kernels.gpu.programs import Map, Running, on, ordered
from normscope.kernels.problem import Epilogue, Problem
from normscope.kernels.reference import ACTIVATIONS
from normscope.moments import Moments


class Call(NamedTuple):
    """What a layer is given beside its tensors.

    Attributes:
        num_groups: K, groups with statistics of their own.
        running: None: not tracked.
        eps: added to the variance.
        by_batch: the batch standardises, rather than the running statistics.
        update: the running statistics move.
        fill: values that a group is filled up to; None: as many as it has.
        on_moments: receives the batch's moments.
    """

    num_groups: int
    running: Running | None
    eps: float
    by_batch: bool
    update: bool
    fill: int | None
    on_moments: Callable[[Moments], None] | None


def batch_norm(problem: Problem, epilogue: Epilogue, call: Call) -> Tensor:
    """y = act((x - mean) / sqrt(var + eps) * weight + bias + residual), differentiable twice.

    Raises:
        InputError: running statistics that are not contiguous.
    """
    if call.running is not None and not all(t.is_contiguous() for t in call.running[:2]):
        raise InputError(
            "impl='gpu' takes running statistics that are contiguous; call .contiguous() on them, "
            "or use impl='auto'"
        )
    (weight, bias), residual, act = epilogue
    made: list[Any] = []
    y: Tensor = _Layer.apply(
        problem.x, weight, bias, residual, problem.groups, problem.mask, act, call, made
    )
    outputs = recomputation.active.get()
    if outputs is not None and y.grad_fn is not None and residual is None:
        order = None if made[1] is None else tuple(made[1])
        outputs.add(y, _again, problem.x, problem.mask, made[0], order, act)
    return y


def _again(
    x: Tensor, mask: Tensor | None, tables: Tensor, order: tuple[Any, ...] | None, act: str | None
) -> Tensor:
    """Compute the same output once more."""
    with on(x):
        how = Map(tables, None if order is None else Order(*order), act)
        return programs.mapped(rows_of(x, mask), how)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        groups: Tensor | None,
        mask: Tensor | None,
        act: str | None,
        call: Call,
        made: list[Any],
    ) -> Tensor:
        of, running = rows_of(x, mask), call.running
        scale, shift = (None if t is None else t.contiguous() for t in (weight, bias))
        k = call.num_groups
        rows = max([k, *(len(t) for t in (scale, shift) if t is not None and t.dim() == 2)])
        old = None
        if running is not None and call.fill and k > 1 and running.mean.numel() == of.c:
            old = running[:2]
        with on(x):
            order, parts = ordered(groups, rows, old), None
            if call.by_batch:
                cut, parts = programs.by_chunk(of, order if k > 1 else None, k)
            else:
                cut = of.cut("moments", None, k)
            count, found, used, tables = programs.merged(
                cut, parts, (scale, shift), running, call.eps, call.fill, call.update
            )
            if residual is not None:
                residual = alike(residual, of.by_rows)
            kept = act == "relu" and residual is not None and any(ctx.needs_input_grad)
            bits = programs.bits_of(of) if kept else None
            tracked = running.tracked if running is not None and call.update else None
            y = programs.mapped(of, Map(tables, order, act, residual, bits), tracked, count)
        if running is not None and call.update:  # autograd cannot see that programs wrote to them
            moved = (t for t in running[:3] if t is not None and not t.is_inference())
            torch.autograd.graph.increment_version(tuple(moved))
        if call.on_moments is not None and call.by_batch:
            call.on_moments(Moments(count, *found.unbind(0)))
        made += [tables, order]
        ctx.rest = act, call, residual is not None
        residual = None if act is None or bits is not None else residual
        orders = (None, None) if order is None else order[:2]
        ctx.save_for_backward(x, weight, bias, residual, groups, mask, *orders, tables, used, bits)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), wanted = grads, ctx.needs_input_grad[:4]
        found = _differentiable(ctx, dy) if _watched(dy) else _by_programs(ctx, dy, wanted)
        kept = [g if want else None for g, want in zip(found, wanted, strict=True)]
        return (*kept, None, None, None, None, None)


def _watched(dy: Tensor) -> bool:
    """Whether somebody will differentiate these gradients, or asks for many at once."""
    functorch = torch._C._functorch
    many = functorch.is_legacy_batchedtensor(dy) or functorch.peek_interpreter_stack() is not None
    return torch.is_grad_enabled() or many


def _by_programs(ctx: Any, dy: Tensor, wanted: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    x, weight, bias, residual, _, mask, order, starts, tables, used, bits = ctx.saved_tensors
    act, call, added = ctx.rest
    of = rows_of(x, mask)
    order = None if order is None else Order(order, starts, None)
    how = Map(tables, order, act, residual, bits)
    into = [
        torch.empty_like(t, memory_format=torch.contiguous_format) if want else None
        for t, want in zip((weight, bias), wanted[1:3], strict=True)
    ]
    by_itself = added and act is None and mask is None  # dy is the residual's gradient
    change = tables.new_empty(2, *used.shape[1:]) if call.by_batch and wanted[0] else None
    dense, dx, dresidual = alike(dy, of.by_rows), None, dy if by_itself else None
    with on(x):
        if change is not None or any(wanted[1:3]):
            scale = None if weight is None else weight.contiguous()
            programs.gradient_sums(dense, of, how, used, scale, (into[0], into[1]), change)
        for_residual = wanted[3] and not by_itself
        if wanted[0] or for_residual:
            dx, more = programs.gradient(dense, of, how, change, (wanted[0], for_residual))
            dresidual = more if for_residual else dresidual
    return dx, *into, dresidual


def _differentiable(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients by the definition, which can be differentiated again."""
    x, weight, bias, residual, groups, mask, _, _, tables, used, bits = ctx.saved_tensors
    act, call, added = ctx.rest
    if bits is not None:  # relu is linear where it lets through, so the residual is not needed
        dy, act = torch.where(_unpacked(bits, x), dy, 0), None
    groups = None if tables.shape[1] == 1 else groups
    inverse = used[2, :, :1] if call.by_batch else None
    number, statistics = (None, *ACTIVATIONS).index(act), (used[:2], inverse)
    given = dy, x, groups, used.shape[1], mask, weight, bias, residual, number, *statistics
    found = iter(torch.ops.normscope.backward_by_reference(*given, wants_x=True))
    dx = next(found)
    dweight, dbias = (None if t is None else next(found) for t in (weight, bias))
    dresidual = next(found, None)
    if added and dresidual is None:
        dresidual = dy if mask is None else torch.where(mask, dy, 0)
    return dx, dweight, dbias, dresidual


def _unpacked(bits: Tensor, x: Tensor) -> Tensor:
    """Read a bit per value as bool, shaped as x."""
    of = rows_of(x, None)
    number = torch.arange(8, device=bits.device)
    flags = ((bits.unsqueeze(-1) >> number) & 1).flatten(1)[:, : of.row].bool()
    if not of.by_rows:
        return flags.reshape(x.shape)
    return flags.reshape(x.movedim(1, -1).shape).movedim(-1, 1)
