"""Why two norms that hold their numbers differ: each cause predicts what the second holds."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from normscope.equivalence.sites import NAN, STATISTICS, Site
from normscope.moments import rms
from normscope.probe.compare import largest_gap
from normscope.records import Reason

SAME = 4  # rounding errors of the coarser dtype between two copies of one number
FLOAT = torch.finfo(torch.float32).eps
DEAD = 1e-10  # a variance this small beside the largest is that of a constant channel
GREEK = {"weight": "gamma", "bias": "beta"}
COARSER = (torch.bfloat16, torch.float16, torch.float32)
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Cause:
    """A code, the numbers that it predicts, and its values in both forms as text."""

    code: str
    numbers: Tensors
    first: str = ""
    second: str = ""
    detail: str = ""

    def reason(self, amount: float) -> Reason:
        """Return the reason with the size of its effect."""
        return Reason(
            code=self.code, first=self.first, second=self.second, detail=self.detail, amount=amount
        )


def reasons_of(a: Site, b: Site, others: Iterable[Site], *, both_train: bool) -> list[Reason]:
    """Find what two norms hold that is not the same, what makes the largest difference first.

    Of the statistics, of gamma and of beta, the first cause whose prediction is what the second
    holds is the reason.

    Args:
        a: of the first form.
        b: its partner.
        others: the other norms of the first form, to find which were exchanged.
        both_train: whether momentum counts.
    """
    if a.channels != b.channels:
        return [_channels(a, b)]
    found = list(_settings(a, b, both_train=both_train))
    parts = (
        (STATISTICS, _of_statistics(a, b, others)),
        *(((k,), _of_affine(a, b, k)) for k in GREEK),
    )
    for keys, causes in parts if a.tensors and b.tensors else ():
        if not all(same(a, b, key) for key in keys):
            cause = next(c for c in causes if all(_holds(b, a, k, t) for k, t in c.numbers.items()))
            instead = {key: b.tensors[key] for key in keys if key in b.tensors}
            amount = effect(a, instead or neutral(a, keys))
            found.append(cause.reason(NAN if cause.code == "no_statistics" else amount))
        if found and found[-1].code == "exchanged":
            break  # says it for gamma and beta too
    return sorted(found, key=lambda r: (r.amount != r.amount, -r.amount))


def scale_shift(
    site: Site, numbers: Tensors | None = None, eps: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the map per channel of a norm, with other numbers or eps for some of its own."""
    held = {**neutral(site, (*STATISTICS, *GREEK)), **site.tensors, **(numbers or {})}
    scale = held["weight"] / (held["running_var"] + (site.eps if eps is None else eps)).sqrt()
    return scale, held["bias"] - held["running_mean"] * scale


def neutral(site: Site, keys: Iterable[str]) -> Tensors:
    """Return the numbers with which a norm does nothing."""
    start = torch.zeros(site.channels, dtype=torch.float64)
    return {key: start + (key in ("weight", "running_var")) for key in keys}


def effect(a: Site, numbers: Tensors, eps: float | None = None) -> float:
    """Measure the difference that other numbers make in a norm's output; NaN if not known."""
    x = a.before.values
    held = (*a.tensors.values(), *numbers.values())
    if len(x) != a.channels or a.eps != a.eps or any(t.shape != (a.channels,) for t in held):
        return NAN
    ways = (scale_shift(a), scale_shift(a, numbers, eps))
    mine, other = (scale.unsqueeze(1) * x + shift.unsqueeze(1) for scale, shift in ways)
    return largest_gap(mine, other)


def alike(mine: Tensor, other: Tensor, eps: float = FLOAT) -> bool:
    """Whether two tensors are the same to SAME rounding errors of each number."""
    if mine.shape != other.shape:
        return False
    off = (mine - other).abs()
    close = (off <= SAME * eps * torch.maximum(mine.abs(), other.abs())) | (mine == other)
    return bool((close | (mine.isnan() & other.isnan())).all())


