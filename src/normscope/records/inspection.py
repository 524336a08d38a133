"""The result of an inspection: every normalisation layer, class by class."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from normscope.errors import FileError, InputError
from normscope.files import read_text, shown, write_whole
from normscope.records.base import Array, Numbers, Part, Record, plain

StageName = Literal["pre_activation", "input", "normalised", "scaled_shifted", "activated"]
MapKind = Literal["one", "per_condition", "per_sample"]
LabelKind = Literal["classes", "positions", "none"]  # what has a class: samples, positions of masks
TABLES = ("class_mean", "class_var", "firing", "histogram")  # by class, of a layer
IN_JSON = 2_000_000  # numbers in all tables by class up to which JSON holds them
OF_STAGE = (
    "eta2_mean",
    "lda_fraction",
    "nearest_mean_accuracy",
    "separation",
    "cdnv",
    "condition",
    "rank",
    "condition_eta2",
)
OF_LAYER = ("firing_spread", "firing_chance", "signal", "invariance", "eta2_change", "lda_change")
BITS = ("information", "gate_information", "best_information")
# measures between classes, which a record of one class does not have
BETWEEN = {*OF_STAGE[:5], *OF_LAYER, *BITS}
WorkName = Literal["weights", "normalisation", "gamma_beta", "activation"]


@dataclass(frozen=True, kw_only=True)
class StageMeasures(Part):
    """How well the classes are separated at one of a layer's four stages.

    Of one class alone what is between classes is NaN, and eta2 empty.
    """

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
    more: dict[str, float] = field(default_factory=dict)  # measures of `lens.stage_measures`


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer(Part):
    """One call of one normalisation layer, class by class.

    The tables by class are arrays; they have no rows where a record was read without them.
    """

    name: str  # as in model.named_modules(); "#2" is added for a second call per forward
    norm: str  # class name
    activation: str | None  # the one that follows, where one does
    channels: int
    positions: int  # values per image and channel: 1 for (N, C)
    eps: float
    gamma: Numbers  # C; ones where the layer has none
    beta: Numbers  # C; zeros where the layer has none
    running_mean: Numbers  # C; what the layer normalised with; NaN where each sample has its own
    running_var: Numbers  # C
    stages: tuple[StageMeasures, ...]  # four, or three where no activation follows
    class_mean: Array  # K x C float32, input stage
    class_var: Array  # K x C float32, input stage, population variance
    bin_edges: Numbers  # B + 1, z-units; the first and last bin also hold what lies beyond
    histogram: Array  # K x H x B counts of z per class
    gate: Numbers  # C: y > 0 where z > gate = -beta/gamma (below it where gamma < 0)
    firing: Array  # K x C float32: share of values with y > 0, counted on y itself
    invariance: float  # largest difference of eta2 and J between input, normalised, scaled; NaN
    # where the layer is not one map per channel
    notes: tuple[str, ...] = ()  # message keys of what the reader of this layer should know
    histogram_channels: tuple[int, ...] = ()  # H: the channels that `histogram` holds
    information: Numbers = ()  # C: bits that the bin of z tells about the class; NaN where the
    # pass kept no histogram of the channel, as in the two below
    gate_information: Numbers = ()  # C: bits that [y > 0] tells about the class
    best_information: Numbers = ()  # C: bits of the best single threshold on z
    best_gate: Numbers = ()  # C: that threshold, z
    signal: float = math.nan  # share of the class signal that the loader's batches would leave
    rounding: float = 0.0  # of a value, over the deviation of its channel; in the worst channel
    maps: MapKind = "one"  # per channel: one affine map, or one per condition or per sample
    eta2_change: float = math.nan  # mean eta2 of the output less that of the input
    lda_change: float = math.nan  # the same of J
    firing_spread: float = math.nan  # highest firing rate of a class less the lowest, mean over C
    firing_chance: float = math.nan  # what that would be if all classes had the same rate
    images: int = 0  # that the layer saw
    sampled: int = 0  # of them, those on which nearest_mean_accuracy was counted
    pre_activation: StageMeasures | None = None  # before the activation that made the input
    input_activation: str | None = None  # that activation, where the layer comes behind one
    drift: Numbers = ()  # C: distance of the input from the stored statistics, in deviations

    @property
    def compared(self) -> bool:
        """Whether there were two classes, so that measures between classes exist."""
        return bool(self.stages[0].eta2)

    @property
    def every_stage(self) -> tuple[StageMeasures, ...]:
        """The stages in order, that before the activation that made the input included."""
        return self.stages if self.pre_activation is None else (self.pre_activation, *self.stages)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layer) and plain(self) == plain(other)

    __hash__ = None  # type: ignore[assignment]

    def counts(self, k: int, channel: int) -> list[int]:
        """Return the histogram of one class at one of `histogram_channels`."""
        found: list[int] = self.histogram[k, self.histogram_channels.index(channel)].tolist()
        return found

    def measured(self) -> Iterator[tuple[str, str, float]]:
        """Yield stage, name and value of every number that is one of a stage or of the layer."""
        for stage in self.every_stage:
            for name in OF_STAGE:
                yield stage.name, name, getattr(stage, name)
            for name, value in stage.more.items():
                yield stage.name, name, value
        for name in OF_LAYER:
            yield "", name, getattr(self, name)
        for name in (*BITS, "drift"):
            known = [value for value in getattr(self, name) if math.isfinite(value)]
            yield "", name, sum(known) / len(known) if known else math.nan

    def efficiency(self, channel: int) -> float:
        """Return gate information over that of the best threshold, in [0, 1]; NaN at 0."""
        best = self.best_information[channel]
        return self.gate_information[channel] / best if best > 0 else math.nan


@dataclass(frozen=True, kw_only=True)
class Work:
    """The change of each measure over one step of the network: after minus before."""

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
    """The loss of class signal if each batch of the loader were normalised by itself."""

    count: int
    size: float  # m, mean
    excess: float  # r: how much more often than by chance two images of a batch share a class
    predicted: float  # (1 - r)(1 - 1/m): share of the class signal left; measured: Layer.signal


@dataclass(frozen=True, kw_only=True)
class Inspection(Record, kind="inspection"):
    """Every normalisation layer of a model, class by class, over one pass of the data."""

    model: str
    data: str
    classes: tuple[str, ...]  # K names; one where there are no labels
    counts: tuple[int, ...]  # K images, or positions of the masks
    layers: tuple[Layer, ...]
    invariance: float  # largest over the layers; the lens's own self-test
    batches: Batches | None = None
    work: tuple[Work, ...] = ()
    collapse: Collapse | None = None
    skipped: dict[str, str] = field(default_factory=dict)  # layer name -> message key of why
    separation: Numbers = ()  # K: distance to the nearest other class mean at the last layer, in
    # deviations within classes; NaN for a class without images
    labels: LabelKind = "classes"
    targets: str = ""  # dtype and shape of labels that are no classes
    samples: int = 0  # 0 in records of before: the sum of counts

    @property
    def images(self) -> int:
        """How many samples passed."""
        return self.samples or sum(self.counts)

    @property
    def compared(self) -> bool:
        """Whether there are two classes, so that measures between classes exist."""
        return sum(count > 0 for count in self.counts) > 1

    def to_json(self) -> str:
        """Write one JSON document, without tables by class of more than IN_JSON numbers.

        `save` writes those beside it.
        """
        if self._fits_json:
            return super().to_json()
        none: dict[str, Any] = {
            name: np.zeros((0,) * (2 + (name == "histogram"))) for name in TABLES
        }
        layers = tuple(replace(layer, **none) for layer in self.layers)
        return super(Inspection, replace(self, layers=layers)).to_json()

    @property
    def _fits_json(self) -> bool:
        sizes = (getattr(layer, name).size for layer in self.layers for name in TABLES)
        return bool(sum(sizes) <= IN_JSON)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row per layer, stage and measure; a measure of a whole layer has no stage."""
        return [
            {"order": order, "layer": layer.name, "norm": layer.norm, "channels": layer.channels}
            | {"activation": layer.activation, "stage": stage, "measure": name, "value": value}
            for order, layer in enumerate(self.layers, 1)
            for stage, name, value in layer.measured()
            if self.compared or name not in BETWEEN
        ]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the record as JSON, and large tables by class beside it, as `tables_beside` says.

        The tables are named by the place of the layer and the field: "0.class_mean".

        Raises:
            FileError: a file cannot be written.
        """
        path = Path(path)
        if not self._fits_json:
            from safetensors.numpy import save_file

            tables = {
                f"{place}.{name}": np.ascontiguousarray(getattr(layer, name))
                for place, layer in enumerate(self.layers)
                for name in TABLES
            }
            write_whole(tables_beside(path), lambda part: save_file(tables, part))
        return write_whole(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; without large tables by class where their file is gone.

        Raises:
            FileError: a file cannot be read.
            InputError: one of them holds something else.
        """
        path = Path(path)
        record = cls.from_json(read_text(path, cls.kind))
        beside = tables_beside(path)
        if not beside.is_file() or any(len(layer.class_mean) for layer in record.layers):
            return record
        from safetensors.numpy import load_file

        try:
            tables = load_file(beside)
            layers = []
            for place, layer in enumerate(record.layers):
                own: dict[str, Any] = {name: tables[f"{place}.{name}"] for name in TABLES}
                if own["class_mean"].shape != (len(record.classes), layer.channels):
                    raise KeyError(f"{place}.class_mean")
                layers.append(replace(layer, **own))
        except OSError as problem:
            raise FileError(f"{shown(beside)} cannot be read: {problem.strerror}") from problem
        except Exception as problem:
            raise InputError(
                f"{shown(beside)} does not hold the tables of {shown(path)}; "
                "remove it, or inspect again"
            ) from problem
        return replace(record, layers=tuple(layers))


def tables_beside(path: Path) -> Path:
    """Return where `Inspection.save` puts large tables: a.json has a.tables.safetensors."""
    return path.with_suffix(".tables.safetensors")
