"""Many channels side by side in memory: what `channel` does for one, in loops that vectorise.

Each loop writes one table, so that few addresses are to be told apart before it.
"""

from typing import Any

from numba import njit

from normscope.kernels.cpu import slots as at
from normscope.kernels.cpu.channel import (
    centre,
    chunk,
    finish,
    finish_gradients,
    inverse_deviation,
    place,
    update_running,
    values,
)
from normscope.kernels.cpu.elements import OPTIONS, TO_THE_BIT, bytes_of, table_load, table_store
from normscope.kernels.cpu.memory import FLOAT64, load, load_integer, store, wide, working

BLOCK = 64  # channels


@njit(**OPTIONS)
def merge(p: int, block: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """Of a block of channels: the moments of all chunks in PARTIAL, and what follows from them.

    The chunks of a group are merged into its first one.
    """
    partial, width = load_integer(p, at.PARTIAL), load_integer(p, at.WIDTH)
    low, high = _extent(p, block)
    i, chunks, groups = 0, load_integer(p, at.NUM_CHUNKS), load_integer(p, at.K)
    for k in range(groups):
        first, n = partial + 24 * i * width, 0.0
        while i < chunks and (groups == 1 or chunk(p, i)[0] == k):
            here, more = partial + 24 * i * width, values(p, i)
            if n == 0:
                first = here
            elif more > 0:
                _merge_chunk(first, here, width, low, high, n, more)
            n += more
            i += 1
        if n > 0 and _side_by_side(p, k):
            _finish(p, k, low, high, first, first + 8 * width)
        else:
            for c in range(low, high):
                mean = m2 = 0.0
                if n > 0:
                    mean, m2 = load(first, c, FLOAT64), load(first, width + c, FLOAT64)
                finish(p, c, k, mean, m2)
    if groups == 1:  # then channels are always side by side
        _update_running(p, low, high)
    else:
        for c in range(low, high):
            update_running(p, c)


@njit(**OPTIONS)
def _extent(p: int, block: int) -> Any:
    low = block * BLOCK
    return low, min(low + BLOCK, load_integer(p, at.C))


@njit(**OPTIONS)
def _side_by_side(p: int, k: int) -> Any:
    """Whether channels of a group do, and nothing but its own values counts in it."""
    count = load(load_integer(p, at.COUNT), k, FLOAT64)
    filled = load(load_integer(p, at.FILLED), k, FLOAT64)
    return load_integer(p, at.TABLE_C) == 1 and count >= filled


@njit(**TO_THE_BIT)
def _merge_chunk(into: int, other: int, width: int, low: int, high: int, n: Any, more: Any) -> None:
    """`merged` for some channels: rows of means and m2 of a chunk into those of another."""
    share = more / (n + more)
    for c in range(low, high):
        mean = load(into, c, FLOAT64)
        step = load(other, c, FLOAT64) - mean
        m2 = load(into, width + c, FLOAT64) + load(other, width + c, FLOAT64)
        store(into, c, mean + step * share, FLOAT64)
        store(into, width + c, m2 + step * step * share * n, FLOAT64)


@njit(**OPTIONS)
def _finish(p: int, k: int, low: int, high: int, mean: int, m2: int) -> None:
    """`finish` of a group's channels from rows of their moments."""
    skip = 8 * place(p, 0, k)
    keep_moments(p, skip, low, high, mean, m2)
    if load_integer(p, at.RSTD) == 0:
        return
    rstd, eps = load_integer(p, at.RSTD) + skip, load(load_integer(p, at.EPS), 0, FLOAT64)
    filled = load(load_integer(p, at.FILLED), k, FLOAT64)
    for c in range(low, high):
        store(rstd, c, inverse_deviation(load(m2, c, FLOAT64) / filled, eps), FLOAT64)


@njit(**OPTIONS)
def keep_moments(p: int, skip: int, low: int, high: int, mean: int, m2: int) -> None:
    """Rows of a batch's moments into the tables, `skip` bytes behind where those begin."""
    copy(mean, load_integer(p, at.BATCH_MEAN) + skip, low, high)
    copy(m2, load_integer(p, at.BATCH_M2) + skip, low, high)
    if load_integer(p, at.RSTD) != 0:
        copy(mean, load_integer(p, at.MEAN) + skip, low, high)


@njit(**OPTIONS)
def copy(row: int, into: int, low: int, high: int) -> None:
    """Entries of a row into another."""
    for c in range(low, high):
        store(into, c, load(row, c, FLOAT64), FLOAT64)


@njit(**OPTIONS)
def _update_running(p: int, low: int, high: int) -> None:
    """`update_running` where the batch is one group."""
    shares, n = load_integer(p, at.SHARE), load(load_integer(p, at.COUNT), 0, FLOAT64)
    if shares == 0 or n <= 1:
        return  # no update, or no unbiased variance
    share = load(shares, 0, FLOAT64)
    code = load_integer(p, at.RUNNING_DTYPE)
    mean, var = load_integer(p, at.RUNNING_MEAN), load_integer(p, at.RUNNING_VAR)
    _move(mean, load_integer(p, at.BATCH_MEAN), low, high, share, 1.0, code)
    _move(var, load_integer(p, at.BATCH_M2), low, high, share, n - 1, code)


@njit(**OPTIONS)
def _move(into: int, row: int, low: int, high: int, share: float, n: float, code: int) -> None:
    """into = (1 - share) * into + share * row / n."""
    for c in range(low, high):
        now = load(row, c, FLOAT64) / n
        table_store(into, c, (1 - share) * table_load(into, c, code) + share * now, code)


@njit(**OPTIONS)
def prepare(p: int, r: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """The `coefficients` of a group, side by side and once per folded row."""
    channels, width = load_integer(p, at.C), load_integer(p, at.WIDTH)
    size = width * bytes_of(wide(like))
    m = load_integer(p, at.COEFFICIENTS) + 5 * r * size
    a, b, gb, gc = m + size, m + 2 * size, m + 3 * size, m + 4 * size
    skip = 8 * place(p, 0, r if load_integer(p, at.K) > 1 else 0)
    mean, rstd = load_integer(p, at.MEAN) + skip, load_integer(p, at.RSTD) + skip
    mean_g, mean_gx = load_integer(p, at.MEAN_G) + skip, load_integer(p, at.MEAN_G_XHAT) + skip
    first = r * channels if load_integer(p, at.AFFINE_ROWS) > 1 else 0
    weight, bias = load_integer(p, at.WEIGHT), load_integer(p, at.BIAS)
    code, batch = load_integer(p, at.AFFINE_DTYPE), load_integer(p, at.MEAN_G) != 0
    for c in range(channels):
        store(m, c, working(centre(load(mean, c, FLOAT64)), like), wide(like))
    for c in range(channels):
        scale = 1.0 if weight == 0 else table_load(weight, first + c, code)
        store(a, c, working(scale * load(rstd, c, FLOAT64), like), wide(like))
    for c in range(channels):
        scale = 1.0 if weight == 0 else table_load(weight, first + c, code)
        shift = 0.0 if bias == 0 else table_load(bias, first + c, code)
        lost = centre(load(mean, c, FLOAT64)) - load(mean, c, FLOAT64)
        store(b, c, working(shift + lost * (scale * load(rstd, c, FLOAT64)), like), wide(like))
    if batch:
        for c in range(channels):
            root = load(rstd, c, FLOAT64)
            store(gb, c, working(-root * root * load(mean_gx, c, FLOAT64), like), wide(like))
        for c in range(channels):
            root = load(rstd, c, FLOAT64)
            lost = centre(load(mean, c, FLOAT64)) - load(mean, c, FLOAT64)
            slope = -root * root * load(mean_gx, c, FLOAT64)
            constant = lost * slope - root * load(mean_g, c, FLOAT64)
            store(gc, c, working(constant, like), wide(like))
    else:
        for c in range(channels):
            store(gb, c, working(0.0, like), wide(like))
            store(gc, c, working(0.0, like), wide(like))
    for row in (m, a, b, gb, gc):
        for c in range(channels, width):
            store(row, c, load(row, c - channels, wide(like)), wide(like))


@njit(**OPTIONS)
def merge_gradients(p: int, block: int, residual: Any, mask: Any, act: Any, like: Any) -> None:
    """Of a block of channels: the sums of all chunks in PARTIAL, and what follows from them."""
    partial, width = load_integer(p, at.PARTIAL), load_integer(p, at.WIDTH)
    low, high = _extent(p, block)
    i, chunks, groups = 0, load_integer(p, at.NUM_CHUNKS), load_integer(p, at.R)
    for r in range(groups):
        first, begun = partial + 24 * i * width, False
        while i < chunks and chunk(p, i)[0] == r:
            here = partial + 24 * i * width
            if begun:
                _add_chunk(first, here, low, high)
                _add_chunk(first + 8 * width, here + 8 * width, low, high)
            begun = True
            i += 1
        for c in range(low, high):
            s = q = 0.0
            if begun:
                s, q = load(first, c, FLOAT64), load(first, width + c, FLOAT64)
            store(load_integer(p, at.SUM_G), place(p, c, r), s, FLOAT64)
            store(load_integer(p, at.SUM_G_XHAT), place(p, c, r), q, FLOAT64)
    if groups == 1:
        _finish_gradients(p, low, high)
    else:
        for c in range(low, high):
            finish_gradients(p, c)


@njit(**OPTIONS)
def _add_chunk(into: int, other: int, low: int, high: int) -> None:
    for c in range(low, high):
        store(into, c, load(into, c, FLOAT64) + load(other, c, FLOAT64), FLOAT64)


@njit(**OPTIONS)
def _finish_gradients(p: int, low: int, high: int) -> None:
    """`finish_gradients` where all samples share one row of each table."""
    sums, sums_xhat = load_integer(p, at.SUM_G), load_integer(p, at.SUM_G_XHAT)
    code = load_integer(p, at.AFFINE_DTYPE)
    _give(sums_xhat, load_integer(p, at.DWEIGHT), low, high, code)
    _give(sums, load_integer(p, at.DBIAS), low, high, code)
    if load_integer(p, at.MEAN_G) != 0:
        filled = load(load_integer(p, at.FILLED), 0, FLOAT64)
        weight = load_integer(p, at.WEIGHT)
        _weigh(sums, load_integer(p, at.MEAN_G), low, high, weight, code, filled)
        _weigh(sums_xhat, load_integer(p, at.MEAN_G_XHAT), low, high, weight, code, filled)


@njit(**OPTIONS)
def _give(row: int, into: int, low: int, high: int, code: int) -> None:
    """A row into a table of any dtype, if there is one."""
    if into != 0:
        for c in range(low, high):
            table_store(into, c, load(row, c, FLOAT64), code)


@njit(**OPTIONS)
def _weigh(row: int, into: int, low: int, high: int, weight: int, code: int, filled: float) -> None:
    """into = weight * row / filled."""
    for c in range(low, high):
        scale = 1.0 if weight == 0 else table_load(weight, c, code)
        store(into, c, scale * load(row, c, FLOAT64) / filled, FLOAT64)