def same(a: Site, b: Site, key: str) -> bool:
    """Whether both hold the same under a name; nothing is the same as a neutral scale or shift."""
    mine, other = a.tensors.get(key), b.tensors.get(key)
    if mine is not None and other is not None:
        return _holds(b, a, key, mine)
    held = other if mine is None else mine
    return held is None or (key in GREEK and bool((held == (key == "weight")).all()))


def _holds(b: Site, a: Site, key: str, predicted: Tensor) -> bool:
    """Whether the second holds a prediction, up to the rounding of the coarser dtype."""
    eps = max(site.rounding(key) for site in (a, b) if key in site.tensors)
    return key in b.tensors and alike(predicted, b.tensors[key], eps)


def _settings(a: Site, b: Site, *, both_train: bool) -> Iterator[Reason]:
    modes = (a.settings.get("training"), b.settings.get("training"))
    if None not in modes and modes[0] != modes[1]:
        amount = effect(a, a.batch)
        yield Reason(code="training", first=str(modes[0]), second=str(modes[1]), amount=amount)
    if a.before.dtype != b.before.dtype:
        yield of_dtypes(a.before.dtype, b.before.dtype)
    if abs(a.eps - b.eps) > SAME * FLOAT * max(a.eps, b.eps):
        amount = effect(a, {}, b.eps)
        yield Reason(code="eps", first=f"{a.eps:.3g}", second=f"{b.eps:.3g}", amount=amount)
    momenta = (a.settings.get("momentum"), b.settings.get("momentum"))
    known = [m for m in momenta if m is not None]
    apart = len(known) == 1 or (len(known) == 2 and abs(known[0] - known[1]) > SAME * FLOAT)
    if both_train and apart:
        texts = ["None" if m is None else f"{m:.4g}" for m in momenta]
        yield Reason(code="momentum", first=texts[0], second=texts[1], amount=0.0)


def of_dtypes(first: torch.dtype, second: torch.dtype) -> Reason:
    """Return the reason that two dtypes differ."""
    names = [str(kind).removeprefix("torch.") for kind in (first, second)]
    amount = max(torch.finfo(kind).eps for kind in (first, second))
    return Reason(code="dtype", first=names[0], second=names[1], amount=amount)


def _of_statistics(a: Site, b: Site, others: Iterable[Site]) -> Iterator[Cause]:
    lacking = [any(key not in site.tensors for key in STATISTICS) for site in (a, b)]
    if any(lacking):
        yield Cause("no_statistics", {}, second="" if lacking[0] else "0")
        return
    for other in others:
        if other.channels == b.channels and other.tensors.keys() == b.tensors.keys():
            yield Cause("exchanged", dict(other.tensors), detail=other.label)
    (mean, var), (there, factors) = (tuple(s.tensors[k] for k in STATISTICS) for s in (a, b))
    fresh = dict(zip(STATISTICS, (torch.zeros_like(mean), torch.ones_like(var)), strict=True))
    new = all(torch.equal(a.tensors[key], fresh[key]) for key in STATISTICS)
    yield Cause("reset", {} if new else fresh, averages(a), averages(b))
    alone = mean.shape != there.shape
    if not alone and bool((var > 0).any()):
        factor = float((factors[var > 0] / var[var > 0]).median())
        code, n = correction(factor)
        numbers = dict(zip(STATISTICS, (mean, var * factor), strict=True))
        yield Cause(code, numbers, "1", f"{factor:.7g}", n)
    # root mean squares over channels: of the mean in deviations, of the variance as a factor
    moved = rms((there - mean) / var.clamp(min=1e-30).sqrt())
    ratio = (factors.clamp(min=1e-30) / var.clamp(min=1e-30)).log().pow(2).mean().sqrt().exp()
    if not alone and a.batch and a.batch["running_mean"].shape == mean.shape:
        way = a.batch["running_mean"] - mean
        share = float((way * (there - mean)).sum() / way.pow(2).sum().clamp(min=1e-300))
        rest = float((there - mean - share * way).abs().max())
        if share > 0 and rest <= 1e-3 * float((there - mean).abs().max()):
            yield Cause("overwritten_batch", {}, f"{share:.2g}", f"{float(ratio):.2g}")
    yield Cause("overwritten", {}, f"{moved:.2g}", f"{float(ratio):.2g}")


