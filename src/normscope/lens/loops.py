"""The loops of the sweep: in C++, or in plain torch where that cannot be compiled."""

import torch
from torch import Tensor

from normscope.kernels import cpu
from normscope.moments import Moments


@torch.no_grad()
def sweep(
    rows: Tensor, mean: Tensor, m2: Tensor, fired: Tensor, places: Tensor, taken: Tensor
) -> None:
    """Write mean, m2 and how many values are above 0 of each row of rows (N, C, P).

    And the values at some places of each row into `taken`.
    """
    compiled = cpu.operator("sweep")
    if compiled is not None:
        compiled(rows, mean, m2, fired, places, taken)
        return
    for image, into in enumerate(mean):  # one at a time: float64 of a whole batch is large
        wide = rows[image].double()
        into.copy_(wide.mean(1))
        m2[image] = (wide - into.unsqueeze(1)).square().sum(1)
        fired[image] = (rows[image] > 0).sum(1)
    taken.copy_(rows[:, :, places])


@torch.no_grad()
def count_bins(
    taken: Tensor, mean: Tensor, scale: Tensor, labels: Tensor, histogram: Tensor
) -> None:
    """Count the bins (x - mean) * scale + BINS / 2 of taken (N, C, P) in histogram (K, C, BINS)."""
    compiled = cpu.operator("count_bins")
    if compiled is not None:
        compiled(taken, mean, scale, labels, histogram)
        return
    _, channels, bins = histogram.shape
    place = (taken.double() - mean.unsqueeze(2)) * scale.unsqueeze(2) + bins / 2
    index = place.nan_to_num(nan=0.0).clamp(0, bins - 1).long()
    index += ((labels[:, None] * channels + torch.arange(channels)) * bins).unsqueeze(2)
    counts = torch.bincount(index.flatten(), minlength=histogram.numel())
    histogram += counts.view_as(histogram).to(histogram.dtype)


@torch.no_grad()
def absorb(
    mean: Tensor, m2: Tensor, size: int, groups: Tensor, moments: Moments, rows: Tensor
) -> None:
    """Merge each image into the moments of its group; see `sweep.absorb`."""
    compiled = cpu.operator("absorb")
    if compiled is not None:
        compiled(mean, m2, size, groups, moments.count, moments.mean, moments.m2, rows)
        return
    for image, k in enumerate(groups.tolist()):
        before = float(moments.count[k])
        share = size / (before + size)
        step = mean[image] - moments.mean[k]
        moments.mean[k] += step * share
        moments.m2[k] += m2[image] + step * step * before * share
        rows[image] = step * (before * share) ** 0.5
        moments.count[k] += size
