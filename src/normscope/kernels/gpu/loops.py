"""The Triton programs: each takes tiles (channels, points) of one chunk, or one tile of a map.

Tables of statistics are float64. Tiles are summed in float32 (float64 for float64 values), by a
tree; what a tile gives is added up in float64, in a fixed order, without atomics. Lanes outside
the tensor or under the mask load nothing, count nothing and are never multiplied away.

Shared arguments:
    mask: (N, S) uint8, or None.   order, table, ends: see cutting.Chunks, or None for one group.
    positions, points, chunk: S, N * S, points of a chunk.
    by_n, by_c, by_s: strides of x in values.
"""

import triton
import triton.language as tl

LEAK = tl.constexpr(0.01)  # torch's default slope


@triton.jit
def _place(channels, BLOCK_C: tl.constexpr):
    """Which item this program has, and its channels: indices (BLOCK_C, 1), and which exist."""
    blocks = tl.cdiv(channels, BLOCK_C)
    item = tl.program_id(0) // blocks
    c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    c = c.to(tl.int64)[:, None]
    return item, c, c < channels


@triton.jit
def _chunk(table, item, positions, points, chunk):
    """Group, first place in order, first position there, and number of points of a chunk."""
    if table is not None:
        row = table + item.to(tl.int64) * 4
        group, place = tl.load(row), tl.load(row + 1)
        position, length = tl.load(row + 2), tl.load(row + 3)
    else:
        first = item.to(tl.int64) * chunk
        group = first * 0
        place, position = first // positions, first % positions
        length = tl.minimum(points - first, chunk)
    return group, place, position.to(tl.int32), length.to(tl.int32)


@triton.jit
def _points(order, place, position, first, length, positions, BLOCK_P: tl.constexpr):
    """Sample and position of a tile's points, int64 (1, BLOCK_P), and which exist."""
    lane = first + tl.arange(0, BLOCK_P)[None, :]
    exists = lane < length
    sample = place + (position + lane) // positions
    if order is not None:
        sample = tl.load(order + sample, mask=exists, other=0)
    return sample.to(tl.int64), ((position + lane) % positions).to(tl.int64), exists


@triton.jit
def _kept(mask, sample, position, exists, positions):
    """Which of the points count."""
    if mask is not None:
        flags = tl.load(mask + (sample * positions + position), mask=exists, other=0)
        exists = exists & (flags != 0)
    return exists


@triton.jit
def _merged(n, mean, m2, more, other, other_m2):
    """The moments of two sets together (Chan, Golub, LeVeque 1979)."""
    total = n + more
    step, share = other - mean, more / tl.where(total > 0, total, 1.0)
    # n * share first: it is 0 for an empty set, however large the step is
    return total, mean + step * share, m2 + other_m2 + step * (n * share * step)


