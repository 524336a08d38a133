"""Why two norms that both hold their numbers differ: settings, statistics, scale and shift."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from normscope.equivalence.sites import Site, largest_gap
from normscope.records import Reason

SAME = 4  # rounding errors of the coarser dtype between two copies of one number
START = {"running_mean": 0.0, "running_var": 1.0}
DEAD = 1e-10  # a variance this small beside the largest is that of a constant channel
GREEK = {"weight": "gamma", "bias": "beta"}
COARSER = (torch.bfloat16, torch.float16, torch.float32)


def own_reasons(a: Site, b: Site, others: Iterable[Site], *, momentum: bool) -> list[Reason]:
    """What the two norms hold that is not the same, what makes the largest difference first.

    Args:
        a: of the first form.
        b: its partner.
        others: the other norms of the first form, to find which were exchanged.
        momentum: whether that counts: both can be trained.
    """
    if a.channels != b.channels:
        return [_channels(a, b)]
    found = [*_settings(a, b, momentum=momentum), *_statistics(a, b, others), *_affine(a, b)]
    exchanged = next((r for r in found if r.code == "exchanged"), None)
    if exchanged is not None:  # says it all
        found = [
            r for r in found if r.code in ("exchanged", "eps", "training", "dtype", "momentum")
        ]
    known = [reason for reason in found if reason.amount == reason.amount]
    unknown = [reason for reason in found if reason.amount != reason.amount]
    return [*sorted(known, key=lambda r: -r.amount), *unknown]


def mapped(x: Tensor, site: Site, **instead: Any) -> Tensor:
    """What a norm makes of (C, P) values with its numbers, or with others for some of them."""
    held = {**site.tensors, **instead}
    eps = held.get("eps", site.eps)
    zeros, ones = x.new_zeros(len(x)), x.new_ones(len(x))
    mean, var = held.get("running_mean", zeros), held.get("running_var", ones)
    weight, bias = held.get("weight", ones), held.get("bias", zeros)
    scale = weight / (var + eps).sqrt()
    y: Tensor = (x - mean.unsqueeze(1)) * scale.unsqueeze(1) + bias.unsqueeze(1)
    return y


def _effect(a: Site, **instead: Any) -> float:
    """The difference that other numbers make in a norm's output."""
    if any(
        isinstance(t, Tensor) and t.dim() != 1 for t in (*a.tensors.values(), *instead.values())
    ):
        return float("nan")
    x = a.before.values
    if len(x) != a.channels or a.eps != a.eps:
        return float("nan")
    return largest_gap(mapped(x, a), mapped(x, a, **instead))


def _settings(a: Site, b: Site, *, momentum: bool) -> Iterator[Reason]:
    modes = (a.settings.get("training"), b.settings.get("training"))
    if None not in modes and modes[0] != modes[1]:
        batch = {"running_mean": a.before.mean, "running_var": a.before.var}
        yield Reason(
            code="training",
            first=str(modes[0]),
            second=str(modes[1]),
            amount=_effect(a, **batch),
        )
    if a.before.dtype != b.before.dtype:
        coarse = max(torch.finfo(s.before.dtype).eps for s in (a, b))
        names = (str(s.before.dtype).removeprefix("torch.") for s in (a, b))
        first, second = names
        yield Reason(code="dtype", first=first, second=second, amount=coarse)
    rounding = SAME * torch.finfo(torch.float32).eps
    if abs(a.eps - b.eps) > rounding * max(a.eps, b.eps):
        yield Reason(
            code="eps", first=f"{a.eps:.3g}", second=f"{b.eps:.3g}", amount=_effect(a, eps=b.eps)
        )
    both = (a.settings.get("momentum"), b.settings.get("momentum"))
    known = [m for m in both if m is not None]
    if momentum and known and (len(known) == 1 or abs(known[0] - known[1]) > rounding):
        first, second = ("None" if m is None else f"{m:.4g}" for m in both)
        yield Reason(code="momentum", first=first, second=second, amount=0.0)


