"""Statistics of one layer while batches pass: of a fixed size, and they merge.

Nothing here grows with the number of images. Two reductions are kept apart: *pixel* statistics
over every value that the layer normalises, and *image* features, the mean over positions that a
classification head sees. Both have the same class means.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from normscope.lens.channel_map import CallSlice, ChannelMap
from normscope.lens.images import Images, Sample
from normscope.lens.sweep import BINS, POSITIONS, Sweep, absorb, count_active, count_bins, places_of
from normscope.moments import Moments
from normscope.records import MapKind, StageName

JOINT = 512  # channels in the joint measures, exactly; a layer with more is thinned
THINNED = 256  # to so many, evenly spaced
FULL = 2**31 - 1  # what a cell of an int32 table holds


@dataclass(eq=False)
class Stage:
    """Statistics of one stage of a layer, float64.

        scatter = sum_k sum_{i in k} P_i (f_i - mean_k)(f_i - mean_k)^T,   spread_k its trace

    Merged pairwise as Chan, Golub, LeVeque 1979, never from raw second moments. An image counts
    as often as it has positions P.

    Attributes:
        count: (K,), values per channel.
        mean: (K, C), class means, of values and of image features alike.
        m2: (K, C), sum of (x - mean_k)^2 over all values; (1, C) where that is not kept by class.
        scatter: (J, J), within classes, of the image features of the joint channels.
        traces: (2, K), the share of each class in the trace of `scatter`, and the same after the
            layer's scale per channel.
        sample: image features of the joint channels.
        conditions: per condition and channel over every value; no rows where there are none.
        by_class: whether m2 is kept by class.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor
    scatter: Tensor
    traces: Tensor
    sample: Sample
    conditions: Moments
    by_class: bool = False

    @classmethod
    def empty(cls, classes: int, channels: int, sample: int, *, by_class: bool) -> "Stage":
        """Make a stage that has seen nothing; `by_class`: it keeps m2 by class."""
        joint = len(joint_channels(channels))
        zeros = torch.zeros(classes, channels, dtype=torch.float64)
        labels = torch.zeros(0, dtype=torch.int64)
        return cls(
            zeros.new_zeros(classes),
            zeros,
            zeros.new_zeros(classes if by_class else 1, channels),
            zeros.new_zeros(joint, joint),
            zeros.new_zeros(2, classes),
            Sample(sample, labels, labels.clone(), torch.zeros(0, joint)),
            Moments.empty(0, channels),
            by_class,
        )

    @property
    def within(self) -> Tensor:
        """(C,), sum of (x - mean_k)^2 over all values."""
        return self.m2.sum(0)

    def add(self, seen: Sweep, images: Images, weights: Tensor) -> None:
        """Add a batch; `weights` are those of `trace_weights`, of the layer's own scale."""
        own = Moments(self.count, self.mean, self.m2)
        rows = _joint(absorb(own, seen, images.labels, weights, self.traces))
        self.scatter.addmm_(rows.T, rows)
        self.sample = self.sample.add(images.priority, images.labels, _joint(seen.mean))
        if images.condition is not None:
            self.conditions = self.conditions.padded(int(images.condition.max()) + 1)
            absorb(self.conditions, seen, images.condition)

    def merge(self, other: "Stage", scale: Tensor) -> None:
        """Add what another stage of as many classes has seen."""
        count = (self.count + other.count).clamp(min=1)
        step = other.mean - self.mean
        rows = step * (self.count * other.count / count).sqrt().unsqueeze(1)
        self.mean += step * (other.count / count).unsqueeze(1)
        self.count += other.count
        square = rows.square()
        self.m2 += other.m2 + (square if self.by_class else square.sum(0))
        self.traces += other.traces + trace_weights(scale) @ square.T
        self.scatter += other.scatter
        self.scatter.addmm_(_joint(rows).T, _joint(rows))
        self.sample = self.sample.add(
            other.sample.priority, other.sample.labels, other.sample.features
        )
        conditions = max(len(self.conditions.count), len(other.conditions.count))
        self.conditions = self.conditions.padded(conditions) + other.conditions.padded(conditions)

    def mapped(self, centre: Tensor, scale: Tensor) -> "Stage":
        """Map it to the stage of (x - centre) * scale, exactly."""
        seen = (self.count > 0).unsqueeze(1)
        joint = _joint(scale)
        features = ((self.sample.features.double() - _joint(centre)) * joint).float()
        conditions = self.conditions
        known = (conditions.count > 0).unsqueeze(1)
        return Stage(
            self.count,
            torch.where(seen, (self.mean - centre) * scale, 0.0),
            self.m2.sum(0, keepdim=True) * scale**2,
            self.scatter * joint * joint.unsqueeze(1),
            self.traces[1].expand(2, -1),
            Sample(self.sample.size, self.sample.priority, self.sample.labels, features),
            Moments(
                conditions.count,
                torch.where(known, (conditions.mean - centre) * scale, 0.0),
                conditions.m2 * scale**2,
            ),
        )

    def resize(self, classes: int) -> None:
        """Make room for so many classes, or drop rows that hold none."""
        self.count, self.mean = resized(self.count, classes), resized(self.mean, classes)
        self.traces = resized(self.traces.T, classes).T.contiguous()
        if self.by_class:
            self.m2 = resized(self.m2, classes)


