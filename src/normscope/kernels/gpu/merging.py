"""The small Triton programs between those over values: sorting samples, joining parts, tables.

Everything is float64 and in a fixed order. A program of a merge has a few channels and one group,
or all groups together, which is one item more: `pooled`. Parts are read a block at a time, each
joined at once, and the blocks one after the other.

Shared arguments:
    parts: (2 or 3, items * SLOTS, C), plane: values of one of them.   items: chunks.
    others: as in `loops`; BLOCK_E is that of the program that made the parts.
"""

import triton
import triton.language as tl

from normscope.kernels.gpu.loops import _pieces


@triton.jit
def arrange(
    groups, order, starts, samples, known, running_mean, running_var, kept, C,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sort samples by group: `order` (N,), and where each group `starts` in it, (K + 2,).

    One program per group counts what comes before it and puts down its own. Samples of a group
    that does not exist come last, as group K. The running statistics are copied to `kept` (2, C),
    float64, so that what fills small groups up does not move while they are filled.
    """
    k = tl.program_id(0)
    before = tl.zeros([BLOCK], tl.int32)
    for i in range(0, samples, BLOCK):
        sample = i + tl.arange(0, BLOCK)
        before += (_group(groups, sample, samples, known) < k).to(tl.int32)
    place = tl.sum(before)
    tl.store(starts + k, place)
    for i in range(0, samples, BLOCK):
        sample = i + tl.arange(0, BLOCK)
        mine = _group(groups, sample, samples, known) == k
        step = tl.cumsum(mine.to(tl.int32))
        tl.store(order + (place + step - 1), sample, mask=mine)
        place += tl.max(step)
    if k == known:
        tl.store(starts + k + 1, place)
    if kept is not None:
        for i in range(k * BLOCK, C, BLOCK * (known + 1)):
            c = i + tl.arange(0, BLOCK)
            mean = tl.load(running_mean + c, mask=c < C, other=0.0).to(tl.float64)
            var = tl.load(running_var + c, mask=c < C, other=0.0).to(tl.float64)
            tl.store(kept + c, mean, mask=c < C)
            tl.store(kept + C + c, var, mask=c < C)


@triton.jit
def _group(groups, sample, samples, known):
    """Load the groups of samples: `known` where it does not exist, more beyond the last sample."""
    group = tl.load(groups + sample, mask=sample < samples, other=0)
    group = tl.where((group < 0) | (group >= known), known, group)
    return tl.where(sample < samples, group, known + 1)


@triton.jit
def _place(C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Which group this program has, and its channels, (1, BLOCK_C), and which exist."""
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    return tl.program_id(0) // blocks, c, c < C


@triton.jit
def _range(starts, item, known, chunk, items, P: tl.constexpr, BLOCK_K: tl.constexpr):
    """Find the first chunk of a group and the end; all of them for the one beyond the last."""
    low, size = item * 0, item * 0 + items
    if starts is not None and item < known:
        size = item * 0
        for first in range(0, item + 1, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            pieces = _pieces(starts, k, known, chunk, P)
            low += tl.sum(tl.where(k < item, pieces, 0))
            size += tl.sum(tl.where(k == item, pieces, 0))
    return low, low + size


@triton.jit
def _part(part, c, some, high, S: tl.constexpr, SLOTS: tl.constexpr, BLOCK_E: tl.constexpr):
    """Which of these parts there are: a channel need not reach into as many blocks as another."""
    inside = some & (part < high * SLOTS)
    if SLOTS > 1:
        inside = inside & (part % SLOTS <= (c * S + S - 1) // BLOCK_E - c * S // BLOCK_E)
    return inside


@triton.jit
def _merged(n, mean, m2, more, other, other_m2):
    """Merge the moments of two sets together (Chan, Golub, LeVeque 1979)."""
    total = n + more
    step, share = other - mean, more / tl.where(total > 0, total, 1.0)
    return total, mean + step * share, m2 + other_m2 + step * (n * share * step)


@triton.jit
def _number(high, low):
    """Join a float64 that came as two float32: what a program is given as a number is one."""
    return tl.cast(high, tl.float64) + tl.cast(low, tl.float64)


@triton.jit
def _affine(table, row, c, there, C: tl.constexpr, ROWS: tl.constexpr, default):
    """Load a scale or a shift, of one row for all or one per group."""
    value = tl.full([1, 1], default, tl.float64)
    if table is not None:
        at = table + (c if ROWS == 1 else row * C + c)
        value = tl.load(at, mask=there, other=0.0).to(tl.float64)
    return value


@triton.jit
def _lost(mean, WIDE: tl.constexpr):
    """Return the mean as single values take it off, and what rounding it so has added."""
    m = mean.to(WIDE)
    lost = m.to(tl.float64) - mean
    return m, tl.where(tl.abs(lost) < float("inf"), lost, 0.0)


@triton.jit
def merge_moments(
    parts, plane, starts, known, chunk, items, count, found, used, tables, tables_size,
    weight, bias, running_mean, running_var, kept, tracked,
    eps, eps_low, momentum, momentum_low, min_count,
    GIVEN: tl.constexpr, UPDATE: tl.constexpr, OF_ALL: tl.constexpr, AVERAGE: tl.constexpr,
    EACH: tl.constexpr, ONE: tl.constexpr, ROWS: tl.constexpr, WEIGHTS: tl.constexpr,
    BIASES: tl.constexpr,
    C: tl.constexpr, S: tl.constexpr, P: tl.constexpr, SLOTS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Moments of each group, the update of the running statistics, and the tables of a map.

    Out: count (K,), found (2, K, C) mean and m2; used (3, K, C) mean, rstd and 1 / n that
    standardise; tables (3, ROWS, C) m, a, b with y = (x - m) a + b. m is the mean as the nearest
    number in which single values are calculated, so that x - m is exact near it; what is lost
    goes to b.

    GIVEN: the running statistics standardise and there are no parts. A group below min_count is
    filled up with pseudo-values that have the running mean and variance (`kept`, where all groups
    share one row). UPDATE: running statistics move, OF_ALL: one row, by the pooled moments.
    AVERAGE: momentum is 1 / tracked, where EACH one of each group. ONE: K is 1.
    """
    item, c, some = _place(C, BLOCK_C)
    n = tl.zeros([1, BLOCK_C], tl.float64)
    mean = tl.zeros([1, BLOCK_C], tl.float64)
    m2 = tl.zeros([1, BLOCK_C], tl.float64)
    if not GIVEN:
        low, high = _range(starts, item, known, chunk, items, P, BLOCK_K)
        for first in range(low * SLOTS, high * SLOTS, BLOCK_Q):
            part = first + tl.arange(0, BLOCK_Q)[:, None]
            inside = _part(part, c, some, high, S, SLOTS, BLOCK_E)
            at = parts + (part.to(tl.int64) * C + c)
            size = tl.load(at, mask=inside, other=0.0)
            means = tl.load(at + plane, mask=inside, other=0.0)
            inner = tl.load(at + 2 * plane, mask=inside, other=0.0)
            more = tl.sum(size, axis=0, keep_dims=True)
            share = size / tl.where(more > 0, more, 1.0)
            other = tl.sum(means * share, axis=0, keep_dims=True)
            off = tl.where(inside, means - other, 0.0)
            inner = tl.sum(inner + off * (off * size), axis=0, keep_dims=True)
            n, mean, m2 = _merged(n, mean, m2, more, other, inner)
    own = some & (item < known)
    row = item * C + c
    tl.store(count + item + c * 0, n, mask=own & (c == 0))
    tl.store(found + row, mean, mask=own)
    tl.store(found + (known * C + row), m2, mask=own)
    now, spread, size = mean, m2, n  # what moves the running statistics
    if GIVEN:
        mean = tl.load(running_mean + row, mask=own, other=0.0).to(tl.float64)
        var = tl.load(running_var + row, mask=own, other=0.0).to(tl.float64)
        inverse = n
    else:
        if min_count is not None:
            if kept is not None:
                old_mean = tl.load(kept + c, mask=some, other=0.0)
                old_var = tl.load(kept + C + c, mask=some, other=0.0)
            else:
                old_mean = tl.load(running_mean + row, mask=own, other=0.0).to(tl.float64)
                old_var = tl.load(running_var + row, mask=own, other=0.0).to(tl.float64)
            missing = tl.maximum(min_count - n, 0.0)
            n, mean, m2 = _merged(n, mean, m2, missing, old_mean, old_var * missing)
        inverse = 1.0 / tl.maximum(n, 1.0)
        var = m2 * inverse
    rstd = 1.0 / tl.sqrt(tl.where(var < 0, 0.0, var) + _number(eps, eps_low))
    tl.store(used + row, mean, mask=own)
    tl.store(used + (known * C + row), rstd, mask=own)
    tl.store(used + (2 * known * C + row), inverse, mask=own)
    m, lost = _lost(mean, WIDE)
    begin, end = item, item + 1
    if ONE:  # one set of statistics, perhaps several scales and shifts
        begin, end = item * 0, item * 0 + ROWS
    for first in range(begin, end, 8):
        r = first + tl.arange(0, 8)[:, None]
        there = own & (r < end)
        a = rstd * _affine(weight, r, c, there, C, WEIGHTS, 1.0)
        b = _affine(bias, r, c, there, C, BIASES, 0.0) + lost * a
        at = tables + (r * C + c)
        tl.store(at, m + tl.zeros([8, 1], WIDE), mask=there)
        tl.store(at + tables_size, a.to(WIDE), mask=there)
        tl.store(at + 2 * tables_size, b.to(WIDE), mask=there)
    if UPDATE:
        to = c if OF_ALL else row
        moves = some & (size > 1) & (item == known if OF_ALL and not ONE else item < known)
        share = _number(momentum, momentum_low)
        if AVERAGE:
            times = tl.load(tracked + (item if EACH and not OF_ALL else 0)) + 1
            share = 1.0 / times.to(tl.float64)
        var = spread / tl.maximum(size - 1.0, 1.0)
        old = tl.load(running_mean + to, mask=moves, other=0.0).to(tl.float64)
        new = (1.0 - share) * old + share * now
        tl.store(running_mean + to, new.to(running_mean.dtype.element_ty), mask=moves)
        old = tl.load(running_var + to, mask=moves, other=0.0).to(tl.float64)
        new = (1.0 - share) * old + share * var
        tl.store(running_var + to, new.to(running_var.dtype.element_ty), mask=moves)


@triton.jit
def merge_gradients(
    parts, plane, owners, starts, known, chunk, items, used, groups, weight, dweight, dbias, change,
    ONE: tl.constexpr, SEVERAL: tl.constexpr, WEIGHTS: tl.constexpr, BIASES: tl.constexpr,
    C: tl.constexpr, S: tl.constexpr, P: tl.constexpr, SLOTS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradients of scale and shift, (WEIGHTS, C) and (BIASES, C), and the tables of dx.

    change: (2, K, C) gb and gc with dx = g a + (x - m) gb + gc. known: groups that the sums tell
    apart, SEVERAL or one; groups: K, ONE or several. used: as `merge_moments` makes it. dweight,
    dbias and change may be None.
    """
    item, c, some = _place(C, BLOCK_C)
    low, high = _range(starts, item, known, chunk, items, P, BLOCK_K)
    size = groups * C
    g = tl.zeros([1, BLOCK_C], tl.float64)
    gx = tl.zeros([1, BLOCK_C], tl.float64)
    scaled = tl.zeros([1, BLOCK_C], tl.float64)
    scaled_x = tl.zeros([1, BLOCK_C], tl.float64)
    for first in range(low * SLOTS, high * SLOTS, BLOCK_Q):
        part = first + tl.arange(0, BLOCK_Q)[:, None]
        owner = tl.load(owners + part // SLOTS, mask=part < high * SLOTS, other=-1)
        inside = _part(part, c, some, high, S, SLOTS, BLOCK_E) & (owner >= 0)
        at = parts + (part.to(tl.int64) * C + c)
        sums = tl.load(at, mask=inside, other=0.0)
        own = used + ((owner * 0 if ONE else owner) * C + c)
        _, lost = _lost(tl.load(own, mask=inside, other=0.0), WIDE)
        sums_x = tl.load(at + plane, mask=inside, other=0.0) + lost * sums
        sums_x *= tl.load(own + size, mask=inside, other=0.0)
        w = _affine(weight, owner, c, inside, C, WEIGHTS, 1.0)
        g += tl.sum(sums, axis=0, keep_dims=True)
        gx += tl.sum(sums_x, axis=0, keep_dims=True)
        scaled += tl.sum(sums * w, axis=0, keep_dims=True)
        scaled_x += tl.sum(sums_x * w, axis=0, keep_dims=True)
    own = some & (item < known)
    pooled = some & (item == known) if SEVERAL else own
    if dbias is not None:
        to = dbias + (c if BIASES == 1 else item * C + c)
        tl.store(to, g.to(dbias.dtype.element_ty), mask=pooled if BIASES == 1 else own)
    if dweight is not None:
        to = dweight + (c if WEIGHTS == 1 else item * C + c)
        tl.store(to, gx.to(dweight.dtype.element_ty), mask=pooled if WEIGHTS == 1 else own)
    if change is not None:
        there = pooled if ONE else own
        at = c if ONE else item * C + c
        _, lost = _lost(tl.load(used + at, mask=there, other=0.0), WIDE)
        rstd = tl.load(used + (size + at), mask=there, other=0.0)
        inverse = tl.load(used + (2 * size + at), mask=there, other=0.0)
        gb = -rstd * rstd * (scaled_x * inverse)
        gc = lost * gb - rstd * (scaled * inverse)
        tl.store(change + at, gb.to(WIDE), mask=there)
        tl.store(change + (size + at), gc.to(WIDE), mask=there)
