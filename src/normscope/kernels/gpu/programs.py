"""The calls of the Triton programs, each with the memory that it fills. None of them waits."""

import struct
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normscope.kernels.gpu import loops, merging
from normscope.kernels.gpu.cutting import Cut, Order, Rows, arrange

Pair = tuple[Tensor | None, Tensor | None]


class Running(NamedTuple):
    """The running statistics of a layer, (1 or K, C), contiguous, and what moves them.

    Attributes:
        mean, var: updated in place, or those that standardise.
        tracked: () or (K,) int64; None: not counted.
        momentum: None for 1 / tracked.
    """

    mean: Tensor
    var: Tensor
    tracked: Tensor | None = None
    momentum: float | None = None


class Map(NamedTuple):
    """What maps values: y = act((x - m) a + b + residual).

    Attributes:
        tables: (3, R, C) m, a, b, in which single values are calculated.
        order: samples by row of the tables; None: one row.
        act: a key of `reference.ACTIVATIONS`, or None.
        residual: in x's order in memory, or None.
        bits: (rows, bytes of a row) uint8: what relu lets through; with it, backward needs no
            residual.
    """

    tables: Tensor
    order: Order | None
    act: str | None
    residual: Tensor | None = None
    bits: Tensor | None = None

    def given(self) -> tuple[Any, ...]:
        """Return what programs over values take of the tables."""
        return self.tables, self.tables.stride(0), self.tables.shape[1]


def by_chunk(of: Rows, order: Order | None, groups: int) -> tuple[Cut, Tensor]:
    """Moments of each chunk, (3, ., C)."""
    cut = of.cut("moments", order, groups)
    parts = cut.parts(3)
    loops.moments[(cut.programs,)](
        of.x, parts=parts, plane=parts.stride(0), groups=groups, SLOTS=cut.slots, **cut.over()
    )
    return cut, parts


class Merged(NamedTuple):
    """What is known of each group.

    Attributes:
        counts, found: (K,), and (2, K, C) mean and m2 of the batch.
        used: (3, K, C) mean, rstd and 1 / n that standardise.
        tables: (3, R, C), see `Map`.
    """

    counts: Tensor
    found: Tensor
    used: Tensor
    tables: Tensor


def merged(
    cut: Cut,
    parts: Tensor | None,
    affine: Pair = (None, None),
    running: Running | None = None,
    eps: float = 1e-5,
    fill: int | None = None,
    update: bool = False,
) -> Merged:
    """Join the parts of each group.

    Args:
        cut: as `by_chunk` gives it.
        parts: as `by_chunk` gives them; None: the running statistics standardise.
        affine: (C,) or (R, C) each, contiguous, or None.
        running: None: not tracked.
        eps: added to the variance.
        fill: values that a group is filled up to, with the running statistics.
        update: move the running statistics.
    """
    of, known = cut.of, cut.groups
    weights, biases = (_num_rows(t) for t in affine)
    rows = max(known, weights, biases)
    count, found, used = of.table(known), of.table(2, known, of.c), of.table(3, known, of.c)
    tables = torch.empty(3, rows, of.c, dtype=of.wide, device=of.x.device)
    mean, var, tracked, momentum = running or (None, None, None, 0.0)
    of_all = mean is not None and mean.numel() == of.c
    merging.merge_moments[cut.merges(known + (update and of_all and known > 1))](
        parts, 0 if parts is None else parts.stride(0),
        count=count, found=found, used=used, tables=tables, tables_size=rows * of.c,
        weight=affine[0], bias=affine[1], running_mean=mean, running_var=var,
        kept=None if fill is None or cut.order is None else cut.order.kept, tracked=tracked,
        eps=_high(eps), eps_low=eps - _high(eps), momentum=_high(momentum or 0.0),
        momentum_low=(momentum or 0.0) - _high(momentum or 0.0), min_count=fill,
        GIVEN=parts is None, UPDATE=update, OF_ALL=of_all,
        AVERAGE=momentum is None and tracked is not None,
        EACH=tracked is not None and tracked.dim() == 1, ONE=known == 1, ROWS=rows,
        WEIGHTS=weights, BIASES=biases, **cut.merge(),
    )  # fmt: skip
    return Merged(count, found, used, tables)