@dataclass(eq=False)
class TrackedLayer:
    """One layer, or the images of one condition at it, with its statistics over the batches.

    Attributes:
        norm: the layer's class name.
        maps: whether all images meet one map per channel.
        map: that map, (C,); the pooled one where several maps come together; NaN mean and
            variance where each sample has its own.
        one_threshold: whether all images meet the same threshold -beta/gamma.
        positions: values per image and channel, of the first batch.
        counted: how many of them the histogram counts.
        precision: relative rounding of the layer's input and of long float64 sums.
        sample: how many images are sampled at most.
        channels: (H,), those that have a histogram.
        histogram: (K, H, BINS) int32 or int64, values per bin of z.
        centred: (K, H) float64, sum over values of the input less the mean of its batch.
        active: (K, C) int32 or int64, values with y > 0.
        rate_square: (C,) float64, sum over values of the squared share of those of their image,
            or region, with y > 0.
        images: how many, or how many regions of one class.
        activation: the one that follows; None where none was seen.
        input_activation: the one that made the input; None where none was seen.
        stages: those that were measured, by name.
        pre_activation: what that activation was given.
    """

    norm: str
    maps: MapKind
    map: ChannelMap
    one_threshold: bool
    positions: int
    counted: int
    precision: float
    sample: int
    channels: Tensor
    histogram: Tensor
    centred: Tensor
    active: Tensor
    rate_square: Tensor
    images: int = 0
    activation: str | None = None
    input_activation: str | None = None
    stages: dict[str, Stage] = field(default_factory=dict)

    @classmethod
    def empty(
        cls,
        norm: str,
        part: CallSlice,
        before: Tensor,
        classes: int,
        histograms: int,
        sample: int,
    ) -> "TrackedLayer":
        """Make one that has seen nothing; `before` is what its first input looks like."""
        channels = before.shape[part.axis]
        positions = before[0].numel() // channels
        kept = nested_channels(channels, histograms)
        return cls(
            norm,
            part.maps,
            part.shown,
            part.used.gamma.dim() == 1,
            positions,
            min(POSITIONS, positions),
            max(torch.finfo(before.dtype).eps, 1e-12),
            sample,
            kept,
            torch.zeros(classes, len(kept), BINS, dtype=torch.int32),
            torch.zeros(classes, len(kept), dtype=torch.float64),
            torch.zeros(classes, channels, dtype=torch.int32),
            torch.zeros(channels, dtype=torch.float64),
        )

    @property
    def scale(self) -> Tensor:
        """(C,), by which z is made of the stage that it derives from."""
        return self.map.rstd if self.maps != "per_sample" else self.map.inverse_gamma

    def stage(self, name: StageName | Literal["pre_activation"]) -> Stage:
        """Return the statistics of a stage, empty ones at first."""
        if name not in self.stages:
            classes, channels = self.active.shape
            self.stages[name] = Stage.empty(
                classes, channels, self.sample, by_class=name == "input"
            )
        return self.stages[name]

    def count_bins(
        self, seen: Sweep, mean: Tensor, rstd: Tensor, images: Images, part: Tensor | None
    ) -> None:
        """Add z = (x - mean) * rstd of the values that were taken of a batch to the histogram.

        Args:
            seen: the whole batch, with what was taken.
            mean: (C,) or (N, C).
            rstd: as mean.
            images: the batch.
            part: (N,) bool, which of them are counted; None: all.
        """
        assert seen.taken is not None, "asked for"
        self._make_wide()
        labels = images.labels
        if images.at is not None:
            labels = images.at[:, places_of(images.at.shape[1])]
        if part is not None:
            labels = labels.where(part.view(-1, *[1] * (labels.dim() - 1)), -1)
        count_bins(self.histogram, seen.taken, mean, rstd, labels, self.channels)

    def count_active(self, seen: Sweep, labels: Tensor) -> None:
        """Count the values y > 0 of a batch."""
        self.images += len(labels)
        count_active(self.active, self.rate_square, seen, labels)

    def add_centred(self, seen: Sweep, labels: Tensor) -> None:
        """Add the input less its mean over this batch, as training would."""
        every = self.centred.shape[1] == seen.mean.shape[1]
        features = seen.mean if every else seen.mean[:, self.channels]
        positions = float(seen.positions[0])
        self.centred.index_add_(0, labels, features - features.mean(0), alpha=positions)

    def _make_wide(self) -> None:
        """Use int64 where an int32 may not hold what is counted of the input so far."""
        narrow = torch.int32 in (self.active.dtype, self.histogram.dtype)
        if narrow and int(self.stages["input"].count.max()) > FULL:
            self.active, self.histogram = self.active.long(), self.histogram.long()

    def resize(self, classes: int, histograms: int) -> None:
        """Make room for so many classes, and keep the histograms of so many channels at most."""
        for stage in self.stages.values():
            stage.resize(classes)
        self.keep_histograms(histograms)
        for name in ("histogram", "centred", "active"):
            setattr(self, name, resized(getattr(self, name), classes))

    def keep_histograms(self, most: int) -> None:
        """Drop the histograms of channels beyond the first `most` of `nested_channels`."""
        if most < len(self.channels):
            kept = nested_channels(self.active.shape[1], most)
            places = torch.isin(self.channels, kept)
            self.channels, self.histogram = kept, self.histogram[:, places].contiguous()
            self.centred = self.centred[:, places].contiguous()

    def merge(self, other: "TrackedLayer") -> None:
        """Add what another has seen of the same layer, of as many classes."""
        for name, stage in other.stages.items():
            if name in self.stages:
                self.stages[name].merge(stage, self.scale)
            else:
                self.stages[name] = stage
        fewest = min(len(self.channels), len(other.channels))
        for layer in (self, other):
            layer.keep_histograms(fewest)
        self.histogram = _narrow(self.histogram.long() + other.histogram)
        self.active = _narrow(self.active.long() + other.active)
        self.centred += other.centred
        self.rate_square += other.rate_square
        self.images += other.images
        self.activation = self.activation or other.activation
        self.input_activation = self.input_activation or other.input_activation


