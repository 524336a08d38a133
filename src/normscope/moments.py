"""`Moments`: count, mean and centred sum of squares of a set of values."""

from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from normscope.errors import InputError


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and centred sum of squares of a set of values; two sets merge exactly.

        count = n,  mean = (1/n) sum x,  m2 = sum (x - mean)^2

    Leading axes `*B` (groups, classes) are independent sets; they may be absent. An empty set has
    count, mean and m2 zero and is neutral under `+`. Tensors are float64 where the device has it.

    Attributes:
        count: (*B,), number of values per channel.
        mean: (*B, C).
        m2: (*B, C), centred sum of squares; never a sum of raw squares.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
    sample variances", equation 1.5.

    >>> import torch
    >>> import normscope
    >>> from normscope.functional import moments
    >>> a, b = torch.randn(10, 3), torch.randn(20, 3)
    >>> both = moments(a) + moments(b)
    >>> torch.allclose(both.mean[0], torch.cat([a, b]).double().mean(0))
    True
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    @classmethod
    def empty(cls, *shape: int, device: torch.device | str | None = None) -> Self:
        """Return the neutral element with mean and m2 of `shape` = (*B, C), float64."""
        zeros = torch.zeros(shape, dtype=torch.float64, device=device)
        return cls(zeros.new_zeros(shape[:-1]), zeros, zeros.clone())

    def __add__(self, other: "Moments") -> "Moments":
        """Merge the moments of both sets; associative up to rounding."""
        count = self.count + other.count
        share = (other.count / count.clamp(min=1)).unsqueeze(-1)  # of the second set
        step = other.mean - self.mean
        return Moments(
            count,
            self.mean + step * share,
            self.m2 + other.m2 + step * step * share * self.count.unsqueeze(-1),
        )

    def __getitem__(self, place: int | None) -> "Moments":
        """Return one set of the first axis; with None, all of them under a new first axis."""
        return Moments(self.count[place], self.mean[place], self.m2[place])

    def padded(self, sets: int) -> "Moments":
        """Add empty sets on the first axis up to so many."""
        more = max(0, sets - len(self.count))
        mean, m2 = (F.pad(table, [0, 0, 0, more]) for table in (self.mean, self.m2))
        return Moments(F.pad(self.count, [0, more]), mean, m2)

    def detach(self) -> "Moments":
        """Return the same numbers without their gradients."""
        return Moments(self.count.detach(), self.mean.detach(), self.m2.detach())

    def var(self, correction: int) -> Tensor:
        """Return m2 / (count - correction), (*B, C): 0 is biased (normalises), 1 unbiased (stored).

        NaN where count <= correction: such a set has no variance.
        """
        left = (self.count - correction).unsqueeze(-1)
        return torch.where(left > 0, self.m2 / left, torch.nan)

    def pool(self) -> "Moments":
        """Pool all sets of the first axis, by the law of total variance: (K, C) becomes (C,)."""
        count = self.count.sum(0)
        weight = self.count.unsqueeze(-1)
        mean = (self.mean * weight).sum(0) / count.clamp(min=1).unsqueeze(-1)
        between = (weight * (self.mean - mean) ** 2).sum(0)
        return Moments(count, mean, self.m2.sum(0) + between)

    def all_reduce(self, process_group: dist.ProcessGroup | None = None) -> "Moments":
        """Merge the moments of all ranks, the same on every rank: one packed collective.

        Every rank must call it, a rank without data too (its count is zero). Works on any
        backend, gloo on CPU included. Not differentiable.
        """
        check_distributed(process_group)
        own = (self.count, self.mean, self.m2)
        packed = torch.cat([table.reshape(-1) for table in own])
        ranks = [torch.empty_like(packed) for _ in range(dist.get_world_size(process_group))]
        dist.all_gather(ranks, packed, group=process_group)
        sizes = [table.numel() for table in own]
        first, *others = (
            Moments(*(t.view_as(table) for t, table in zip(rank.split(sizes), own, strict=True)))
            for rank in ranks
        )
        return sum(others, start=first)


def check_distributed(process_group: dist.ProcessGroup | None = None) -> None:
    """Refuse, by an InputError, what only the ranks of a distributed run can do together."""
    if process_group is None and not (dist.is_available() and dist.is_initialized()):
        raise InputError(
            "all_reduce merges the ranks of a distributed run, and this process is none; call "
            "torch.distributed.init_process_group first, start with torchrun, or leave it out"
        )


def rms(values: Tensor) -> float:
    """Return the root mean square of all values."""
    return float(values.pow(2).mean().sqrt())


def drift(mean: Tensor, var: Tensor, other_mean: Tensor, other_var: Tensor) -> Tensor:
    """Return the distance of two sets of statistics in standard deviations of the second.

        sqrt((mean - mean')^2 + (std - std')^2) / std'

    The 2-Wasserstein distance of two Gaussians over the standard deviation. Infinite where the
    first are not finite or the variance is negative; a constant channel counts as std 1e-6.
    """
    std, other = var.clamp(min=0).sqrt(), other_var.clamp(min=0).sqrt()
    away = ((mean - other_mean) ** 2 + (std - other) ** 2).sqrt() / other.clamp(min=1e-6)
    return torch.where(away.isfinite() & (var >= 0), away, torch.inf)
