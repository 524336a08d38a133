"""What is kept of a layer while batches pass: values of fixed size that merge with `+`.

Nothing here grows with the number of images. Two reductions are kept apart: *pixel* moments over
every value that batch norm sees, and *image* features, the mean over positions that a
classification head sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from normscope import functional
from normscope.moments import Moments
from normscope.records import StageName

SAMPLE = 2048  # images whose features are kept for nearest-class-mean accuracy
JOINT = 512  # channels in the joint measures; a layer with more is thinned evenly
BINS = 64
REACH = 6.0  # the histogram covers z in [-REACH, REACH]
CHUNK = 1 << 22  # values handled at once, so that float64 copies stay small


@dataclass(frozen=True, eq=False)
class Scatter:
    """Class means and the scatter within classes of image features, float64.

        within = sum_k sum_{i in k} (f_i - mean_k)(f_i - mean_k)^T

    Merged pairwise as Chan, Golub, LeVeque 1979, never from raw second moments.

    Attributes:
        count: (K,), images per class.
        mean: (K, C); zero for a class without images.
        within: (C, C).
    """

    count: Tensor
    mean: Tensor
    within: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int) -> "Scatter":
        """From features (N, C), float64, and labels (N,) in 0..classes-1."""
        count = torch.bincount(labels, minlength=classes).to(features.dtype)
        total = features.new_zeros(classes, features.shape[1]).index_add_(0, labels, features)
        mean = total / count.clamp(min=1).unsqueeze(1)
        centred = features - mean[labels]
        return cls(count, mean, centred.T @ centred)

    def __add__(self, other: "Scatter") -> "Scatter":
        count = self.count + other.count
        share = (other.count / count.clamp(min=1)).unsqueeze(1)
        step = other.mean - self.mean
        between = (step * share * self.count.unsqueeze(1)).T @ step
        return Scatter(count, self.mean + step * share, self.within + other.within + between)


@dataclass(frozen=True, eq=False)
class Sample:
    """The image features of at most SAMPLE images: those of lowest priority.

    The priority is a hash of the image, so the choice depends on neither batch size nor order.

    Attributes:
        priority: (n,) int64.
        labels: (n,).
        features: (n, C), float32.
    """

    priority: Tensor
    labels: Tensor
    features: Tensor

    def __add__(self, other: "Sample") -> "Sample":
        if len(self.priority) == SAMPLE and int(other.priority.min()) >= int(self.priority.max()):
            return self  # nobody enters: the usual case late in a long pass
        return Sample(
            torch.cat([self.priority, other.priority]),
            torch.cat([self.labels, other.labels]),
            torch.cat([self.features, other.features]),
        ).thinned()

    def thinned(self) -> "Sample":
        """The SAMPLE images of lowest priority."""
        keep = self.priority.argsort(stable=True)[:SAMPLE]
        return Sample(self.priority[keep], self.labels[keep], self.features[keep])


@dataclass(frozen=True, eq=False)
class Stage:
    """All that is kept of one stage of a layer.

    Attributes:
        moments: per class and channel over every value, (K,), (K, C), (K, C).
        scatter: of the image features, of JOINT channels at most.
        sample: image features of the same channels.
    """

    moments: Moments
    scatter: Scatter
    sample: Sample

    @classmethod
    def of(cls, values: Tensor, labels: Tensor, classes: int, priority: Tensor) -> "Stage":
        """From values (N, C, *S), one label and one priority per image."""
        features = values.double()
        if values.dim() > 2:
            features = features.flatten(2).mean(2)
        features = features[:, joint_channels(values.shape[1])]
        return cls(
            functional.moments(values, labels, classes),
            Scatter.of(features, labels, classes),
            Sample(priority, labels, features.float()).thinned(),
        )

    def __add__(self, other: "Stage") -> "Stage":
        return Stage(
            self.moments + other.moments,
            self.scatter + other.scatter,
            self.sample + other.sample,
        )

    def grown(self, classes: int) -> "Stage":
        """The same with room for more classes."""
        moments, scatter = self.moments, self.scatter
        return Stage(
            Moments(*(_grown(t, classes) for t in (moments.count, moments.mean, moments.m2))),
            Scatter(_grown(scatter.count, classes), _grown(scatter.mean, classes), scatter.within),
            self.sample,
        )


class Tally:
    """One layer's stages, z histogram and firing counts over the batches seen so far.

    Attributes:
        stages: by name, in the order of the layer.
        histogram: (K, C, BINS) int64, values per bin of z = (x - running_mean) * rstd.
        fired: (K, C) int64, values with y > 0.
        activation: the one that follows, None where none was seen.
        positions: values per image and channel.
        precision: relative rounding of the layer's input and of long float64 sums.
    """

    def __init__(self, before: Tensor, classes: int) -> None:
        channels = before.shape[1]
        self.stages: dict[StageName, Stage] = {}
        self.histogram = torch.zeros(
            classes, channels, BINS, dtype=torch.int64, device=before.device
        )
        self.fired = self.histogram.new_zeros(classes, channels)
        self.activation: str | None = None
        self.positions = before[0, 0].numel()
        self.precision = max(torch.finfo(before.dtype).eps, 1e-12)

    def add(self, name: StageName, values: Tensor, labels: Tensor, priority: Tensor) -> Stage:
        """Add a batch (N, C, *S) to a stage; returns that stage with all batches so far."""
        classes = self.fired.shape[0]
        for rows in _chunks(values):
            new = Stage.of(values[rows], labels[rows], classes, priority[rows])
            self.stages[name] = self.stages[name] + new if name in self.stages else new
        return self.stages[name]

    def count_bins(self, z: Tensor, labels: Tensor) -> None:
        """Add z (N, C, *S) to the histogram; the outer bins hold what lies beyond REACH."""
        channels, bins = self.histogram.shape[1:]
        for rows in _chunks(z):
            bin_ = ((z[rows] + REACH) * (bins / (2 * REACH))).floor().clamp(0, bins - 1).long()
            cell = labels[rows, None] * channels + torch.arange(channels, device=z.device)
            index = bin_.flatten(2) if z.dim() > 2 else bin_.unsqueeze(2)
            index += cell.unsqueeze(2) * bins
            counts = torch.bincount(index.flatten(), minlength=self.histogram.numel())
            self.histogram += counts.view_as(self.histogram)

    def count_firing(self, after: Tensor, labels: Tensor) -> None:
        """Count the values y > 0 of a batch (N, C, *S)."""
        fired = (after > 0).flatten(2).sum(2) if after.dim() > 2 else (after > 0).long()
        self.fired.index_add_(0, labels, fired)

    def grow(self, classes: int) -> None:
        """Make room for more classes."""
        self.stages = {name: stage.grown(classes) for name, stage in self.stages.items()}
        self.histogram = _grown(self.histogram, classes)
        self.fired = _grown(self.fired, classes)


def joint_channels(channels: int) -> Tensor:
    """The channels that the joint measures use: all, or JOINT evenly spaced ones."""
    if channels <= JOINT:
        return torch.arange(channels)
    return torch.linspace(0, channels - 1, JOINT, dtype=torch.float64).round().long()


def _grown(table: Tensor, classes: int) -> Tensor:
    return F.pad(table, [0, 0] * (table.dim() - 1) + [0, classes - table.shape[0]])


def _chunks(values: Tensor) -> Iterator[slice]:
    rows = max(1, CHUNK // max(1, values[0].numel()))
    for start in range(0, values.shape[0], rows):
        yield slice(start, start + rows)