def _of_affine(a: Site, b: Site, key: str) -> Iterator[Cause]:
    greek, mine, other = GREEK[key], a.tensors.get(key), b.tensors.get(key)
    if mine is None or other is None:
        yield Cause(f"{greek}_lost", {}, detail="first" if mine is None else "second")
        return
    alone = mine.shape != other.shape
    worst = 0 if alone else int((mine - other).abs().argmax())
    first, second = (f"{float(t.flatten()[worst]):.4g}" for t in (mine, other))
    for way, predicted, detail in () if alone else _ways(mine, other):
        yield Cause(f"{greek}_{way}", {key: predicted}, first, second, detail or str(worst))
    if (counter := a.tensors.get("bias" if key == "weight" else "weight")) is not None:
        yield Cause("exchanged_affine", {key: counter}, first, second, str(worst))
    yield Cause(f"{greek}_changed", {}, first, second, str(worst))


def _ways(mine: Tensor, other: Tensor) -> Iterator[tuple[str, Tensor, str]]:
    """Predict what a clipped, unsigned or rounded copy holds."""
    low, high = float(other.min()), float(other.max())
    yield "clipped", mine.clamp(low, high), f"{low:.4g} ... {high:.4g}"
    yield "sign", mine.abs(), ""
    for kind in COARSER:
        yield "rounded", mine.to(kind).double(), str(kind).removeprefix("torch.")
    for digits in range(7):
        yield "rounded", mine.round(decimals=digits), f"{digits} decimals"
    for bits in (8, 4):
        span = float(mine.max() - mine.min()) / (2**bits - 1)
        for step in (float(mine.abs().max()) / (2 ** (bits - 1) - 1), span):
            if step and float((mine - other).abs().max()) <= 0.51 * step:
                yield "rounded", (other / step).round() * step, f"int{bits}"


def averages(site: Site) -> str:
    """Show mean and variance, averaged over channels."""
    mean, var = (float(site.tensors[key].mean()) for key in STATISTICS)
    return f"({mean:.3g}, {var:.3g})"


def correction(factor: float) -> tuple[str, str]:
    """Tell whether a factor of a variance is n / (n - 1), or its inverse, with a whole n."""
    ratio = max(factor, 1 / max(factor, 1e-300))
    n = ratio / (ratio - 1) if ratio > 1 else 0.0
    doubt = max(1e-3, n * n * SAME * FLOAT)
    if n >= 2 - doubt and abs(n - round(n)) <= doubt:
        return ("variance_unbiased" if factor > 1 else "variance_biased"), str(round(n))
    return "variance_scaled", ""


def _channels(a: Site, b: Site) -> Reason:
    """Say which channels the one lacks, and whether they were dead."""
    first, second = str(a.channels), str(b.channels)
    more, fewer = (a, b) if a.channels > b.channels else (b, a)
    keys, gone, place = sorted(more.tensors), [], 0
    unknown = Reason(code="channels", first=first, second=second)
    if not keys or keys != sorted(fewer.tensors):
        return unknown
    rows, wanted = (torch.stack([s.tensors[k] for k in keys], 1) for s in (more, fewer))
    for channel, row in enumerate(rows):
        if place < len(wanted) and alike(row, wanted[place]):
            place += 1
        else:
            gone.append(channel)
    if place < len(wanted):
        return unknown
    held = {**neutral(more, (*STATISTICS, "weight")), **more.tensors}
    dead = (held["weight"] == 0) | (held["running_var"] <= DEAD * held["running_var"].max())
    code = "dead_channels" if all(bool(dead[channel]) for channel in gone) else "channels"
    return Reason(code=code, first=first, second=second, detail=", ".join(map(str, gone[:8])))
