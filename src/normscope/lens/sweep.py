"""One sweep over the values that pass: what each image holds per channel, and the bins of z.

The loops are in C++, or in plain torch where that cannot be compiled or is not worth it.
"""

from dataclasses import dataclass

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
        taken: (images, C, at most POSITIONS) in x's dtype, values at evenly spaced positions, for
            the histogram; None: not asked for.
    """

    mean: Tensor
    m2: Tensor
    fired: Tensor
    positions: Tensor
    taken: Tensor | None = None

    @classmethod
    def of(
        cls, values: Tensor, images: Images | None = None, *, take: bool = False, axis: int = 1
    ) -> "Sweep":
        """Summarise values (N, C, *S) of any float dtype on any device.

        Args:
            values: what passes.
            images: says which regions they have; None: each image is one.
            take: keep some values.
            axis: of the channels.
        """
        rows = _rows(values.movedim(axis, 1))
        places = places_of(rows.shape[2] if take else 0)
        if images is None or images.owner is None:
            return _summary(rows, places, take=take)
        regions = zip(images.owner.tolist(), images.places, strict=True)
        parts = [_summary(rows[i : i + 1, :, where], places_of(0)) for i, where in regions]
        return cls(
            torch.cat([part.mean for part in parts]),
            torch.cat([part.m2 for part in parts]),
            torch.cat([part.fired for part in parts]),
            torch.cat([part.positions for part in parts]),
            rows[:, :, places].cpu() if take else None,
        )

    def normalised(self, mean: Tensor, rstd: Tensor) -> "Sweep":
        """Map it to z = (x - mean) * rstd; mean and rstd (C,) or (N, C). `fired` stays x's."""
        return Sweep((self.mean - mean) * rstd, self.m2 * rstd**2, self.fired, self.positions)

    def of_rows(self, rows: Tensor | None, images: Images) -> "Sweep":
        """Take what some of the images hold, (images,) bool; None: all."""
        if rows is None:
            return self
        taken, own = None if self.taken is None else self.taken[rows], images.each(rows)
        return Sweep(self.mean[own], self.m2[own], self.fired[own], self.positions[own], taken)


@torch.no_grad()
def _summary(rows: Tensor, places: Tensor, *, take: bool = False) -> Sweep:
    """Summarise rows (N, C, P), and take the values at some places of each."""
    count, channels, positions = rows.shape
    sizes = torch.full((count,), float(positions), dtype=torch.float64)
    compiled = rows.device.type == "cpu" and rows.numel() >= SMALL and cpu.operator("sweep")
    if compiled:
        mean, m2 = torch.empty(2, count, channels, dtype=torch.float64)
        fired = torch.empty(count, channels, dtype=torch.int64)
        taken = rows.new_empty(count, channels, len(places))
        compiled(rows.contiguous(), mean, m2, fired, places, taken)
    else:
        means, squares = [], []
        for part in rows.split(max(1, BLOCK // max(1, channels * positions))):
            wide = part.double()
            means.append(wide.mean(2))
            squares.append((wide - means[-1].unsqueeze(2)).square().sum(2))
        mean, m2, fired = torch.cat(means).cpu(), torch.cat(squares).cpu(), (rows > 0).sum(2).cpu()
        taken = rows[:, :, places].cpu() if take else rows
    return Sweep(mean, m2, fired, sizes, taken if take else None)


@torch.no_grad()
def count_bins(
    histogram: Tensor, taken: Tensor, mean: Tensor, rstd: Tensor, labels: Tensor
) -> None:
    """Add z = (x - mean) * rstd of some values to the histogram (K, C, BINS).

    The outer bins also hold what lies beyond REACH.

    Args:
        histogram: int32 or int64, on the CPU, written to.
        taken: x, (N, C, P), float32 or float64, on the CPU.
        mean: (C,) or (N, C) float64.
        rstd: as mean.
        labels: (N,) in 0..K-1.
    """
    assert histogram.is_contiguous(), "loops go by address"
    scale = rstd * (BINS / (2 * REACH))
    compiled = taken.numel() >= SMALL and cpu.operator("count_bins")
    if compiled:
        compiled(*(t.contiguous() for t in (taken, mean, scale, labels)), histogram)
        return
    place = (taken.double() - mean.unsqueeze(-1)) * scale.unsqueeze(-1) + BINS / 2
    index = place.nan_to_num(nan=0.0).clamp(0, BINS - 1).long()
    channels = histogram.shape[1]
    index += ((labels[:, None] * channels + torch.arange(channels)) * BINS).unsqueeze(2)
    counts = torch.bincount(index.flatten(), minlength=histogram.numel())
    histogram += counts.view_as(histogram).to(histogram.dtype)


@torch.no_grad()
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
    rows = torch.empty_like(seen.mean)
    if weights is None or traces is None:
        weights, traces = rows.new_empty(0, rows.shape[1]), rows.new_empty(0, len(moments.count))
    groups = groups.long()
    compiled = cpu.operator("absorb")
    if compiled is not None:
        read = (t.contiguous() for t in (seen.mean, seen.m2, seen.positions, groups))
        compiled(*read, *written, rows, weights, traces)
        return rows
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
    """Choose at most POSITIONS evenly spaced ones."""
    counted = min(POSITIONS, positions)
    return torch.arange(counted) * positions // max(counted, 1)


def _rows(values: Tensor) -> Tensor:
    """View as (N, C, P), contiguous where compiled code reads it, in a dtype that NumPy has."""
    rows = values.detach().flatten(2) if values.dim() > 2 else values.detach().unsqueeze(2)
    if rows.device.type not in ("cpu", "cuda"):
        rows = rows.cpu()  # where there is no float64
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    return rows.contiguous()
