"""One sweep over the values that pass: what each image holds per channel, and the bins of z."""

from dataclasses import dataclass

import torch
from torch import Tensor

from normscope.lens import loops
from normscope.moments import Moments

BINS = 64
REACH = 6.0  # the histogram covers z in [-REACH, REACH]
POSITIONS = 64  # of one image and channel that the histogram counts; evenly spaced
SMALL = 1 << 15  # values below which plain torch is quicker than entering compiled code


@dataclass(frozen=True, eq=False)
class Sweep:
    """What each image holds in each channel.

        mean = (1/P) sum x,   m2 = sum (x - mean)^2,   fired = how many x > 0

    One pass over each row of P positions, centred by one of its values, accumulated in float64.

    All of it lies on the CPU, wherever the values are.

    Attributes:
        mean: (N, C) float64; of an image, what a head behind global average pooling sees.
        m2: (N, C) float64.
        fired: (N, C) int64.
        positions: P.
        taken: (N, C, at most POSITIONS) in x's dtype, values at evenly spaced positions, for the
            histogram; None: not asked for.
    """

    mean: Tensor
    m2: Tensor
    fired: Tensor
    positions: int
    taken: Tensor | None = None

    @classmethod
    def of(cls, values: Tensor, *, take: bool = False, axis: int = 1) -> "Sweep":
        """Summarise values (N, C, *S) of any float dtype on any device; `axis`: of the channels."""
        rows = _rows(values.movedim(axis, 1))
        counted = min(POSITIONS, rows.shape[2]) if take else 0
        places = torch.arange(counted)
        if take:
            places = places * rows.shape[2] // max(counted, 1)
        if rows.numel() < SMALL or rows.device.type != "cpu":
            wide = rows.double()
            mean = wide.mean(2)
            m2 = (wide - mean.unsqueeze(2)).square().sum(2)
            taken = rows[:, :, places].cpu() if take else None
            return cls(mean.cpu(), m2.cpu(), (rows > 0).sum(2).cpu(), rows.shape[2], taken)
        mean = torch.empty(rows.shape[:2], dtype=torch.float64)
        m2, fired = torch.empty_like(mean), torch.empty(rows.shape[:2], dtype=torch.int64)
        taken = rows.new_empty(*rows.shape[:2], counted)
        loops.sweep(rows, mean, m2, fired, places, taken)
        return cls(mean, m2, fired, rows.shape[2], taken if take else None)

    def normalised(self, mean: Tensor, rstd: Tensor) -> "Sweep":
        """Map it to z = (x - mean) * rstd; mean and rstd (C,) or (N, C). `fired` stays x's."""
        return Sweep((self.mean - mean) * rstd, self.m2 * rstd**2, self.fired, self.positions)

    def of_rows(self, rows: Tensor | None) -> "Sweep":
        """Take some of the images; None: all."""
        if rows is None:
            return self
        taken = None if self.taken is None else self.taken[rows]
        return Sweep(self.mean[rows], self.m2[rows], self.fired[rows], self.positions, taken)


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
    mean, rstd = (t.expand(taken.shape[:2]).contiguous() for t in (mean, rstd))
    if taken.numel() < SMALL:
        z = (taken.double() - mean.unsqueeze(2)) * rstd.unsqueeze(2)
        index = ((z + REACH) * (BINS / (2 * REACH))).floor().clamp(0, BINS - 1).long()
        channels = histogram.shape[1]
        index += ((labels[:, None] * channels + torch.arange(channels)) * BINS).unsqueeze(2)
        counts = torch.bincount(index.flatten(), minlength=histogram.numel())
        histogram += counts.view_as(histogram).to(histogram.dtype)
        return
    assert histogram.is_contiguous(), "loops go by address"
    scale = rstd * (BINS / (2 * REACH))
    loops.count_bins(taken.contiguous(), mean, scale, labels.contiguous(), histogram)


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
    written = moments.count, moments.mean, moments.m2
    assert all(t.is_contiguous() for t in written), "loops go by address"
    mean, m2, groups = seen.mean.contiguous(), seen.m2.contiguous(), groups.long().contiguous()
    rows = torch.empty_like(mean)
    loops.absorb(mean, m2, seen.positions, groups, moments, rows)
    return rows


def _rows(values: Tensor) -> Tensor:
    """View as (N, C, P), contiguous where compiled code reads it, in a dtype that NumPy has."""
    rows = values.detach().flatten(2) if values.dim() > 2 else values.detach().unsqueeze(2)
    if rows.device.type not in ("cpu", "cuda"):
        rows = rows.cpu()  # where there is no float64
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    return rows.contiguous()
