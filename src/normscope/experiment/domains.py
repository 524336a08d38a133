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
    known = ", ".join(DOMAINS)
    for name in names:
        if name not in DOMAINS:
            raise InputError(f"there is no domain {name!r}; there are {known}")
    if len(set(names)) != len(names) or len(names) < 2:
        raise InputError(f"domains are {', '.join(names)}; name at least two different of {known}")


def shifted(
    x: NDArray[np.generic],
    domain: NDArray[np.int64],
    names: tuple[str, ...],
    like: NDArray[np.generic],
    draw: np.random.Generator,
) -> NDArray[np.float32]:
    """Move each sample of x, (N, C, *S), into its domain, (N,) indices into `names`.

    The result is in units of each channel's range in `like`, the training part (1 where that is
    constant); `draw` is the source of the noise.
    """
    axes = (0, *range(2, x.ndim))
    low, high = (f(axis=axes, keepdims=True).astype(np.float64) for f in (like.min, like.max))
    span = np.where(high > low, high - low, 1.0)
    moved = np.empty(x.shape, dtype=np.float32)
    for i, name in enumerate(names):
        unit = (x[domain == i].astype(np.float64) - low) / span
        moved[domain == i] = DOMAINS[name](unit, draw)
    return moved
