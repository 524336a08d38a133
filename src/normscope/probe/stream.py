"""Moments of a stream of batches, with the error that so many batches leave."""

from collections.abc import Sequence

import torch
from torch import Tensor

from normscope.moments import Moments

ROWS = 32  # batches that memory is set aside for at a time
BLOCKS = 64  # neighbours are merged beyond twice as many, so memory does not grow with the data


class MomentStream:
    """The moments of all batches so far, kept as blocks of neighbouring batches.

    Attributes:
        blocks: the moments of each block, in the order of the batches.
        batches: how many were added.
        samples: how many images.
        averaged: sums over batches of their mean and unbiased variance, and how many had one.
    """

    def __init__(self) -> None:
        self.blocks: list[Moments] = []
        self.batches = 0
        self.samples = 0
        self._open = 0  # batches in the last block
        self._span = 1  # batches per block
        self._room: list[Tensor] = []
        self.averaged: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, batch: Moments, samples: int) -> None:
        """Add one more batch; a sum over blocks merges pairwise, so rounding does not pile up."""
        self.batches += 1
        self.samples += samples
        self._average(batch)
        if self.blocks and self._open < self._span:
            self.blocks[-1] = self.blocks[-1] + batch
            self._open += 1
            return
        if len(self.blocks) == 2 * BLOCKS:
            pairs = zip(self.blocks[::2], self.blocks[1::2], strict=True)
            self.blocks = [a + b for a, b in pairs]
            self._span *= 2
        self.blocks.append(self._kept(batch))
        self._open = 1

    def _kept(self, batch: Moments) -> Moments:
        # small pieces between the large ones of a forward would keep those from being used again
        if not self._room:
            self._room = list(batch.mean.new_empty(ROWS, 2, *batch.mean.shape))
        mean, m2 = self._room.pop()
        return Moments(batch.count, mean.copy_(batch.mean), m2.copy_(batch.m2))

    def _average(self, batch: Moments) -> None:
        known = (batch.count > 1).unsqueeze(-1)
        var = torch.where(known, batch.var(correction=1), 0)
        new = (torch.where(known, batch.mean, 0), var, known.to(var.dtype))
        old = self.averaged
        self.averaged = new if old is None else tuple(a + b for a, b in zip(old, new, strict=True))  # type: ignore[assignment]

    def per_batch(self) -> tuple[Tensor, Tensor]:
        """Average the batches' means and unbiased variances; NaN where none has one.

        This is what a cumulative running average of a batch norm holds. What lies between the
        means of batches is not in the variance.
        """
        assert self.averaged is not None, "a batch was added"
        mean, var, count = self.averaged
        return mean / count, var / count

    def total(self) -> Moments:
        """Return the moments of everything."""
        return stacked(self.blocks).pool()

    def errors(self) -> tuple[Tensor, Tensor]:
        """Return standard errors of mean and variance, shaped as they are.

            SE(mean)^2 = B/(B-1) sum_b w_b^2 (mean_b - mean)^2,   w_b = n_b / n
            SE(var)^2  = B/(B-1) sum_b w_b^2 (v_b - var)^2,
                         v_b = var_b + (mean_b - mean)^2

        Batch means: what lies between blocks already holds the correlation of pixels within an
        image and of images within a batch, which var / n leaves out. With one block, images
        count as the independent units: sqrt(var / N) and var sqrt(2 / N).
        """
        blocks = stacked(self.blocks)
        total = blocks.pool()
        var = total.var(correction=0)
        if len(self.blocks) < 2:
            n = max(self.samples, 1)
            return (var / n).sqrt(), var * (2 / n) ** 0.5
        share = (blocks.count / total.count.clamp(min=1)).unsqueeze(-1)
        step = blocks.mean - total.mean
        spread = blocks.m2 / blocks.count.clamp(min=1).unsqueeze(-1) + step * step
        scale = len(self.blocks) / (len(self.blocks) - 1)
        mean_error = (share * step).pow(2).sum(0)
        var_error = (share * (spread - var)).pow(2).sum(0)
        return (scale * mean_error).sqrt(), (scale * var_error).sqrt()

    def drift_error(self) -> Tensor:
        """Return the standard error of a drift from these statistics, in their deviations.

        sqrt(SE(mean)^2 + SE(std)^2) / std,   SE(std) = SE(var) / (2 std)
        """
        mean_error, var_error = self.errors()
        std = self.total().var(correction=0).clamp(min=1e-12).sqrt()
        return (mean_error**2 + (var_error / (2 * std)) ** 2).sqrt() / std


def stacked(parts: list[Moments]) -> Moments:
    """Stack parts of one shape along a new first axis."""
    tables = zip(*((part.count, part.mean, part.m2) for part in parts), strict=True)
    return Moments(*map(torch.stack, tables))


def total_of(calls: Sequence[MomentStream]) -> Moments:
    """Merge everything that entered a layer, over all its calls in a forward."""
    return stacked([stream.total() for stream in calls]).pool()


def population_of(calls: Sequence[MomentStream]) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance of everything that entered a layer."""
    total = total_of(calls)
    return total.mean, total.var(correction=1)
