"""One sweep over the values that pass: what each image holds per channel, and the bins of z.

The loops are in C++, or in plain torch where that cannot be compiled or is not worth it.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from normscope.kernels import cpu
from normscope.lens.images import Images
from normscope.moments import Moments

BINS = 64
REACH = 6.0  # the histogram covers z in [-REACH, REACH]
POSITIONS = 64  # of one image and channel that the histogram counts; evenly spaced
SMALL = 1 << 15  # values below which plain torch is quicker than entering compiled code
BLOCK = 1 << 20  # values of which plain torch makes float64 copies at once


@dataclass(frozen=True, eq=False)
class Sweep:
    """What each image, or each region of one, holds in each channel.

        mean = (1/P) sum x,   m2 = sum (x - mean)^2,   fired = how many x > 0

    One pass over each row of P positions, centred by one of its values, accumulated in float64.

    All of it lies on the CPU, wherever the values are.

    Attributes:
        mean: (N, C) float64; of an image, what a head behind global average pooling sees.
        m2: (N, C) float64.
        fired: (N, C) int64.
        positions: (N,) float64, P.
        taken: (images, C, at most POSITIONS) in x's dtype, values at `places_of` its positions,
            for the histogram; None: not asked for.
        finite: whether all values are.
    """

    mean: Tensor
    m2: Tensor
    fired: Tensor
    positions: Tensor
    taken: Tensor | None = None
    finite: bool = True

    @classmethod
    def of(cls, rows: Tensor, images: Images | None = None, *, take: bool = False) -> "Sweep":
        """Summarise what `rows_of` returned.

        Args:
            rows: (N, C, P).
            images: says which regions they have; None: each image is one.
            take: keep some values, or all where they are few: then a view of rows.
        """
        if images is None or images.owner is None:
            return _summary(rows, take=take)
        regions = zip(images.owner.tolist(), images.places, strict=True)
        parts = [_summary(rows[i : i + 1, :, where].contiguous()) for i, where in regions]
        mean, m2, fired, positions = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("mean", "m2", "fired", "positions")
        )
        taken = rows[:, :, places_of(rows.shape[2])].cpu() if take else None
        finite = all(part.finite for part in parts)
        return cls(mean, m2, fired, positions, taken, finite)

    def normalised(self, mean: Tensor, rstd: Tensor) -> "Sweep":
        """Map it to z = (x - mean) * rstd; mean and rstd (C,) or (N, C). `fired` stays x's."""
        return Sweep((self.mean - mean) * rstd, self.m2 * rstd**2, self.fired, self.positions)

    def of_rows(self, rows: Tensor | None, images: Images) -> "Sweep":
        """Take what some of the images hold, (images,) bool; None: all."""
        if rows is None:
            return self
        own = images.each(rows)
        return Sweep(self.mean[own], self.m2[own], self.fired[own], self.positions[own])


def rows_of(values: Tensor, axis: int = 1) -> Tensor:
    """View values with their channels along an axis as (N, C, P), in a dtype that the loops read.

    Contiguous, which is a copy where the values lie otherwise.
    """
    rows = values.detach() if axis == 1 else values.detach().movedim(axis, 1)
    rows = rows.flatten(2) if rows.dim() > 2 else rows.unsqueeze(2)
    if rows.device.type not in ("cpu", "cuda"):
        rows = rows.cpu()  # where there is no float64
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    return rows.contiguous()


