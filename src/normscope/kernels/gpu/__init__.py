"""The grouped operator on a GPU, in Triton: the four verbs of `reference`.

Sums are split over samples and positions, so that few channels fill a device too; the parts are
merged by a second, small step, in float64 and in a fixed order: two runs give the same bits.
Squares of float32 values end at (x - mean) = 1.8e19; beyond it the variance is infinite.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton.language as tl
from torch import Tensor, nn

from normscope.kernels.gpu import loops
from normscope.kernels.gpu.cutting import Plan, alike, cut, dense, plan
from normscope.kernels.problem import Epilogue, Problem, Statistics

WIDE = {  # in what single values are calculated
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.float32,
    torch.float16: tl.float32,
}
MERGED = {"BLOCK_C": 16, "BLOCK_K": 64}  # channels and chunks of a merge at a time
MOST_POSITIONS = 1 << 30  # of a sample: places within it are int32


def unsupported(x: Tensor) -> str | None:
    """Why these programs cannot take x, as a phrase; None where they can."""
    if x.device.type != "cuda":
        return f"x is on {x.device.type}"
    if x.dtype not in WIDE:
        return f"x is {x.dtype}"
    if type(x) not in (Tensor, nn.Parameter) or x.layout != torch.strided:
        return f"x is a {type(x).__name__} with layout {x.layout}"
    if x.numel() == 0:
        return "x is empty"
    positions = x.shape[2:].numel()
    return None if positions < MOST_POSITIONS else f"x has {positions:,} positions per sample"


def moments(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Count (K,), mean (K, C), m2 (K, C); see `reference.moments`."""
    x, by_rows = dense(problem.x)
    num_groups = problem.num_groups
    work = plan(x, by_rows, problem.statistics_groups, num_groups, problem.mask)
    chunks = cut(work)
    counts, parts = _table(x, chunks.count), _table(x, 2, chunks.count, work.c)
    count, out = _table(x, num_groups), _table(x, 2, num_groups, work.c)
    with _on(x):
        loops.moments[(chunks.count * work.channel_blocks,)](
            x,
            work.mask,
            chunks.order,
            chunks.table,
            counts,
            *parts,
            work.c,
            work.s,
            work.points,
            work.chunk,
            *work.strides,
            **_tile(work, x),
        )
        loops.merge_moments[_merges(work)](
            counts, *parts, chunks.ends, count, *out, work.c, chunks.count, **MERGED
        )
    return count, out[0], out[1]


def normalize(problem: Problem, statistics: Statistics, epilogue: Epilogue) -> Tensor:
    """y = act((x - mean) * rstd * weight + bias + residual); see `reference.normalize`."""
    x, by_rows = dense(problem.x)
    tables, _ = _coefficients(x, statistics, epilogue)
    work = plan(x, by_rows, problem.groups, tables.shape[1], problem.mask)
    _, residual, act = epilogue
    y = torch.empty_like(x)
    with _on(x):
        loops.normalize[(_tiles(work),)](
            x,
            None if residual is None else alike(residual, by_rows),
            y,
            tables,
            work.groups,
            work.mask,
            work.c,
            work.s,
            work.points,
            *work.strides,
            tables[0].numel(),
            ACT=act,
            **_tile(work, x),
        )
    return y


def backward_reduce(
    dy: Tensor, problem: Problem, statistics: Statistics, epilogue: Epilogue
) -> tuple[Tensor, Tensor]:
    """Sums of g and g * xhat, (R, C) each; see `reference.backward_reduce`."""
    x, by_rows = dense(problem.x)
    num_rows = max(problem.num_groups, epilogue.affine.num_rows)
    work = plan(x, by_rows, problem.groups if num_rows > 1 else None, num_rows, problem.mask)
    chunks = cut(work)
    tables, lost = _coefficients(x, statistics._replace(mean_g=None), epilogue)
    tables = tables.expand(-1, num_rows, -1).contiguous()
    parts, out = _table(x, 2, chunks.count, work.c), _table(x, 2, num_rows, work.c)
    _, residual, act = epilogue
    with _on(x):
        loops.gradient_sums[(chunks.count * work.channel_blocks,)](
            alike(dy, by_rows),
            x,
            None if residual is None else alike(residual, by_rows),
            tables,
            work.mask,
            chunks.order,
            chunks.table,
            *parts,
            work.c,
            work.s,
            work.points,
            work.chunk,
            *work.strides,
            tables[0].numel(),
            ACT=act,
            **_tile(work, x),
        )
        loops.merge_sums[_merges(work)](*parts, chunks.ends, *out, work.c, chunks.count, **MERGED)
    return out[0], (out[1] + lost * out[0]) * statistics.rstd


def backward_input(
    dy: Tensor, problem: Problem, statistics: Statistics, epilogue: Epilogue
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and of residual; see `reference.backward_input`."""
    x, by_rows = dense(problem.x)
    tables, _ = _coefficients(x, statistics, epilogue)
    work = plan(x, by_rows, problem.groups, tables.shape[1], problem.mask)
    _, residual, act = epilogue
    dx, dresidual = torch.empty_like(x), None
    if residual is not None:
        residual, dresidual = alike(residual, by_rows), torch.empty_like(x)
    with _on(x):
        loops.gradient[(_tiles(work),)](
            alike(dy, by_rows),
            x,
            residual,
            dx,
            dresidual,
            tables,
            work.groups,
            work.mask,
            work.c,
            work.s,
            work.points,
            *work.strides,
            tables[0].numel(),
            ACT=act,
            FROM_X=len(tables) == 5,
            **_tile(work, x),
        )
    return dx, dresidual


def _coefficients(x: Tensor, statistics: Statistics, epilogue: Epilogue) -> tuple[Tensor, Tensor]:
    """(3 or 5, R, C) of m, a, b, gb, gc, and m - mean in float64.

    y = (x - m) a + b and dx = g a + (x - m) gb + gc. m is the mean as the nearest number in which
    single values are calculated, so that x - m is exact near it; what is lost goes to b and gc.
    gb and gc are left out where the statistics did not come from x.
    """
    mean, rstd, mean_g, mean_g_xhat = statistics
    weight, bias = epilogue.affine
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    m = mean.to(wide).double()
    lost = torch.where(m.isfinite(), m - mean, 0)
    a = rstd if weight is None else rstd * weight
    b = lost * a if bias is None else bias + lost * a
    found = [m, a, b]
    if mean_g is not None and mean_g_xhat is not None:
        gb = -rstd * rstd * mean_g_xhat
        found += [gb, lost * gb - rstd * mean_g]
    return torch.stack(torch.broadcast_tensors(*found)).to(wide), lost


def _table(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64, device=x.device)


def _tile(work: Plan, x: Tensor) -> dict[str, Any]:
    return {"WIDE": WIDE[x.dtype], "BLOCK_C": work.block_c, "BLOCK_P": work.block_p}


def _tiles(work: Plan) -> int:
    """Programs of a map."""
    return -(-work.points // work.block_p) * work.channel_blocks


def _merges(work: Plan) -> tuple[int]:
    """Programs of a merge."""
    return (work.r * -(-work.c // MERGED["BLOCK_C"]),)


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Programs start on the current device: make it x's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
