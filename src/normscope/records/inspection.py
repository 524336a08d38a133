"""What the lens saw of a model."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from normscope.records.base import Numbers, Record, Table

StageName = Literal["input", "normalised", "scaled_shifted", "activated"]
WorkName = Literal["weights", "normalisation", "gamma_beta", "activation"]


@dataclass(frozen=True, kw_only=True)
class StageMeasures:
    """How well the classes stand apart at one of a layer's four stages."""

    name: StageName
    eta2: Numbers  # C: between-class share of each channel's variance, per value that BN sees
    eta2_mean: float
    lda_fraction: float  # J = tr(S_T^-1 S_B) / (K-1), in [0, 1], per image
    nearest_mean_accuracy: float  # share of images whose nearest class mean is their own
    condition: float  # largest / smallest eigenvalue of S_T
    rank: int  # eigenvalues of S_T that count
    separation: float = math.nan  # D = tr(S_W S_B^+), per image
    cdnv: float = math.nan  # class-distance normalised variance, mean over pairs of classes
    condition_eta2: float = math.nan  # eta2_mean with the condition (domain) in place of the class


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One call of one normalisation layer: who came in, what was done, who left."""

    name: str  # as in model.named_modules(); "#2" is added for a second call per forward
    norm: str  # class name
    activation: str | None  # the one that follows, where one does
    channels: int
    positions: int  # values per image and channel: 1 for (N, C)
    eps: float
    gamma: Numbers  # C; ones where the layer has none
    beta: Numbers  # C; zeros where the layer has none
    running_mean: Numbers  # C; what the layer normalised with
    running_var: Numbers  # C
    stages: tuple[StageMeasures, ...]  # four, or three where no activation follows
    class_mean: Table  # K x C, input stage
    class_var: Table  # K x C, input stage, population variance
    bin_edges: Numbers  # B + 1, z-units; the first and last bin also hold what lies beyond
    histogram: tuple[tuple[tuple[int, ...], ...], ...]  # K x H x B counts of z per class
    gate: Numbers  # C: y > 0 where z > gate = -beta/gamma (below it where gamma < 0)
    firing: Table  # K x C: share of values with y > 0, counted on y itself
    invariance: float  # largest difference of eta2 and J between input, normalised, scaled
    notes: tuple[str, ...] = ()  # message keys of what the reader of this layer should know
    histogram_channels: tuple[int, ...] = ()  # H: the channels that `histogram` holds
    information: Numbers = ()  # C: bits that the bin of z tells about the class
    gate_information: Numbers = ()  # C: bits that [y > 0] tells about the class
    best_information: Numbers = ()  # C: bits of the best single threshold on z
    best_gate: Numbers = ()  # C: that threshold, z
    signal: float = math.nan  # share of the class signal that the loader's batches would leave
    rounding: float = 0.0  # of a value, over the deviation of its channel; in the worst channel

    def counts(self, k: int, channel: int) -> tuple[int, ...]:
        """The histogram of one class at one of `histogram_channels`."""
        return self.histogram[k][self.histogram_channels.index(channel)]

    def efficiency(self, channel: int) -> float:
        """Gate information over that of the best threshold, in [0, 1]; NaN where that is 0."""
        best = self.best_information[channel]
        return self.gate_information[channel] / best if best > 0 else math.nan


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one step of the network changed: each measure after it, less before it."""

    layer: str
    by: WorkName  # "weights" is everything between the layer before and this one
    eta2: float
    lda: float
    nearest_mean: float
    separation: float  # log10 of D after / before: below 0 the classes moved apart
    condition: float  # log10


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """The neural-collapse set at the last layer; 0 is collapsed, except agreement, where 1 is."""

    layer: str
    within: float  # NC1: tr(S_W S_B^+) / K
    within_unweighted: float  # the same with every class weighing as much
    norms: float  # NC2: std / mean of the distances of the class means from their centre
    angles: float  # NC2: mean |cos + 1/(K-1)|
    simplex: float  # NC2: distance from a simplex
    duality: float  # NC3: distance of the head from the class means; NaN without a linear head
    agreement: float  # NC4: share of images where head and nearest class mean agree


@dataclass(frozen=True, kw_only=True)
class Batches:
    """What the loader's batches would do to the class signal if each normalised itself."""

    count: int
    size: float  # m, mean
    excess: float  # r: how much more often than by chance two images of a batch share a class
    predicted: float  # (1 - r)(1 - 1/m): share of the class signal left; measured: Layer.signal


@dataclass(frozen=True, kw_only=True)
class Inspection(Record):
    """Every normalisation layer of a model, class by class, over one pass of the data."""

    kind: ClassVar[str] = "inspection"
    model: str
    data: str
    classes: tuple[str, ...]  # K names
    counts: tuple[int, ...]  # K images
    layers: tuple[Layer, ...]
    invariance: float  # largest over the layers; the lens's own self-test
    batches: Batches | None = None
    work: tuple[Work, ...] = ()
    collapse: Collapse | None = None
    skipped: dict[str, str] = field(default_factory=dict)  # layer name -> message key of why