def _summary(rows: Tensor, *, take: bool = False) -> Sweep:
    """Summarise rows (N, C, P), and take the values at some places of each."""
    count, channels, positions = rows.shape
    places = places_of(positions if take and positions > POSITIONS else 0)
    if rows.device.type == "cpu" and rows.numel() >= SMALL and (loop := cpu.operator("sweep")):
        mean, m2, fired, taken, finite = loop(rows, places)
    else:
        means, squares = [], []
        for part in rows.split(max(1, BLOCK // max(1, channels * positions))):
            wide = part.double()
            means.append(wide.mean(2))
            squares.append((wide - means[-1].unsqueeze(2)).square().sum(2))
        mean, m2, fired = torch.cat(means).cpu(), torch.cat(squares).cpu(), (rows > 0).sum(2).cpu()
        taken, finite = rows[:, :, places].cpu(), bool(m2.isfinite().all())
    kept = None
    if take:
        kept = taken if len(places) else rows.cpu()
    return Sweep(mean, m2, fired, _repeated(count, positions), kept, finite)


@cache
def _repeated(count: int, positions: int) -> Tensor:
    return torch.full((count,), float(positions), dtype=torch.float64, device="cpu")


def count_bins(
    histogram: Tensor, taken: Tensor, mean: Tensor, rstd: Tensor, labels: Tensor, channels: Tensor
) -> None:
    """Add z = (x - mean) * rstd of some values to the histogram (K, H, BINS).

    The outer bins also hold what lies beyond REACH. All of it is on the CPU.

    Args:
        histogram: int32 or int64, written to.
        taken: x, (N, C, P), float32 or float64.
        mean: (C,) or (N, C) float64.
        rstd: as mean.
        labels: (N,), or (N, P) of each value; below 0: not counted.
        channels: (H,), which are counted.
    """
    assert histogram.is_contiguous(), "loops go by address"
    scale = rstd * (BINS / (2 * REACH))
    if taken.numel() >= SMALL and (loop := cpu.operator("count_bins")):
        loop(taken, mean, scale, labels, channels, histogram)
        return
    centre, scale = (t[..., channels].unsqueeze(-1) for t in (mean, scale))
    place = (taken[:, channels].double() - centre) * scale + BINS / 2
    index = place.nan_to_num(nan=0.0).clamp(0, BINS - 1).long()
    classes = labels.view(len(taken), 1, -1)
    index += (classes * len(channels) + torch.arange(len(channels)).unsqueeze(1)) * BINS
    counted = (classes >= 0).expand_as(index)
    counts = torch.bincount(index[counted], minlength=histogram.numel())
    histogram += counts.view_as(histogram).to(histogram.dtype)


def count_active(active: Tensor, rate_square: Tensor, seen: Sweep, labels: Tensor) -> None:
    """Add the values above 0 of every image to those of its class, and its squared rate.

    Args:
        active: (K, C) int32 or int64, written to.
        rate_square: (C,) float64, written to: the squared share of such values, times P.
        seen: of N images.
        labels: (N,) in 0..K-1.
    """
    loop = cpu.operator("count_active")
    if loop is not None:
        loop(seen.fired, seen.positions, labels, active, rate_square)
        return
    active.index_add_(0, labels, seen.fired.to(active.dtype))
    rate_square += (1 / seen.positions) @ seen.fired.double().square()


def absorb(
    moments: Moments,
    seen: Sweep,
    groups: Tensor,
    weights: Tensor | None = None,
    traces: Tensor | None = None,
) -> Tensor:
    """Merge every image into the moments of its group, in place, one after the other.

    Args:
        moments: (K,), (K, C) and (K, C), written to; m2 may be (1, C), of all groups together.
        seen: of N images.
        groups: (N,) in 0..K-1.
        weights: (W, C).
        traces: (W, K), written to: grows by the sum of squares of each row of what is returned,
            weighted by every row of `weights`.

    Returns:
        (N, C) rows whose outer products add up to the growth of the scatter of the means within
        groups.

    Source: Chan, Golub, LeVeque 1979, as `Moments`.
    """
    written = (moments.count, moments.mean, moments.m2)
    assert all(t.is_contiguous() for t in written), "loops go by address"
    if weights is None or traces is None:
        weights, traces = (seen.mean.new_empty(0, n) for n in moments.mean.T.shape)
    groups = groups.long().contiguous()
    loop = cpu.operator("absorb")
    if loop is not None:
        rows: Tensor = loop(seen.mean, seen.m2, seen.positions, groups, *written, weights, traces)
        return rows
    rows = torch.empty_like(seen.mean)
    for image, k in enumerate(groups.tolist()):
        before, size = float(moments.count[k]), float(seen.positions[image])
        share = size / (before + size)
        step = seen.mean[image] - moments.mean[k]
        moments.mean[k] += step * share
        moments.m2[k if len(moments.m2) > 1 else 0] += seen.m2[image] + step * step * before * share
        rows[image] = step * (before * share) ** 0.5
        traces[:, k] += weights @ rows[image].square()
        moments.count[k] += size
    return rows


def places_of(positions: int) -> Tensor:
    """Choose at most POSITIONS evenly spaced ones; the tensor is shared."""
    return _places(positions, min(POSITIONS, positions))


@cache
def _places(positions: int, counted: int) -> Tensor:
    return torch.arange(counted, device="cpu") * positions // max(counted, 1)
