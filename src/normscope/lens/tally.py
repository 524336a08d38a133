"""What is kept of a layer while batches pass: values of fixed size that merge with `+`.

Nothing here grows with the number of images. Two reductions are kept apart: *pixel* moments over
every value that batch norm sees, and *image* features, the mean over positions that a
classification head sees.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from normscope.lens.sweep import BINS, Sweep, absorb, count_bins, counted_positions
from normscope.moments import Moments
from normscope.records import StageName

SAMPLE = 2048  # images whose features are kept for nearest-class-mean accuracy, at most
SAMPLE_BYTES = 24 << 20  # that these features may take, over all layers
JOINT = 512  # channels in the joint measures, exactly; a layer with more is thinned
THINNED = 256  # to so many, evenly spaced
FULL = 2**31 - 1  # what a cell of an int32 histogram holds


@dataclass(frozen=True, eq=False)
class Scatter:
    """Class means and the scatter within classes of image features, float64.

        within = sum_k sum_{i in k} (f_i - mean_k)(f_i - mean_k)^T

    Merged pairwise as Chan, Golub, LeVeque 1979, never from raw second moments.

    Attributes:
        classes: Moments per class, (K,), (K, C), (K, C); zero for a class without images.
        within: (C, C).
    """

    classes: Moments
    within: Tensor

    @classmethod
    def empty(cls, classes: int, channels: int) -> "Scatter":
        """The neutral element."""
        moments = Moments.empty(classes, channels)
        return cls(moments, moments.mean.new_zeros(channels, channels))

    @property
    def count(self) -> Tensor:
        """(K,), images per class."""
        return self.classes.count

    @property
    def mean(self) -> Tensor:
        """(K, C), class means."""
        return self.classes.mean

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add features (N, C), float64, of labels (N,), in place: no copy of `within` is made."""
        one = Sweep(features, torch.zeros_like(features), labels, 1)
        rows = absorb(self.classes, one, labels)
        self.within.addmm_(rows.T, rows)

    def __add__(self, other: "Scatter") -> "Scatter":
        between = _between(self.classes, other.classes)
        within = self.within + other.within + between.T @ between
        return Scatter(self.classes + other.classes, within)

    def mapped(self, centre: Tensor, scale: Tensor) -> "Scatter":
        """The scatter of (f - centre) * scale, (C,) each."""
        return Scatter(
            _mapped(self.classes, centre, scale), self.within * scale * scale.unsqueeze(1)
        )


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

    def mapped(self, centre: Tensor, scale: Tensor) -> "Sample":
        """The sample of (f - centre) * scale."""
        features = ((self.features.double() - centre) * scale).float()
        return Sample(self.size, self.priority, self.labels, features)


@dataclass(eq=False)
class Stage:
    """All that is kept of one stage of a layer.

    Attributes:
        moments: per class and channel over every value, (K,), (K, C), (K, C).
        scatter: of the image features, of the joint channels.
        sample: image features of the same channels.
        conditions: per condition and channel over every value; no rows where there are none.
    """

    moments: Moments
    scatter: Scatter
    sample: Sample
    conditions: Moments

    @classmethod
    def empty(cls, classes: int, channels: int, sample: int) -> "Stage":
        """A stage that has seen nothing."""
        joint = len(joint_channels(channels))
        labels = torch.zeros(0, dtype=torch.int64)
        return cls(
            Moments.empty(classes, channels),
            Scatter.empty(classes, joint),
            Sample(sample, labels, labels.clone(), torch.zeros(0, joint)),
            Moments.empty(0, channels),
        )

    def add(self, seen: Sweep, labels: Tensor, priority: Tensor, condition: Tensor | None) -> None:
        """Add a batch."""
        absorb(self.moments, seen, labels)
        features = _joint(seen.mean)
        self.scatter.add(features, labels)
        self.sample += Sample(self.sample.size, priority, labels, features.float())
        if condition is not None:
            needed = int(condition.max()) + 1
            self.conditions = _roomy(self.conditions, needed)
            absorb(self.conditions, seen, condition)

    def __add__(self, other: "Stage") -> "Stage":
        conditions = max(len(self.conditions.count), len(other.conditions.count))
        return Stage(
            self.moments + other.moments,
            self.scatter + other.scatter,
            self.sample + other.sample,
            _roomy(self.conditions, conditions) + _roomy(other.conditions, conditions),
        )

    def mapped(self, centre: Tensor, scale: Tensor) -> "Stage":
        """The stage of (x - centre) * scale, exactly: an affine map per channel."""
        joint = joint_channels(len(centre))
        return Stage(
            _mapped(self.moments, centre, scale),
            self.scatter.mapped(centre[joint], scale[joint]),
            self.sample.mapped(centre[joint], scale[joint]),
            _mapped(self.conditions, centre, scale),
        )

    def grow(self, classes: int) -> None:
        """Make room for more classes."""
        self.moments = _roomy(self.moments, classes)
        self.scatter = Scatter(_roomy(self.scatter.classes, classes), self.scatter.within)


