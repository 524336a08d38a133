"""The grouped operator on a CPU, in C++ on torch's own tensors and threads.

The four verbs of `reference`, and `batch_norm`, which does a whole layer with its gradient. Each
source file is named after the layout in memory that its loops go over.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normscope.kernels.cpu import build
from normscope.kernels.problem import Epilogue, Problem, Statistics
from normscope.kernels.reference import ACTIVATIONS

ACTS = {act: code for code, act in enumerate((None, *ACTIVATIONS))}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Made(NamedTuple):
    """A layer's output and the numbers that it was made with.

    Attributes:
        y: as x.
        table: (4, K, C) float64: mean and rstd that standardised, mean and m2 of the batch; (2, K,
            C) where the statistics were given.
        counts: (K,) float64, values per channel of the batch; None where they were given.
    """

    y: Tensor
    table: Tensor
    counts: Tensor | None


def unsupported(x: Tensor) -> str | None:
    """Why these loops cannot take x, as a phrase; None where they can."""
    if x.device.type != "cpu":
        return f"x is on {x.device.type}"
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}"
    if x.layout != torch.strided or torch._C._dispatch_keys(x).has(torch._C.DispatchKey.Python):
        return f"x is a {type(x).__name__} with layout {x.layout}"
    return "x is empty" if x.numel() == 0 else build.obstacle()


def batch_norm(*arguments: Any) -> Tensor | None:
    """Compute a layer, as `functional.batch_norm`; None where these loops cannot take the call.

    Args:
        arguments: those of the operator, in `layer.cpp`; act by its number in ACTS.
    """
    call = _OPERATORS.get("batch_norm") or operator("batch_norm")
    return None if call is None else call(*arguments)


def batch_norm_recorded(*arguments: Any) -> Made | None:
    """Compute the same, with the numbers that y was made with."""
    call = operator("batch_norm_recorded")
    found = [] if call is None else call(*arguments)
    return Made(*found, *[None] * (3 - len(found))) if found else None


def moments(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Count (K,), mean (K, C), m2 (K, C); see `reference.moments`."""
    found: tuple[Tensor, Tensor, Tensor] = _verb("moments")(
        problem.x, problem.statistics_groups, problem.num_groups, problem.mask
    )
    return found


def normalize(problem: Problem, statistics: Statistics, epilogue: Epilogue) -> Tensor:
    """y = act((x - mean) * rstd * weight + bias + residual); see `reference.normalize`."""
    y: Tensor = _verb("normalize")(*_given(problem, statistics, epilogue))
    return y


def backward_reduce(
    dy: Tensor, problem: Problem, statistics: Statistics, epilogue: Epilogue
) -> tuple[Tensor, Tensor]:
    """Sum g and g * xhat, (R, C) each; see `reference.backward_reduce`."""
    given = _given(problem, statistics, epilogue)
    sums: tuple[Tensor, Tensor] = _verb("backward_reduce")(*given, dy)
    return sums


def backward_input(
    dy: Tensor, problem: Problem, statistics: Statistics, epilogue: Epilogue
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and of residual; see `reference.backward_input`."""
    given = _given(problem, statistics, epilogue)
    means = statistics.mean_g, statistics.mean_g_xhat
    gradients: tuple[Tensor, Tensor | None] = _verb("backward_input")(*given, dy, *means)
    return gradients


def _given(problem: Problem, statistics: Statistics, epilogue: Epilogue) -> tuple[Any, ...]:
    (weight, bias), residual, act = epilogue
    num_groups = len(statistics.mean)
    groups = problem.groups if max(num_groups, epilogue.affine.num_rows) > 1 else None
    tables = statistics.mean, statistics.rstd, weight, bias
    return problem.x, groups, num_groups, problem.mask, *tables, residual, ACTS[act]


def operator(name: str) -> Callable[..., Any] | None:
    """One of the library's operators; None where the library cannot be had."""
    found = _OPERATORS.get(name)
    if found is None and build.loaded():
        # without the Python of OpOverload.__call__, which only passes on
        found = _OPERATORS[name] = getattr(torch.ops.normscope, name).default._op
        _DIRECT[name] = build.direct(name) or found
    return found


_OPERATORS: dict[str, Callable[..., Any]] = {}
_DIRECT: dict[str, Callable[..., Any]] = {}  # those of plain tensors alone
ready = _DIRECT.get  # an operator that was asked for before, else None; nothing is built


def _verb(name: str) -> Callable[..., Any]:
    found = operator(name)
    if found is None:
        raise RuntimeError(f"the CPU kernels cannot be used: {build.obstacle()}")
    return found
