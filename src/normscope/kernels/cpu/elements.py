"""What is done to single values: activations and their slopes, and tables of any dtype."""

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from normscope.kernels.cpu.memory import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    load,
    power_of_two,
    store,
)

# nnan and ninf are left out: NaN and infinities keep their meaning
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "fastmath": {"reassoc", "nsz", "arcp", "contract"},
    "error_model": "numpy",
}
AS_WRITTEN = OPTIONS | {"fastmath": {"contract"}}  # sums that must keep their order

# the same to the bit wherever they are compiled, alone or in a loop
TO_THE_BIT = OPTIONS | {"fastmath": False}

# activations are told apart by type, so that each loop is compiled for one
LINEAR, RELU, LEAKY_RELU, SILU = np.int8(0), np.int16(0), np.int32(0), np.int64(0)
LEAK = 0.01  # torch's default slope


def bytes_of(like: Any) -> int:
    """The size of a value in memory."""
    raise NotImplementedError("compiled only")


@overload(bytes_of, strict=False)
def _bytes_of(like: Any) -> Any:
    size = {types.float64: 8, types.float32: 4}.get(like, 2)
    return lambda like: size


@njit(**AS_WRITTEN)
def _exp32(x: Any) -> Any:
    """exp of a float32 to 2 ulp, clamped at -87, inf from 88.4 on; no call, so loops vectorise.

    Cody and Waite 1980: x = n log 2 + r, with log 2 in two parts, and a polynomial in r.
    """
    x = x if x > np.float32(-87.0) else np.float32(-87.0)  # NaN too; it returns with the factor u
    x = x if x < np.float32(89.0) else np.float32(89.0)
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = (x - n * np.float32(0.693359375)) - n * np.float32(-2.12194440e-4)
    p = np.float32(1.98756915e-4)
    p = p * r + np.float32(1.39819995e-3)
    p = p * r + np.float32(8.33345191e-3)
    p = p * r + np.float32(4.16657959e-2)
    p = p * r + np.float32(1.66666655e-1)
    p = p * r + np.float32(0.5)
    return ((p * r) * r + r + np.float32(1)) * power_of_two(n)


def _sigmoid(u: Any) -> Any:
    raise NotImplementedError("compiled only")


@overload(_sigmoid, strict=False)
def _sigmoid_of(u: Any) -> Any:
    if u == types.float32:
        return lambda u: np.float32(1) / (np.float32(1) + _exp32(-u))
    return lambda u: 1.0 / (1.0 + np.exp(-u))


def activate(u: Any, act: Any) -> Any:
    """act(u)."""
    raise NotImplementedError("compiled only")


@overload(activate, strict=False)
def _activate(u: Any, act: Any) -> Any:
    exact = np.float32 if u == types.float32 else np.float64
    zero, leak = exact(0), exact(LEAK)
    if act == types.int16:
        return lambda u, act: zero if u <= zero else u  # so NaN passes
    if act == types.int32:
        return lambda u, act: u if u > zero else u * leak
    if act == types.int64:
        return lambda u, act: u * _sigmoid(u)
    return lambda u, act: u


def through(g: Any, u: Any, act: Any) -> Any:
    """g times the derivative of act at u."""
    raise NotImplementedError("compiled only")


@overload(through, strict=False)
def _through(g: Any, u: Any, act: Any) -> Any:
    exact = np.float32 if u == types.float32 else np.float64
    zero, one, leak = exact(0), exact(1), exact(LEAK)
    if act == types.int16:
        # a plain 0 in place of the product becomes a branch, which does not vectorise
        return lambda g, u, act: g if u > zero else g * zero
    if act == types.int32:
        return lambda g, u, act: g if u > zero else g * leak
    if act == types.int64:

        def silu(g: Any, u: Any, act: Any) -> Any:
            s = _sigmoid(u)
            return g * (s * (one + u * (one - s)))

        return silu
    return lambda g, u, act: g


@njit(**OPTIONS)
def table_load(address: int, index: int, code: int) -> Any:
    """Entry of a table whose dtype is told by its code, see slots.CODES."""
    if code == 0:
        return np.float64(load(address, index, FLOAT32))
    if code == 1:
        return load(address, index, FLOAT64)
    if code == 2:
        return np.float64(load(address, index, BFLOAT16))
    return np.float64(load(address, index, FLOAT16))


@njit(**OPTIONS)
def table_store(address: int, index: int, value: float, code: int) -> None:
    """Write such an entry."""
    if code == 0:
        store(address, index, np.float32(value), FLOAT32)
    elif code == 1:
        store(address, index, value, FLOAT64)
    elif code == 2:
        store(address, index, np.float32(value), BFLOAT16)
    else:
        store(address, index, np.float32(value), FLOAT16)