class Tally:
    """One layer's stages, z histogram and firing counts over the batches seen so far.

    Attributes:
        stages: those that were measured, by name, in the order of the layer.
        histogram: (K, C, BINS) int32 or int64, values per bin of z = (x - running_mean) * rstd.
        fired: (K, C) int64, values with y > 0.
        centred: (K, joint channels), sum of the input features less the mean of their batch.
        activation: the one that follows, None where none was seen.
        positions: values per image and channel.
        counted: how many of them the histogram counts.
        precision: relative rounding of the layer's input and of long float64 sums.
    """

    def __init__(self, before: Tensor, classes: int, sample: int) -> None:
        channels = before.shape[1]
        self.stages: dict[StageName, Stage] = {}
        self.sample = sample
        self.histogram = torch.zeros(classes, channels, BINS, dtype=torch.int32)
        self.fired = torch.zeros(classes, channels, dtype=torch.int64)
        joint = len(joint_channels(channels))
        self.centred = torch.zeros(classes, joint, dtype=torch.float64)
        self.activation: str | None = None
        self.positions = before[0, 0].numel()
        self.counted = counted_positions(before)
        self.precision = max(torch.finfo(before.dtype).eps, 1e-12)

    def add(
        self,
        name: StageName,
        seen: Sweep,
        labels: Tensor,
        priority: Tensor,
        condition: Tensor | None,
    ) -> None:
        """Add a batch to a stage."""
        if name not in self.stages:
            classes, channels = self.fired.shape
            self.stages[name] = Stage.empty(classes, channels, self.sample)
        self.stages[name].add(seen, labels, priority, condition)

    def count_bins(self, taken: Tensor, mean: Tensor, rstd: Tensor, labels: Tensor) -> None:
        """Add z of values that were taken from x to the histogram."""
        most = int(self.stages["input"].moments.count.max())
        if self.histogram.dtype == torch.int32 and most > FULL:
            self.histogram = self.histogram.long()
        count_bins(self.histogram, taken, mean, rstd, labels)

    def count_firing(self, seen: Sweep, labels: Tensor) -> None:
        """Count the values y > 0 of a batch."""
        self.fired.index_add_(0, labels, seen.fired)

    def add_centred(self, seen: Sweep, labels: Tensor) -> None:
        """Add the input features less their mean over this batch, as training would."""
        features = _joint(seen.mean)
        self.centred.index_add_(0, labels, features - features.mean(0))

    def grow(self, classes: int) -> None:
        """Make room for more classes."""
        for stage in self.stages.values():
            stage.grow(classes)
        self.histogram = grown(self.histogram, classes)
        self.fired = grown(self.fired, classes)
        self.centred = grown(self.centred, classes)

    def merge(self, other: "Tally") -> None:
        """Add what another tally of the same layer has seen, of as many classes."""
        for name, stage in other.stages.items():
            self.stages[name] = self.stages[name] + stage if name in self.stages else stage
        wide = self.histogram.long() + other.histogram
        self.histogram = wide if int(wide.max()) > FULL else wide.to(torch.int32)
        self.fired = self.fired + other.fired
        self.centred = self.centred + other.centred
        self.activation = self.activation or other.activation


def joint_channels(channels: int) -> Tensor:
    """The channels that the joint measures use: all, or evenly spaced ones of more than JOINT.

    A choice of channels and not a mixture: it is the same after scale and shift, so J stays equal.
    """
    if channels <= JOINT:
        return torch.arange(channels)
    kept = min(JOINT, THINNED)
    return torch.linspace(0, channels - 1, kept, dtype=torch.float64).round().long()


def sample_size(channels: list[int]) -> int:
    """How many images may be sampled in layers of so many channels, at three stages each."""
    each = sum(len(joint_channels(c)) for c in channels) * 3 * 4
    return max(16, min(SAMPLE, SAMPLE_BYTES // max(1, each)))


def grown(table: Tensor, rows: int) -> Tensor:
    """The table with zeros up to so many rows."""
    return F.pad(table, [0, 0] * (table.dim() - 1) + [0, rows - table.shape[0]])


def _joint(features: Tensor) -> Tensor:
    """The columns of (N, C) that the joint measures use; without a copy where it is all."""
    channels = features.shape[1]
    return features if channels <= JOINT else features[:, joint_channels(channels)]


def _roomy(moments: Moments, rows: int) -> Moments:
    if len(moments.count) >= rows:
        return moments
    return Moments(*(grown(t, rows) for t in (moments.count, moments.mean, moments.m2)))


def _mapped(moments: Moments, centre: Tensor, scale: Tensor) -> Moments:
    mean = torch.where(moments.count.unsqueeze(1) > 0, (moments.mean - centre) * scale, 0.0)
    return Moments(moments.count, mean, moments.m2 * scale**2)


def _between(a: Moments, b: Moments) -> Tensor:
    """(K, C), rows whose outer products are the scatter between the means of two sets."""
    weight = a.count * b.count / (a.count + b.count).clamp(min=1)
    return (b.mean - a.mean) * weight.sqrt().unsqueeze(1)
