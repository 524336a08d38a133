"""Images of one batch, and the few of all batches whose features are kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ODD = 0x61C8864680B583EB  # its multiples change all bits of a hash (Knuth 1973, section 6.4)


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one batch that are counted together, or the regions of them that are of one class.

    Attributes:
        labels: (N,) int64.
        priority: (N,) int64, a hash of each.
        condition: (N,) int64, or None.
        at: (images, P), the class of every position, below 0 where it has none; None: each image
            has one class.
        owner: (N,), of which image each region is; None: they are images.
        places: the positions of each region.
    """

    labels: Tensor
    priority: Tensor
    condition: Tensor | None
    at: Tensor | None = None
    owner: Tensor | None = None
    places: Sequence[Tensor] = ()

    def of_regions(self, at: Tensor) -> "Images":
        """Divide images into the regions of their classes."""
        found = [
            (image, k, (row == k).nonzero().flatten())
            for image, row in enumerate(at)
            for k in row[row >= 0].unique().tolist()
        ]
        owner = torch.tensor([image for image, *_ in found], dtype=torch.int64)
        labels = torch.tensor([k for _, k, _ in found], dtype=torch.int64)
        condition = None if self.condition is None else self.condition[owner]
        places = [where for *_, where in found]
        return Images(labels, self.priority[owner] ^ (labels * ODD), condition, at, owner, places)

    def each(self, table: Tensor) -> Tensor:
        """Give every region the row that a table (images, ...) has for its image."""
        return table if self.owner is None else table[self.owner]

    def select(self, rows: Tensor | None) -> "Images":
        """Take some of the images, (images,) bool; None: all."""
        if rows is None:
            return self
        counted = self.each(rows)
        condition = None if self.condition is None else self.condition[counted]
        at = None if self.at is None else self.at[rows]
        return Images(self.labels[counted], self.priority[counted], condition, at)


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

    def add(self, priority: Tensor, labels: Tensor, features: Tensor) -> "Sample":
        """Add images with features of any dtype, (N, C)."""
        if len(self.priority) == self.size:  # the usual case late in a long pass: few enter
            enters = priority < self.priority.max()
            if not bool(enters.any()):
                return self
            priority, labels, features = priority[enters], labels[enters], features[enters]
        priority = torch.cat([self.priority, priority])
        labels = torch.cat([self.labels, labels])
        features = torch.cat([self.features, features.float()])
        if len(priority) <= self.size:
            return Sample(self.size, priority, labels, features)
        keep = priority.argsort(stable=True)[: self.size]
        return Sample(self.size, priority[keep], labels[keep], features[keep])