def _statistics(a: Site, b: Site, others: Iterable[Site]) -> Iterator[Reason]:
    names = ("running_mean", "running_var")
    lacking = [s for s in (a, b) if any(n not in s.tensors for n in names)]
    if lacking:
        if len(lacking) == 1 and a.tensors and b.tensors:
            yield Reason(code="no_statistics", second="" if lacking[0] is a else "0")
        return
    if all(_equal(a, b, n) for n in names):
        return
    amount = _effect(a, **{n: b.tensors[n] for n in names})
    other = next((o for o in others if o.channels == b.channels and _all_equal(o, b)), None)
    if other is not None:
        yield Reason(code="exchanged", detail=other.label, amount=amount)
    elif _fresh(b) or _fresh(a):
        yield Reason(code="reset", first=spoken(a), second=spoken(b), amount=amount)
    elif _equal(a, b, "running_mean") and (scale := _constant_ratio(a, b)) is not None:
        code, n = correction(scale)
        yield Reason(code=code, detail=n, first="1", second=f"{scale:.7g}", amount=amount)
    else:
        mean, var = (_distance(a, b, n) for n in names)
        code = "overwritten"
        if (share := _moved_to_batch(a, b)) is not None:
            code, mean = "overwritten_batch", share
        yield Reason(code=code, first=f"{mean:.2g}", second=f"{var:.2g}", amount=amount)


def _affine(a: Site, b: Site) -> Iterator[Reason]:
    for key, greek in GREEK.items():
        mine, other = a.tensors.get(key), b.tensors.get(key)
        neutral = 1.0 if key == "weight" else 0.0
        if mine is None and other is None:
            continue
        if not a.tensors or not b.tensors:
            continue
        if mine is None or other is None:
            held = other if mine is None else mine
            assert held is not None, "one of them is there"
            if bool((held == neutral).all()):
                continue
            lost = torch.full_like(held, neutral)
            effect = _effect(a, **{key: lost if other is None else held})
            lacks = "second" if other is None else "first"
            yield Reason(code=f"{greek}_lost", detail=lacks, amount=effect)
            continue
        if _equal(a, b, key):
            continue
        how, detail = _how(mine, other, b.tensors, a.tensors, key)
        channel = int((mine - other).abs().argmax()) if mine.shape == other.shape else 0
        values = (f"{float(t.flatten()[channel]):.4g}" for t in (mine, other))
        first, second = values
        code = how if how == "exchanged_affine" else f"{greek}_{how}"
        yield Reason(
            code=code,
            first=first,
            second=second,
            detail=detail or str(channel),
            amount=_effect(a, **{key: other}),
        )


def _how(mine: Tensor, other: Tensor, theirs: Any, ours: Any, key: str) -> tuple[str, str]:
    """In which way a scale or shift became another."""
    low, high = float(other.min()), float(other.max())
    clipped = mine.clamp(low, high)
    outside = mine.shape == other.shape and bool(((mine < low) | (mine > high)).any())
    if outside and near(clipped, other):
        return "clipped", f"{low:.4g} ... {high:.4g}"
    if near(mine.abs(), other):
        return "sign", ""
    for kind in COARSER:
        if near(mine.to(kind).double(), other) and not near(mine, other):
            return "rounded", str(kind).removeprefix("torch.")
    for digits in range(7):
        if near(mine.round(decimals=digits), other):
            return "rounded", f"{digits} decimals"
    for bits in (8, 4):
        for step in (float(mine.abs().max()) / (2 ** (bits - 1) - 1), _span(mine) / (2**bits - 1)):
            if step and _on_grid(mine, other, step):
                return "rounded", f"int{bits}"
    counterpart = "bias" if key == "weight" else "weight"
    both = counterpart in ours and counterpart in theirs
    if both and near(ours[counterpart], other) and near(mine, theirs[counterpart]):
        return "exchanged_affine", ""
    return "changed", ""


def _channels(a: Site, b: Site) -> Reason:
    """Which channels the second lacks, and whether they were dead."""
    first, second = str(a.channels), str(b.channels)
    more, fewer = (a, b) if a.channels > b.channels else (b, a)
    rows = [
        torch.stack([s.tensors[n] for n in sorted(s.tensors)], 1) if s.tensors else None
        for s in (more, fewer)
    ]
    if rows[0] is None or rows[1] is None or rows[0].shape[1] != rows[1].shape[1]:
        return Reason(code="channels", first=first, second=second)
    kept, place = [], 0
    for row in rows[1]:
        while place < len(rows[0]) and not near(rows[0][place], row):
            place += 1
        if place == len(rows[0]):
            return Reason(code="channels", first=first, second=second)
        kept.append(place)
        place += 1
    gone = sorted(set(range(len(rows[0]))) - set(kept))
    weight = more.tensors.get("weight", torch.ones(more.channels))
    var = more.tensors.get("running_var", torch.ones(more.channels))
    dead = (weight == 0) | (var <= DEAD * var.max())
    code = "dead_channels" if all(bool(dead[channel]) for channel in gone) else "channels"
    return Reason(code=code, first=first, second=second, detail=", ".join(map(str, gone[:8])))


