"""Images of one batch, and the few of all batches whose features are kept."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one batch that are counted together.

    Attributes:
        labels: (N,) int64.
        priority: (N,) int64, a hash of each image.
        condition: (N,) int64, or None.
    """

    labels: Tensor
    priority: Tensor
    condition: Tensor | None

    @cached_property
    def classes(self) -> tuple[Tensor, Tensor]:
        """The classes of this batch (U,), and for each image its place among them (N,)."""
        present, place = self.labels.unique(return_inverse=True)
        return present, place

    def select(self, rows: Tensor | None) -> "Images":
        """Take some of the images; None: all."""
        if rows is None:
            return self
        condition = None if self.condition is None else self.condition[rows]
        return Images(self.labels[rows], self.priority[rows], condition)


@dataclass(frozen=True, eq=False)
class Sample:
    """The image features of at most `size` images: those of lowest priority.

    The priority is a hash of the image, so the choice depends on neither batch size nor order.

    Attributes:
        size: how many are kept at most.
        priority: (n,) int64.
        labels: (n,).
        features: (n, C), float32.
    """

    size: int
    priority: Tensor
    labels: Tensor
    features: Tensor

    def __add__(self, other: "Sample") -> "Sample":
        if len(self.priority) == self.size:  # the usual case late in a long pass: few enter
            enters = other.priority < self.priority.max()
            if not bool(enters.any()):
                return self
            other = Sample(
                self.size, other.priority[enters], other.labels[enters], other.features[enters]
            )
        priority = torch.cat([self.priority, other.priority])
        labels = torch.cat([self.labels, other.labels])
        features = torch.cat([self.features, other.features])
        if len(priority) <= self.size:
            return Sample(self.size, priority, labels, features)
        keep = priority.argsort(stable=True)[: self.size]
        return Sample(self.size, priority[keep], labels[keep], features[keep])
