"""What the lens saw of a model."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from normscope.records.base import Numbers, Record, Table

StageName = Literal["input", "normalised", "scaled_shifted", "activated"]


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
    histogram: tuple[tuple[tuple[int, ...], ...], ...]  # K x C x B counts of z per class
    gate: Numbers  # C: y > 0 where z > gate = -beta/gamma (below it where gamma < 0)
    firing: Table  # K x C: share of values with y > 0, counted on y itself
    invariance: float  # largest difference of eta2 and J between input, normalised, scaled
    notes: tuple[str, ...] = ()  # message keys of what the reader of this layer should know


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
    skipped: dict[str, str] = field(default_factory=dict)  # layer name -> message key of why
