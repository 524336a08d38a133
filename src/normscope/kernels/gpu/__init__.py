"""The grouped operator on a GPU, in Triton: the four verbs of `reference`, and a whole layer.

Sums are split over samples and positions, so that few channels fill a device too; the parts are
merged by a second, small program, in float64 and in a fixed order: two runs give the same bits.
Squares of float32 values end at (x - mean) = 1.8e19; beyond it the variance is infinite.
"""

import torch
from torch import Tensor, nn

from normscope.kernels.gpu import programs
from normscope.kernels.gpu.cutting import DTYPES, MOST_PLACES, Rows, alike, rows_of
from normscope.kernels.gpu.layer import Call, batch_norm
from normscope.kernels.gpu.programs import Map, Running, on, ordered
from normscope.kernels.problem import Epilogue, Problem, Statistics

__all__ = [
    "Call", "Running", "backward_input", "backward_reduce", "batch_norm", "moments", "normalize",
    "unsupported",
]  # fmt: skip


def unsupported(x: Tensor) -> str | None:
    """Why these programs cannot take x, as a phrase; None where they can."""
    if x.device.type != "cuda":
        return f"x is on {x.device.type}"
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}"
    if type(x) not in (Tensor, nn.Parameter) or x.layout != torch.strided:
        return f"x is a {type(x).__name__} with layout {x.layout}"
    if x.numel() == 0:
        return "x is empty"
    places = x[0].numel()
    return None if places < MOST_PLACES else f"x has {places:,} values per sample"


def moments(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Count (K,), mean (K, C), m2 (K, C); see `reference.moments`."""
    x, _, k, mask = problem
    of = rows_of(x, mask)
    with on(x):
        order = ordered(problem.statistics_groups, k)
        made = programs.merged(*programs.by_chunk(of, order, k))
    return made.counts, made.found[0], made.found[1]


def normalize(problem: Problem, statistics: Statistics, epilogue: Epilogue) -> Tensor:
    """y = act((x - mean) * rstd * weight + bias + residual); see `reference.normalize`."""
    with on(problem.x):
        return programs.mapped(*_map(problem, statistics, epilogue))


def backward_reduce(
    dy: Tensor, problem: Problem, statistics: Statistics, epilogue: Epilogue
) -> tuple[Tensor, Tensor]:
    """Sum g and g * xhat, (R, C) each; see `reference.backward_reduce`."""
    with on(dy):
        of, how = _map(problem, statistics._replace(mean_g=None), epilogue, problem.num_groups)
        used = torch.stack([*statistics[:2], statistics.mean])  # the third is not asked for
        sum_g, sum_gx = torch.empty(2, *how.tables.shape[1:], dtype=torch.float64, device=dy.device)
        programs.gradient_sums(
            alike(dy, of.by_rows), of, how, used, None, (sum_gx, sum_g), change=None
        )
    return sum_g, sum_gx


def backward_input(
    dy: Tensor, problem: Problem, statistics: Statistics, epilogue: Epilogue
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and of residual; see `reference.backward_input`."""
    wanted = True, epilogue.residual is not None
    with on(dy):
        of, how = _map(problem, statistics, epilogue)
        change = _change(of, statistics)
        dx, dresidual = programs.gradient(alike(dy, of.by_rows), of, how, change, wanted)
    assert dx is not None, "it was asked for"
    return dx, dresidual


def _map(
    problem: Problem, statistics: Statistics, epilogue: Epilogue, rows: int = 1
) -> tuple[Rows, Map]:
    """Make the map of a call; tables of at least so many rows. See `merging.merge_moments`."""
    of = rows_of(problem.x, problem.mask)
    mean, rstd, *_ = statistics
    weight, bias = epilogue.affine
    m, lost = _rounded(of, mean)
    a = rstd if weight is None else rstd * weight
    b = lost * a if bias is None else bias + lost * a
    tables = torch.stack(torch.broadcast_tensors(m, a, b)).to(of.wide)
    known = max(rows, tables.shape[1])
    tables = tables.expand(-1, known, -1).contiguous()
    residual = None if epilogue.residual is None else alike(epilogue.residual, of.by_rows)
    return of, Map(tables, ordered(problem.groups, known), epilogue.act, residual)


def _change(of: Rows, statistics: Statistics) -> Tensor | None:
    """Make the tables of the gradient of x; see `merging.merge_gradients`."""
    mean, rstd, mean_g, mean_g_xhat = statistics
    if mean_g is None or mean_g_xhat is None:
        return None
    gb = -rstd * rstd * mean_g_xhat
    return torch.stack([gb, _rounded(of, mean)[1] * gb - rstd * mean_g]).to(of.wide)


def _rounded(of: Rows, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean as single values take it off, and what rounding it so has added."""
    m = mean.to(of.wide).double()
    return m, torch.where(m.isfinite(), m - mean, 0)
