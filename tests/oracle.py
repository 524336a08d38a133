"""The judge: grouped batch norm in float64 NumPy, two passes, written as loops over groups.

Imports nothing from normscope and shares no formula with its kernels: the gradient is the
textbook one, in the form of Ioffe and Szegedy 2015, section 3.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def moments(
    x: Array, groups: Array | None, num_groups: int, mask: Array | None = None
) -> tuple[Array, Array, Array]:
    """count (K,), mean (K, C), m2 (K, C) of x (N, C, *S); mask (N, *S)."""
    channels = x.shape[1]
    count = np.zeros(num_groups)
    mean, m2 = np.zeros((num_groups, channels)), np.zeros((num_groups, channels))
    for k in range(num_groups):
        for c in range(channels):
            values = select(x, c, k, groups, mask)
            count[k] = values.size
            if values.size:
                mean[k, c] = values.mean()
                m2[k, c] = ((values - mean[k, c]) ** 2).sum()
    return count, mean, m2


def batch_norm(
    x: Array,
    dy: Array,
    weight: Array,
    bias: Array,
    eps: float,
    groups: Array | None = None,
    num_groups: int = 1,
    mask: Array | None = None,
) -> dict[str, Array]:
    """Training-mode y and the gradients for the cotangent dy; weight and bias (K or 1, C)."""
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    y, dx = np.zeros_like(x), np.zeros_like(x)
    dweight, dbias = np.zeros(weight.shape), np.zeros(bias.shape)
    for k in range(num_groups):
        row = k if weight.shape[0] > 1 else 0
        for c in range(x.shape[1]):
            values, g = select(x, c, k, groups, mask), select(dy, c, k, groups, mask)
            n = values.size
            if not n:
                continue
            mu = values.mean()
            var = ((values - mu) ** 2).mean()
            std = np.sqrt(var + eps)
            xhat = (values - mu) / std
            put(y, c, k, groups, mask, xhat * weight[row, c] + bias[row, c])
            dxhat = g * weight[row, c]
            dvar = (dxhat * (values - mu)).sum() * -0.5 / std**3
            dmu = -(dxhat / std).sum() + dvar * (-2 * (values - mu)).mean()
            put(dx, c, k, groups, mask, dxhat / std + dvar * 2 * (values - mu) / n + dmu / n)
            dweight[row, c] += (g * xhat).sum()
            dbias[row, c] += g.sum()
    return {"y": y, "dx": dx, "dweight": dweight, "dbias": dbias}


def select(x: Array, c: int, k: int, groups: Array | None, mask: Array | None) -> Array:
    """The float64 values of channel c in group k that the mask admits, flat."""
    return x[:, c][_where(x, k, groups, mask)].astype(np.float64)


def put(x: Array, c: int, k: int, groups: Array | None, mask: Array | None, values: Array) -> None:
    """Write what `select` reads."""
    x[:, c][_where(x, k, groups, mask)] = values


def _where(x: Array, k: int, groups: Array | None, mask: Array | None) -> Array:
    shape = (x.shape[0], *x.shape[2:])
    inside = np.ones(shape, dtype=bool) if mask is None else mask.copy()
    if groups is not None:
        inside[groups != k] = False
    return inside