def mapped(
    of: Rows, how: Map, tracked: Tensor | None = None, counts: Tensor | None = None
) -> Tensor:
    """y, in x's order in memory; `tracked` is counted on by the way."""
    cut = of.cut("normalize", how.order, how.tables.shape[1])
    y = torch.empty_like(of.x)
    loops.normalize[(cut.programs,)](
        of.x, how.residual, y, how.bits, *how.given(), tracked=tracked,
        times=0 if tracked is None else tracked.numel(), counts=counts,
        groups=cut.groups + 1, items=cut.programs, ACT=how.act,
        EACH=tracked is not None and tracked.dim() == 1, **cut.over(),
    )  # fmt: skip
    return y


def gradient_sums(
    dy: Tensor,
    of: Rows,
    how: Map,
    used: Tensor,
    weight: Tensor | None,
    into: Pair,
    change: Tensor | None,
) -> None:
    """Gradients of scale and shift, and the tables of the gradient of x.

    Args:
        dy: in x's order in memory.
        of: x.
        how: the map.
        used: (3, K, C) mean, rstd and 1 / n that standardised.
        weight: (C,) or (R, C), or None.
        into: tensors like weight and bias that receive their gradients; None: not wanted.
        change: (2, K, C) that receives the tables; None: not wanted.
    """
    known, groups = how.tables.shape[1], used.shape[1]
    cut = of.cut("gradient_sums", how.order, known)
    parts = cut.parts(2)
    owners = torch.empty(cut.chunks, dtype=torch.int32, device=dy.device)
    loops.gradient_sums[(cut.programs,)](
        dy, of.x, how.residual, how.bits, *how.given(), parts=parts, plane=parts.stride(0),
        owners=owners, groups=known, ACT=how.act, SLOTS=cut.slots, **cut.over(),
    )  # fmt: skip
    weights = _num_rows(into[0] if weight is None else weight)
    one_row = [t for t in into if t is not None and _num_rows(t) == 1]
    pooled = known > 1 and bool(one_row or (change is not None and groups == 1))
    merging.merge_gradients[cut.merges(known + pooled)](
        parts, parts.stride(0), owners, used=used, groups=groups, weight=weight, dweight=into[0],
        dbias=into[1], change=change, ONE=groups == 1, SEVERAL=known > 1, WEIGHTS=weights,
        BIASES=_num_rows(into[1]), **cut.merge(),
    )  # fmt: skip


def gradient(
    dy: Tensor, of: Rows, how: Map, change: Tensor | None, wanted: tuple[bool, bool]
) -> Pair:
    """Gradients of x and of the residual, those that are wanted; change: (2, 1 or K, C)."""
    cut = of.cut("gradient", how.order, how.tables.shape[1])
    dx, dresidual = (torch.empty_like(of.x) if want else None for want in wanted)
    loops.gradient[(cut.programs,)](
        dy, of.x, how.residual, how.bits, dx, dresidual, *how.given(), change=change,
        change_size=0 if change is None else change.stride(0), groups=cut.groups + 1,
        items=cut.programs, ACT=how.act, ONE=change is None or change.shape[1] == 1, **cut.over(),
    )  # fmt: skip
    return dx, dresidual


def bits_of(of: Rows) -> Tensor:
    """Memory for a bit per value."""
    return torch.empty(of.rows, -(-of.row // 8), dtype=torch.uint8, device=of.x.device)


def _num_rows(table: Tensor | None) -> int:
    return 1 if table is None or table.dim() == 1 else table.shape[0]


def _high(number: float) -> float:
    """Round to float32, as a program takes numbers; the rest is passed beside it."""
    value: float = struct.unpack("f", struct.pack("f", number))[0]
    return value


def ordered(
    groups: Tensor | None, known: int, running: tuple[Tensor, Tensor] | None = None
) -> Order | None:
    """Sort samples by group, where there are several."""
    return None if groups is None or known == 1 else arrange(groups, known, running)


def on(x: Tensor) -> AbstractContextManager[Any]:
    """Programs start on the current device: make it x's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