def joint_channels(channels: int) -> Tensor:
    """Choose the channels of the joint measures: all, or evenly spaced ones of more than JOINT.

    A choice of channels and not a mixture: it is the same after scale and shift, so J stays equal.
    The tensor is shared.
    """
    return _spaced(channels, channels if channels <= JOINT else min(JOINT, THINNED))


@cache
def _spaced(channels: int, kept: int) -> Tensor:
    if kept == channels:
        return torch.arange(channels, device="cpu")
    return torch.linspace(0, channels - 1, kept, dtype=torch.float64, device="cpu").round().long()


def nested_channels(channels: int, most: int) -> Tensor:
    """Choose at most so many channels, nearly evenly spaced, in ascending order.

    A smaller choice is part of a larger one: the order is that of the reversed bits of their
    numbers (van der Corput 1935).
    """
    if most >= channels:
        return torch.arange(channels)
    bits = max(1, (channels - 1).bit_length())
    order = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits)]
    return torch.tensor(sorted([c for c in order if c < channels][:most]))


def trace_weights(scale: Tensor) -> Tensor:
    """Return the weights of squares in `Stage.traces`, (2, C); 0 where channels are left out."""
    used = torch.zeros_like(scale)
    used[joint_channels(len(scale))] = 1
    return torch.stack([used, used * scale.square()])


def resized(table: Tensor, rows: int) -> Tensor:
    """Add rows of zeros up to so many, or drop the rows beyond."""
    if rows <= len(table):
        return table if rows == len(table) else table[:rows].clone()
    return F.pad(table, [0, 0] * (table.dim() - 1) + [0, rows - table.shape[0]])


def _joint(table: Tensor) -> Tensor:
    """Take the columns (..., C) that the joint measures use; without a copy where it is all."""
    channels = table.shape[-1]
    return table if channels <= JOINT else table[..., joint_channels(channels)]


def _narrow(counts: Tensor) -> Tensor:
    return counts if counts.numel() and int(counts.max()) > FULL else counts.to(torch.int32)