@triton.jit
def moments(
    x,
    mask,
    order,
    table,
    counts,
    means,
    m2s,
    channels,
    positions,
    points,
    chunk,
    by_n,
    by_c,
    by_s,
    WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Count (chunks,), mean and m2 (chunks, C) of each chunk.

    A tile is centred by its own mean before it is squared; what rounding left in that mean is
    taken out of its sums.
    """
    item, c, some = _place(channels, BLOCK_C)
    _, place, position, length = _chunk(table, item, positions, points, chunk)
    n = tl.zeros([1, 1], tl.float64)
    mean = tl.zeros([BLOCK_C, 1], tl.float64)
    m2 = tl.zeros([BLOCK_C, 1], tl.float64)
    for first in range(0, length, BLOCK_P):
        sample, s, exists = _points(order, place, position, first, length, positions, BLOCK_P)
        kept = _kept(mask, sample, s, exists, positions)
        inside = some & kept
        v = tl.load(x + (sample * by_n + s * by_s + c * by_c), mask=inside, other=0.0).to(WIDE)
        more = tl.sum(kept.to(tl.float32), axis=1, keep_dims=True)
        size = tl.where(more > 0, more, 1.0)
        centre = tl.sum(v * (1.0 / size).to(WIDE), axis=1, keep_dims=True)  # a sum may overflow
        d = tl.where(inside, v - centre, 0.0)
        size = size.to(tl.float64)
        rest = tl.sum(d, axis=1, keep_dims=True).to(tl.float64)
        square = tl.sum(d * d, axis=1, keep_dims=True).to(tl.float64)
        other = centre.to(tl.float64) + rest / size
        n, mean, m2 = _merged(
            n, mean, m2, more.to(tl.float64), other, square - rest * (rest / size)
        )
    row = item.to(tl.int64)
    tl.store(counts + row + c * 0, n + c * 0, mask=c == 0)  # alike in all channels
    tl.store(means + row * channels + c, mean, mask=some)
    tl.store(m2s + row * channels + c, m2, mask=some)


@triton.jit
def merge_moments(
    counts,
    means,
    m2s,
    ends,
    count_out,
    mean_out,
    m2_out,
    channels,
    chunks,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Count (K,), mean and m2 (K, C) of each group: its chunks together."""
    group, c, some = _place(channels, BLOCK_C)
    low, high = _range(ends, group, chunks)
    n = tl.zeros([1, 1], tl.float64)
    mean = tl.zeros([BLOCK_C, 1], tl.float64)
    m2 = tl.zeros([BLOCK_C, 1], tl.float64)
    for first in range(low, high, BLOCK_K):
        row = (first + tl.arange(0, BLOCK_K)).to(tl.int64)[None, :]
        exists = row < high
        inside = some & exists
        size = tl.load(counts + row, mask=exists, other=0.0)
        means_ = tl.load(means + row * channels + c, mask=inside, other=0.0)
        more = tl.sum(size, axis=1, keep_dims=True)
        other = tl.sum(means_ * (size / tl.where(more > 0, more, 1.0)), axis=1, keep_dims=True)
        off = tl.where(inside, means_ - other, 0.0)
        inner = tl.load(m2s + row * channels + c, mask=inside, other=0.0)
        n, mean, m2 = _merged(
            n, mean, m2, more, other, tl.sum(inner + off * (off * size), axis=1, keep_dims=True)
        )
    group = group.to(tl.int64)
    tl.store(count_out + group + c * 0, n + c * 0, mask=c == 0)
    tl.store(mean_out + group * channels + c, mean, mask=some)
    tl.store(m2_out + group * channels + c, m2, mask=some)


@triton.jit
def _range(ends, group, chunks):
    """The first chunk of a group, and the end."""
    if ends is not None:
        low = tl.load(ends + group).to(tl.int32)
        high = tl.load(ends + group + 1).to(tl.int32)
    else:
        low = group * 0
        high = low + chunks
    return low, high


@triton.jit
def _coefficient(tables, which, size, entry, there):
    """One of the tables of coefficients at `entry`, a row and a channel."""
    return tl.load(tables + (size * which + entry), mask=there, other=0.0)


@triton.jit
def _linear(x, residual, tables, size, entry, there, at, inside, WIDE: tl.constexpr):
    """x - m, a, and what the activation gets: (x - m) a + b + residual."""
    d = tl.load(x + at, mask=inside, other=0.0).to(WIDE)
    d = d - _coefficient(tables, 0, size, entry, there)
    a = _coefficient(tables, 1, size, entry, there)
    u = d * a + _coefficient(tables, 2, size, entry, there)
    if residual is not None:
        u += tl.load(residual + at, mask=inside, other=0.0).to(WIDE)
    return d, a, u


@triton.jit
def _activated(u, ACT: tl.constexpr):
    if ACT == "relu":
        u = tl.where(u <= 0, 0.0, u)  # so NaN passes
    elif ACT == "leaky_relu":
        u = tl.where(u > 0, u, u * LEAK)
    elif ACT == "silu":
        u = u / (1.0 + tl.exp(-u))
    return u


@triton.jit
def _through(g, u, ACT: tl.constexpr):
    """g times the derivative of the activation at u."""
    if ACT == "relu":
        g = tl.where(u <= 0, 0.0, g)
    elif ACT == "leaky_relu":
        g = tl.where(u > 0, g, g * LEAK)
    elif ACT == "silu":
        sigmoid = 1.0 / (1.0 + tl.exp(-u))
        g = g * (sigmoid * (1.0 + u * (1.0 - sigmoid)))
    return g


@triton.jit
def gradient_sums(
    dy,
    x,
    residual,
    tables,
    mask,
    order,
    table,
    sums,
    sums_d,
    channels,
    positions,
    points,
    chunk,
    by_n,
    by_c,
    by_s,
    size,
    ACT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Sums of g and of g (x - m) of each chunk, (chunks, C); `tables` (3, R, C), size R * C."""
    item, c, some = _place(channels, BLOCK_C)
    group, place, position, length = _chunk(table, item, positions, points, chunk)
    entry = group * channels + c
    total = tl.zeros([BLOCK_C, 1], tl.float64)
    total_d = tl.zeros([BLOCK_C, 1], tl.float64)
    for first in range(0, length, BLOCK_P):
        sample, s, exists = _points(order, place, position, first, length, positions, BLOCK_P)
        inside = some & _kept(mask, sample, s, exists, positions)
        at = sample * by_n + s * by_s + c * by_c
        d, _, u = _linear(x, residual, tables, size, entry, some, at, inside, WIDE)
        g = _through(tl.load(dy + at, mask=inside, other=0.0).to(WIDE), u, ACT)
        g = tl.where(inside, g, 0.0)
        d = tl.where(inside, d, 0.0)
        total += tl.sum(g, axis=1, keep_dims=True).to(tl.float64)
        total_d += tl.sum(g * d, axis=1, keep_dims=True).to(tl.float64)
    here = item.to(tl.int64) * channels + c
    tl.store(sums + here, total, mask=some)
    tl.store(sums_d + here, total_d, mask=some)


@triton.jit
def merge_sums(
    sums,
    sums_d,
    ends,
    sum_out,
    sum_d_out,
    channels,
    chunks,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Both sums of each group, (R, C): those of its chunks added up."""
    group, c, some = _place(channels, BLOCK_C)
    low, high = _range(ends, group, chunks)
    total = tl.zeros([BLOCK_C, 1], tl.float64)
    total_d = tl.zeros([BLOCK_C, 1], tl.float64)
    for first in range(low, high, BLOCK_K):
        row = (first + tl.arange(0, BLOCK_K)).to(tl.int64)[None, :]
        inside = some & (row < high)
        here = row * channels + c
        total += tl.sum(tl.load(sums + here, mask=inside, other=0.0), axis=1, keep_dims=True)
        total_d += tl.sum(tl.load(sums_d + here, mask=inside, other=0.0), axis=1, keep_dims=True)
    here = group.to(tl.int64) * channels + c
    tl.store(sum_out + here, total, mask=some)
    tl.store(sum_d_out + here, total_d, mask=some)


@triton.jit
def _tile(
    groups,
    mask,
    item,
    c,
    some,
    channels,
    positions,
    points,
    by_n,
    by_c,
    by_s,
    BLOCK_P: tl.constexpr,
):
    """Of a map's tile: where its values are, which exist and count, and their coefficients."""
    first = item.to(tl.int64) * BLOCK_P
    place, position = first // positions, (first % positions).to(tl.int32)
    length = tl.minimum(points - first, BLOCK_P).to(tl.int32)
    sample, s, exists = _points(None, place, position, 0, length, positions, BLOCK_P)
    at = sample * by_n + s * by_s + c * by_c
    there, inside = some & exists, some & _kept(mask, sample, s, exists, positions)
    if groups is not None:
        entry = tl.load(groups + sample, mask=exists, other=0) * channels + c
        known = there
    else:
        entry = c
        known = some
    return at, there, inside, entry, known


@triton.jit
def normalize(
    x,
    residual,
    y,
    tables,
    groups,
    mask,
    channels,
    positions,
    points,
    by_n,
    by_c,
    by_s,
    size,
    ACT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """y = act((x - m) a + b + residual); masked values become zero."""
    item, c, some = _place(channels, BLOCK_C)
    at, there, inside, entry, known = _tile(
        groups, mask, item, c, some, channels, positions, points, by_n, by_c, by_s, BLOCK_P
    )
    _, _, u = _linear(x, residual, tables, size, entry, known, at, inside, WIDE)
    u = tl.where(inside, _activated(u, ACT), 0.0)
    tl.store(y + at, u.to(y.dtype.element_ty), mask=there)


@triton.jit
def gradient(
    dy,
    x,
    residual,
    dx,
    dresidual,
    tables,
    groups,
    mask,
    channels,
    positions,
    points,
    by_n,
    by_c,
    by_s,
    size,
    ACT: tl.constexpr,
    FROM_X: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dx = g a + (x - m) gb + gc and dresidual = g; masked values get zero.

    FROM_X: the statistics came from x; without, gb and gc do not exist.
    """
    item, c, some = _place(channels, BLOCK_C)
    at, there, inside, entry, known = _tile(
        groups, mask, item, c, some, channels, positions, points, by_n, by_c, by_s, BLOCK_P
    )
    d, a, u = _linear(x, residual, tables, size, entry, known, at, inside, WIDE)
    g = _through(tl.load(dy + at, mask=inside, other=0.0).to(WIDE), u, ACT)
    change = g * a
    if FROM_X:
        gb = _coefficient(tables, 3, size, entry, known)
        change += d * gb + _coefficient(tables, 4, size, entry, known)
    change = tl.where(inside, change, 0.0)
    tl.store(dx + at, change.to(dx.dtype.element_ty), mask=there)
    if dresidual is not None:
        g = tl.where(inside, g, 0.0)
        tl.store(dresidual + at, g.to(dresidual.dtype.element_ty), mask=there)
