"""A plain call by torch's own functions: what a user had before, and their speed on that device."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from normscope.kernels import recomputation
from normscope.kernels.autograd import is_transformed
from normscope.kernels.reference import ACTIVATIONS


def by_torch(
    act: str | None,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_batch: bool,
    training: bool,
    momentum: float | None,
    eps: float,
    num_batches_tracked: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """Do a call with torch's own functions, to the bit what torch's layers give."""
    tracked = running_mean is not None and running_var is not None
    mean, var = (_one_row(running_mean), _one_row(running_var)) if tracked else (None, None)
    affine = _one_row(weight), _one_row(bias)
    share = momentum or 0.0
    if training and tracked and num_batches_tracked is not None:
        num_batches_tracked.add_(1)
        if momentum is None:
            share = 1.0 / max(float(num_batches_tracked), 1.0)  # a broken counter counts as none
    y = F.batch_norm(x, mean, var, *affine, use_batch, share, eps)
    if residual is not None:
        y = y + residual
    if act is not None:
        y = F.relu(y, inplace=True) if act == "relu" else ACTIVATIONS[act](y)
    if residual is None and not is_transformed():
        outputs = recomputation.active.get()
        if outputs is not None and y.grad_fn is not None:
            # a batch's statistics come from x once more; the running ones have had their update
            kept = (None, None) if use_batch else (mean, var)
            outputs.add(y, _mapped_by_torch, act, x, *kept, *affine, use_batch, 0.0, eps)
    return y


def _mapped_by_torch(act: str | None, *arguments: Any) -> Tensor:
    y = F.batch_norm(*arguments)
    return y if act is None else ACTIVATIONS[act](y)


def _one_row(table: Tensor | None) -> Tensor | None:
    """Give a table as torch takes it: (C,)."""
    return table if table is None or table.dim() == 1 else table.view(-1)
