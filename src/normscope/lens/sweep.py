"""One sweep over the values that pass: what each image holds per channel, and the bins of z."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from normscope.moments import Moments

BINS = 64
REACH = 6.0  # the histogram covers z in [-REACH, REACH]
POSITIONS = 64  # of one image and channel that the histogram counts; evenly spaced
SMALL = 1 << 15  # values below which plain torch is quicker than entering compiled code


@dataclass(frozen=True, eq=False)
class Sweep:
    """What each image holds in each channel.

        mean = (1/P) sum x,   m2 = sum (x - mean)^2,   fired = how many x > 0

    Two passes over each row of P positions, accumulated in float64.

    All of it lies on the CPU, wherever the values are.

    Attributes:
        mean: (N, C) float64; of an image, what a head behind global average pooling sees.
        m2: (N, C) float64.
        fired: (N, C) int64.
        positions: P.
    """

    mean: Tensor
    m2: Tensor
    fired: Tensor
    positions: int

    @classmethod
    def of(cls, values: Tensor) -> "Sweep":
        """From values (N, C, *S) of any float dtype on any device."""
        rows = _rows(values)
        if rows.numel() < SMALL or rows.device.type != "cpu":
            wide = rows.double()
            mean = wide.mean(2)
            m2 = (wide - mean.unsqueeze(2)).square().sum(2)
            return cls(mean.cpu(), m2.cpu(), (rows > 0).sum(2).cpu(), rows.shape[2])
        mean = torch.empty(rows.shape[:2], dtype=torch.float64)
        m2, fired = torch.empty_like(mean), torch.empty(rows.shape[:2], dtype=torch.int64)
        flat = rows.reshape(-1, rows.shape[2]).numpy()
        _compiled()[0](flat, *(t.view(-1).numpy() for t in (mean, m2, fired)))
        return cls(mean, m2, fired, rows.shape[2])

    def normalised(self, mean: Tensor, rstd: Tensor) -> "Sweep":
        """The sweep of z = (x - mean) * rstd; mean and rstd (C,) or (N, C). `fired` is x's."""
        return Sweep((self.mean - mean) * rstd, self.m2 * rstd**2, self.fired, self.positions)

    def of_rows(self, rows: Tensor | None) -> "Sweep":
        """That of some of the images; None: of all."""
        if rows is None:
            return self
        return Sweep(self.mean[rows], self.m2[rows], self.fired[rows], self.positions)


def count_bins(
    histogram: Tensor, values: Tensor, mean: Tensor, rstd: Tensor, labels: Tensor
) -> None:
    """Add z = (x - mean) * rstd of values (N, C, *S) to the histogram (K, C, BINS).

    At most POSITIONS evenly spaced positions of each image and channel are counted; the outer
    bins also hold what lies beyond REACH.

    Args:
        histogram: int32 or int64, on the CPU, written to.
        values: x.
        mean: (C,) or (N, C) float64.
        rstd: as mean.
        labels: (N,) in 0..K-1.
    """
    rows = _rows(values)
    counted = min(POSITIONS, rows.shape[2])
    mean, rstd = (t.expand(rows.shape[:2]).contiguous() for t in (mean, rstd))
    places = torch.arange(counted) * rows.shape[2] // counted
    if rows.numel() < SMALL or rows.device.type != "cpu":
        mean, rstd = (t.to(rows.device).unsqueeze(2) for t in (mean, rstd))
        z = (rows[:, :, places].double() - mean) * rstd
        index = ((z + REACH) * (BINS / (2 * REACH))).floor().clamp(0, BINS - 1).long()
        channels = histogram.shape[1]
        cell = labels.to(rows.device)[:, None] * channels
        index += ((cell + torch.arange(channels, device=rows.device)) * BINS).unsqueeze(2)
        counts = torch.bincount(index.flatten(), minlength=histogram.numel()).cpu()
        histogram += counts.view_as(histogram).to(histogram.dtype)
        return
    given = (t.numpy() for t in (mean, rstd, labels.contiguous(), histogram))
    _compiled()[1](rows.numpy(), places.numpy(), *given)


def absorb(moments: Moments, seen: Sweep, groups: Tensor) -> Tensor:
    """Merge every image into the moments of its group, in place, one after the other.

    Args:
        moments: (K,), (K, C), (K, C), written to.
        seen: of N images.
        groups: (N,) in 0..K-1.

    Returns:
        (N, C) rows whose outer products add up to the growth of the scatter of the means within
        groups.

    Source: Chan, Golub, LeVeque 1979, as `Moments`.
    """
    rows = torch.empty_like(seen.mean)
    given = (moments.count, moments.mean, moments.m2, rows)
    _compiled()[2](
        seen.mean.contiguous().numpy(),
        seen.m2.contiguous().numpy(),
        seen.positions,
        groups.contiguous().numpy(),
        *(t.numpy() for t in given),
    )
    return rows


def counted_positions(values: Tensor) -> int:
    """How many positions of an image `count_bins` counts."""
    return min(POSITIONS, values[0, 0].numel())


def _rows(values: Tensor) -> Tensor:
    """As (N, C, P), contiguous where compiled code reads it, in a dtype that NumPy has."""
    rows = values.detach().flatten(2) if values.dim() > 2 else values.detach().unsqueeze(2)
    if rows.device.type not in ("cpu", "cuda"):
        rows = rows.cpu()  # where there is no float64
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    return rows.contiguous()


@cache
def _compiled() -> tuple[Any, Any, Any]:
    """The three loops, compiled on first use; Numba keeps them on disk."""
    import numba

    # sums may be reordered, so that they vectorise; NaN stays NaN
    loose = {"reassoc", "contract", "nsz"}

    @numba.njit(parallel=True, fastmath=loose, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
    def sweep(rows: Any, mean: Any, m2: Any, fired: Any) -> None:
        for r in numba.prange(rows.shape[0]):
            row = rows[r]
            total = 0.0
            for i in range(row.shape[0]):
                total += row[i]
            centre = total / row.shape[0]
            square = 0.0
            above = 0
            for i in range(row.shape[0]):
                step = row[i] - centre
                square += step * step
                above += row[i] > 0
            mean[r] = centre
            m2[r] = square
            fired[r] = above

    @numba.njit(parallel=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
    def bins(rows: Any, places: Any, mean: Any, rstd: Any, labels: Any, histogram: Any) -> None:
        for c in numba.prange(rows.shape[1]):  # a channel's counts belong to one thread
            for n in range(rows.shape[0]):
                counts = histogram[labels[n], c]
                centre, scale = mean[n, c], rstd[n, c] * (BINS / (2 * REACH))
                for i in range(places.shape[0]):
                    place = (rows[n, c, places[i]] - centre) * scale + BINS / 2
                    counts[int(min(place, BINS - 1.0)) if place > 0 else 0] += 1

    @numba.njit(cache=True)  # type: ignore[untyped-decorator, unused-ignore]
    def absorb(
        mean: Any, m2: Any, size: int, groups: Any, count: Any, held: Any, spread: Any, rows: Any
    ) -> None:
        for n in range(mean.shape[0]):
            k = groups[n]
            before = count[k]
            share = size / (before + size)
            root = math.sqrt(before * share)
            for c in range(mean.shape[1]):
                step = mean[n, c] - held[k, c]
                held[k, c] += step * share
                spread[k, c] += m2[n, c] + step * step * before * share
                rows[n, c] = step * root
            count[k] += size

    return sweep, bins, absorb
