"""Several domains out of one data set: the same classes under changes known at inference."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from normscope.errors import InputError

Floats = NDArray[np.float64]

# each works on values in the unit range of the training part; results may leave that range
DOMAINS: dict[str, Callable[[Floats, np.random.Generator], Floats]] = {
    "clean": lambda u, _: u,
    "contrast": lambda u, _: 0.5 + 0.4 * (u - 0.5),
    "brightness": lambda u, _: u + 0.5,
    "invert": lambda u, _: 1 - u,
    "noise": lambda u, draw: u + 0.3 * draw.standard_normal(u.shape),
}


def check_domains(names: tuple[str, ...]) -> None:
    """Raise InputError unless `names` are two or more different known domains."""
    for name in names:
        if name not in DOMAINS:
            raise InputError(f"there is no domain {name!r}; there are {', '.join(DOMAINS)}")
    if len(set(names)) != len(names) or len(names) < 2:
        raise InputError(
            f"domains are {', '.join(names)}; name at least two different ones of "
            f"{', '.join(DOMAINS)}"
        )


def shifted(
    x: NDArray[np.generic],
    domain: NDArray[np.int64],
    names: tuple[str, ...],
    low: Floats,
    high: Floats,
    draw: np.random.Generator,
) -> NDArray[np.float32]:
    """Each sample moved into its domain.

    Args:
        x: (N, C, *S).
        domain: (N,) indices into `names`.
        names: of the domains.
        low: (C,), the smallest value of each channel in the training part.
        high: (C,), the largest.
        draw: source of the noise.

    Returns:
        (N, C, *S) in units of the range high - low (1 where a channel is constant).
    """
    shape = (1, -1, *[1] * (x.ndim - 2))
    span = np.where(high > low, high - low, 1.0).reshape(shape)
    moved = np.empty(x.shape, dtype=np.float32)
    for i, name in enumerate(names):
        unit = (x[domain == i].astype(np.float64) - low.reshape(shape)) / span
        moved[domain == i] = DOMAINS[name](unit, draw)
    return moved
