"""The Triton programs that go over values: sums of a chunk, and maps.

Values lie in rows of C * S: samples of (C, S), or points of (C) with S = 1 where channels lie side
by side. A lane keeps its place in the row over all rows of a chunk, so it has one channel, reads
whole vectors, and adds up what it meets; lanes of a channel are joined once, by a tree. A chunk
has one group. There are no atomics: two runs give the same bits. Lanes outside the tensor load
nothing; what they or the mask leave out is replaced, never multiplied away.

Shared arguments:
    mask: (N, positions) uint8, or None.   order, starts: see merging.arrange, or None.
    rows, chunk: how many there are, and in a chunk.   groups: how many `starts` tells apart.
    C, S, P: channels, positions of a channel in a row, rows of a sample.
    SLOTS: blocks of lanes that a channel may reach into.   plane: values of one of the parts.
"""

import triton
import triton.language as tl

LEAK = tl.constexpr(0.01)  # torch's default slope


@triton.jit
def _chunk(starts, item, rows, chunk, groups, P: tl.constexpr, BLOCK_K: tl.constexpr):
    """Group, first row in order, and number of rows of a chunk; no rows where it is not needed."""
    if starts is None:
        group, first = item * 0, item.to(tl.int64) * chunk
        end = rows + first * 0
    else:
        group, low, before = item * 0, item * 0, item * 0  # low: the first chunk of the group
        for k in range(0, groups, BLOCK_K):
            k_ = k + tl.arange(0, BLOCK_K)
            ends = before + tl.cumsum(_pieces(starts, k_, groups, chunk, P))
            past = (ends <= item) & (k_ < groups)
            group += tl.sum(past.to(tl.int32))
            low = tl.maximum(low, tl.max(tl.where(past, ends, 0)))
            before = tl.max(ends)
        there = group < groups
        first = tl.load(starts + group, mask=there, other=0).to(tl.int64) * P
        first += (item - low).to(tl.int64) * chunk
        end = tl.load(starts + group + 1, mask=there, other=0).to(tl.int64) * P
    return group, first, tl.maximum(tl.minimum(end - first, chunk), 0).to(tl.int32)