def _equal(a: Site, b: Site, key: str) -> bool:
    """Whether both hold the same, up to the rounding of the coarser of their dtypes."""
    mine, other = a.tensors.get(key), b.tensors.get(key)
    if mine is None or other is None:
        return mine is other
    floats = [s.dtypes[key] for s in (a, b) if s.dtypes[key].is_floating_point]
    eps = max((torch.finfo(kind).eps for kind in floats), default=0.0)
    return near(mine, other, eps)


def _all_equal(a: Site, b: Site) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(_equal(a, b, key) for key in a.tensors)


def near(mine: Tensor, other: Tensor, eps: float = torch.finfo(torch.float32).eps) -> bool:
    """Whether two tensors are the same to SAME rounding errors of each number."""
    if mine.shape != other.shape:
        return False
    off = (mine - other).abs()
    close = (off <= SAME * eps * torch.maximum(mine.abs(), other.abs())) | (mine == other)
    return bool((close | (mine.isnan() & other.isnan())).all())


def _fresh(site: Site) -> bool:
    return all(bool((site.tensors[key] == value).all()) for key, value in START.items())


def spoken(site: Site) -> str:
    """Mean and variance, averaged over channels."""
    mean, var = site.tensors["running_mean"], site.tensors["running_var"]
    return f"({float(mean.mean()):.3g}, {float(var.mean()):.3g})"


def _constant_ratio(a: Site, b: Site) -> float | None:
    """The factor between the variances, if it is one for all channels."""
    mine, other = a.tensors["running_var"], b.tensors["running_var"]
    there = mine > 0
    if not bool(there.any()):
        return None
    scale = float((other[there] / mine[there]).median())
    eps = max(torch.finfo(s.dtypes["running_var"]).eps for s in (a, b))
    return scale if near(mine * scale, other, 2 * eps) else None


def correction(scale: float) -> tuple[str, str]:
    """Whether a factor is n / (n - 1), or its inverse, with a whole n."""
    ratio = max(scale, 1 / scale)
    n = ratio / (ratio - 1)
    doubt = max(1e-3, n * n * SAME * torch.finfo(torch.float32).eps)
    if n >= 2 - doubt and abs(n - round(n)) <= doubt:
        return ("variance_unbiased" if scale > 1 else "variance_biased"), str(round(n))
    return "variance_scaled", ""


def _moved_to_batch(a: Site, b: Site) -> float | None:
    """By which share the second's mean moved to that of this batch, if to it."""
    way = a.before.mean - a.tensors["running_mean"]
    moved = b.tensors["running_mean"] - a.tensors["running_mean"]
    if way.shape != moved.shape or not bool((way.abs() > 0).any()):
        return None
    share = float((way * moved).sum() / way.pow(2).sum())
    rest = float((moved - share * way).abs().max())
    return share if share > 0 and rest <= 1e-3 * float(moved.abs().max()) else None


def _distance(a: Site, b: Site, key: str) -> float:
    """Root mean square over channels: of the mean in deviations, of the variance as a factor."""
    mine, other = a.tensors[key], b.tensors[key]
    if key == "running_mean":
        scale = a.tensors["running_var"].clamp(min=1e-30).sqrt()
        return float(((other - mine) / scale).pow(2).mean().sqrt())
    ratio = (other.clamp(min=1e-30) / mine.clamp(min=1e-30)).log()
    return float(ratio.pow(2).mean().sqrt().exp())


def _on_grid(mine: Tensor, other: Tensor, step: float) -> bool:
    """Whether the second are multiples of a step, each the nearest to the first."""
    places = other / step
    whole = float((places - places.round()).abs().max()) < 1e-3
    return whole and float((mine - other).abs().max()) <= 0.51 * step


def _span(values: Tensor) -> float:
    return float(values.max() - values.min())