@triton.jit
def _pieces(starts, k, groups, chunk, P: tl.constexpr):
    """Chunks of groups k."""
    begin = tl.load(starts + k, mask=k < groups, other=0).to(tl.int64)
    end = tl.load(starts + k + 1, mask=k < groups, other=0).to(tl.int64)
    return (((end - begin) * P + chunk - 1) // chunk).to(tl.int32)


@triton.jit
def _lanes(item, LENGTH: tl.constexpr, BLOCK_E: tl.constexpr):
    """Find this program's chunk, block of lanes, places of the lanes in a row, and which exist."""
    blocks: tl.constexpr = (LENGTH + BLOCK_E - 1) // BLOCK_E
    block = item % blocks
    e = block * BLOCK_E + tl.arange(0, BLOCK_E)[None, :]
    return item // blocks, block, e, e < LENGTH


@triton.jit
def _rows(order, first, q, length, P: tl.constexpr, BLOCK_R: tl.constexpr):
    """Rows (BLOCK_R, 1) from the q-th of a chunk, int64, and which exist."""
    lane = q + tl.arange(0, BLOCK_R)[:, None]
    exists = lane < length
    if order is None:
        row = first + lane
    else:
        place = (first % P).to(tl.int32) + lane
        row = tl.load(order + (first // P + place // P), mask=exists, other=0).to(tl.int64) * P
        row += place % P
    return row, exists


@triton.jit
def _kept(mask, row, e, exists, some, S: tl.constexpr):
    """Which values count: as rows where it is the same for all lanes of a row."""
    if mask is not None:
        if S == 1:
            exists = exists & (tl.load(mask + row, mask=exists, other=0) != 0)
        else:
            here = exists & some
            exists = here & (tl.load(mask + (row * S + e % S), mask=here, other=0) != 0)
    return exists


@triton.jit
def _ends(e, block, S: tl.constexpr, BLOCK_E: tl.constexpr):
    """Which lanes are the last of their channel in this block."""
    return (e % S == S - 1) | (e == block * BLOCK_E + BLOCK_E - 1)


@triton.jit
def _joined(c, n, centre, mean, m2, c2, n2, centre2, mean2, m22):
    """Merge the moments of adjacent lanes, where of one channel (Chan, Golub, LeVeque 1979)."""
    same, total = c == c2, n + n2
    share = n2 / tl.where(total > 0, total, 1.0)
    step = (centre2 - centre) + (mean2 - mean)
    return (
        c2,
        tl.where(same, total, n2),
        tl.where(same, centre, centre2),
        tl.where(same, mean + step * share, mean2),
        # n * share first: it is 0 for an empty set, however large the step is
        tl.where(same, m2 + m22 + step * (n * share * step), m22),
    )


@triton.jit
def _added(c, g, gd, c2, g2, gd2):
    """Add the sums of adjacent lanes, where of one channel."""
    return c2, tl.where(c == c2, g + g2, g2), tl.where(c == c2, gd + gd2, gd2)


@triton.jit
def moments(
    x, mask, order, starts, parts, plane, rows, chunk, groups,
    C: tl.constexpr, S: tl.constexpr, P: tl.constexpr, SLOTS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Count, mean and m2 of each chunk, (3, chunks * SLOTS, C).

    A lane takes its first value off all others before it averages them (Welford 1962): a mean that
    is large beside the spread costs no digits.
    """
    item, block, e, some = _lanes(tl.program_id(0), C * S, BLOCK_E)
    _, first, length = _chunk(starts, item, rows, chunk, groups, P, BLOCK_K)
    if mask is not None and S > 1:
        n = tl.zeros([BLOCK_R, BLOCK_E], WIDE)
    else:
        n = tl.zeros([BLOCK_R, 1], WIDE)
    base = tl.zeros([BLOCK_R, BLOCK_E], WIDE)
    mean = tl.zeros([BLOCK_R, BLOCK_E], WIDE)
    m2 = tl.zeros([BLOCK_R, BLOCK_E], WIDE)
    for q in range(0, length, BLOCK_R):
        row, exists = _rows(order, first, q, length, P, BLOCK_R)
        inside = _kept(mask, row, e, exists, some, S)
        v = tl.load(x + (row * (C * S) + e), mask=exists & some, other=0.0).to(WIDE)
        if mask is not None:
            v = tl.where(inside, v, 0.0)
        base = tl.where(n == 0, v, base)
        n += inside.to(WIDE)
        share = 1.0 / tl.where(n > 0, n, 1.0)
        d = tl.where(inside, (v - base) - mean, 0.0)
        mean += d * share
        m2 += d * (d * (1.0 - share))
    total = tl.sum(n, axis=0, keep_dims=True)
    weight = n / tl.where(total > 0, total, 1.0)
    centre = tl.sum(base * weight, axis=0, keep_dims=True)
    mean += base - centre
    rest = tl.sum(mean * weight, axis=0, keep_dims=True)
    d = mean - rest
    m2 = tl.sum(m2 + d * (d * n), axis=0, keep_dims=True)
    c, total, last = e // S, total + tl.zeros([1, BLOCK_E], WIDE), some
    if S > 1:
        c, total, centre, rest, m2 = tl.associative_scan((c, total, centre, rest, m2), 1, _joined)
        last = some & _ends(e, block, S, BLOCK_E)
    at = parts + ((item.to(tl.int64) * SLOTS + (block - c * S // BLOCK_E)) * C + c)
    tl.store(at, total.to(tl.float64), mask=last)
    tl.store(at + plane, centre.to(tl.float64) + rest.to(tl.float64), mask=last)
    tl.store(at + 2 * plane, m2.to(tl.float64), mask=last)


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
def _row_of(tables, size, group, known, c, some, C: tl.constexpr):
    """m, a and b of a group's channels; NaN for a group that does not exist."""
    at, there = tables + (group * C + c), some & (group < known)
    m = tl.load(at, mask=there, other=float("nan"))
    a = tl.load(at + size, mask=there, other=float("nan"))
    return m, a, tl.load(at + 2 * size, mask=there, other=float("nan"))


@triton.jit
def _bytes(bits, row, e, LENGTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr):
    """Where the bits of eight lanes each are, and their numbers in a byte."""
    first = tl.min(e.reshape([1, BLOCK_E // 8, 8]), axis=2)
    at = bits + (row * ((LENGTH + 7) // 8) + first // 8)
    return at, first < LENGTH, tl.arange(0, 8)[None, None, :]


@triton.jit
def normalize(
    x, residual, y, bits, tables, size, known, mask, order, starts, tracked, times, counts, rows,
    chunk, groups, items,
    ACT: tl.constexpr, C: tl.constexpr, S: tl.constexpr, P: tl.constexpr, EACH: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y = act((x - m) a + b + residual); masked values become zero.

    bits: a bit per value, whether relu lets it through; or None. tracked: one more, or `times` of
    them where the count of their group (EACH) is above one; or None. The last chunk comes first:
    the sums have just read it.
    """
    item, _, e, some = _lanes(items - 1 - tl.program_id(0), C * S, BLOCK_E)
    group, first, length = _chunk(starts, item, rows, chunk, groups, P, BLOCK_K)
    m, a, b = _row_of(tables, size, group, known, e // S, some, C)
    for q in range(0, length, BLOCK_R):
        row, exists = _rows(order, first, q, length, P, BLOCK_R)
        kept = _kept(mask, row, e, exists, some, S)
        at, there = row * (C * S) + e, exists & some
        u = (tl.load(x + at, mask=there, other=0.0).to(WIDE) - m) * a + b
        if residual is not None:
            u += tl.load(residual + at, mask=there, other=0.0).to(WIDE)
        if bits is not None:
            byte, whole, number = _bytes(bits, row, e, C * S, BLOCK_R, BLOCK_E)
            flags = tl.where(u <= 0, 0, 1).reshape([BLOCK_R, BLOCK_E // 8, 8]) << number
            tl.store(byte, tl.sum(flags, axis=2).to(tl.uint8), mask=exists & whole)
        u = tl.where(kept, _activated(u, ACT), 0.0)
        tl.store(y + at, u.to(y.dtype.element_ty), mask=there)
    if tracked is not None and tl.program_id(0) == 0:
        for k in range(times):
            more = tl.load(counts + k) > 1 if EACH else True
            tl.store(tracked + k, tl.load(tracked + k) + more)


@triton.jit
def _gradient(
    dy, x, residual, bits, m, a, b, row, e, exists, some,
    ACT: tl.constexpr, WIDE: tl.constexpr, LENGTH: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Where values are, g behind the activation, and x - m."""
    at, there = row * LENGTH + e, exists & some
    g = tl.load(dy + at, mask=there, other=0.0).to(WIDE)
    d = tl.load(x + at, mask=there, other=0.0).to(WIDE) - m
    if bits is not None:
        byte, whole, number = _bytes(bits, row, e, LENGTH, BLOCK_R, BLOCK_E)
        flags = tl.load(byte, mask=exists & whole, other=0).to(tl.int32)
        flags = (flags.reshape([BLOCK_R, BLOCK_E // 8, 1]) >> number) & 1
        g = tl.where(flags.reshape([BLOCK_R, BLOCK_E]) != 0, g, 0.0)
    elif ACT is not None:
        u = d * a + b
        if residual is not None:
            u += tl.load(residual + at, mask=there, other=0.0).to(WIDE)
        g = _through(g, u, ACT)
    return at, g, d


@triton.jit
def gradient_sums(
    dy, x, residual, bits, tables, size, known, mask, order, starts, parts, plane, owners, rows,
    chunk, groups,
    ACT: tl.constexpr, C: tl.constexpr, S: tl.constexpr, P: tl.constexpr, SLOTS: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sum g and g (x - m) of each chunk, (2, chunks * SLOTS, C), and whose they are.

    owners: (chunks,) int32, the group; -1 for a chunk without rows.
    """
    item, block, e, some = _lanes(tl.program_id(0), C * S, BLOCK_E)
    group, first, length = _chunk(starts, item, rows, chunk, groups, P, BLOCK_K)
    if block == 0:
        tl.store(owners + item, tl.where(length > 0, group, -1))
    m, a, b = _row_of(tables, size, group, known, e // S, some, C)
    total = tl.zeros([BLOCK_R, BLOCK_E], WIDE)
    total_d = tl.zeros([BLOCK_R, BLOCK_E], WIDE)
    for q in range(0, length, BLOCK_R):
        row, exists = _rows(order, first, q, length, P, BLOCK_R)
        inside = _kept(mask, row, e, exists, some, S) & some
        _, g, d = _gradient(
            dy, x, residual, bits, m, a, b, row, e, exists, some,
            ACT, WIDE, C * S, BLOCK_R, BLOCK_E,
        )  # fmt: skip
        g = tl.where(inside, g, 0.0)
        total += g
        total_d += tl.where(inside, g * d, 0.0)
    c, last = e // S, some
    total = tl.sum(total, axis=0, keep_dims=True)
    total_d = tl.sum(total_d, axis=0, keep_dims=True)
    if S > 1:
        c, total, total_d = tl.associative_scan((c, total, total_d), 1, _added)
        last = some & _ends(e, block, S, BLOCK_E)
    at = parts + ((item.to(tl.int64) * SLOTS + (block - c * S // BLOCK_E)) * C + c)
    tl.store(at, total.to(tl.float64), mask=last)
    tl.store(at + plane, total_d.to(tl.float64), mask=last)


@triton.jit
def gradient(
    dy, x, residual, bits, dx, dresidual, tables, size, known, change, change_size, mask, order,
    starts, rows, chunk, groups, items,
    ACT: tl.constexpr, ONE: tl.constexpr, C: tl.constexpr, S: tl.constexpr, P: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dx = g a + (x - m) gb + gc and dresidual = g; masked values get zero.

    change: gb and gc, (2, 1 or K, C), one row for all groups where ONE; None where the statistics
    did not come from x. dx or dresidual may be None.
    """
    item, _, e, some = _lanes(items - 1 - tl.program_id(0), C * S, BLOCK_E)
    group, first, length = _chunk(starts, item, rows, chunk, groups, P, BLOCK_K)
    m, a, b = _row_of(tables, size, group, known, e // S, some, C)
    if change is not None:
        here = change + (e // S + (0 if ONE else group * C))
        gb = tl.load(here, mask=some & (group < known), other=0.0)
        gc = tl.load(here + change_size, mask=some & (group < known), other=0.0)
    for q in range(0, length, BLOCK_R):
        row, exists = _rows(order, first, q, length, P, BLOCK_R)
        inside = _kept(mask, row, e, exists, some, S) & some
        at, g, d = _gradient(
            dy, x, residual, bits, m, a, b, row, e, exists, some,
            ACT, WIDE, C * S, BLOCK_R, BLOCK_E,
        )  # fmt: skip
        there = exists & some
        if dx is not None:
            by_x = g * a
            if change is not None:
                by_x += d * gb + gc
            by_x = tl.where(inside, by_x, 0.0)
            tl.store(dx + at, by_x.to(dx.dtype.element_ty), mask=there)
        if dresidual is not None:
            g = tl.where(inside, g, 0.0)
            tl.store(dresidual + at, g.to(dresidual.dtype.element_ty), mask=there)
