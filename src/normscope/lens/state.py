"""The state of an inspection: it merges, is saved and loaded, and becomes a record."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from normscope.errors import FileError, InputError
from normscope.files import shown, write_whole
from normscope.lens.channel_map import ChannelMap
from normscope.lens.images import Sample
from normscope.lens.statistics import Stage, TrackedLayer, resized
from normscope.moments import Moments, check_distributed
from normscope.probe.load import is_overstated
from normscope.probe.ranks import gathered
from normscope.records import LabelKind

SCHEMA = 3  # raised when what a saved state holds changes
SUFFIX = ".pt"


@dataclass(eq=False)
class InspectionState:
    """All that is kept of a model and its data; its size does not depend on how much was seen.

    Attributes:
        model: shown in the record.
        data: shown in the record.
        classes: K names; None where classes are named by their numbers.
        kind: what has a class; None before the first batch.
        targets: dtype and shape of labels that are no classes.
        cuts: between the three classes of one number.
        images: how many.
        counts: (K,) int64, images per class, or positions of the masks.
        batches: how many.
        pairs: of samples in one batch, sum of m (m - 1) over the batches.
        equal: of them, those of one class.
        layers: those that are followed, by name, in the order of their first call.
        skipped: layer name -> message key of why it was not followed.
        norms: names of all normalisation layers that could be followed.
        head: weight (K, C) and bias (K,) of a linear head, where the model ends in one.
        incomplete: a batch was left half-way; what was kept of it cannot be taken out again.
        schema: of a saved state.
    """

    model: str = ""
    data: str = ""
    classes: tuple[str, ...] | None = None
    kind: LabelKind | None = None
    targets: str = ""
    cuts: tuple[float, float] | None = None
    images: int = 0
    counts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    batches: int = 0
    pairs: int = 0
    equal: int = 0
    layers: dict[str, TrackedLayer] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    norms: tuple[str, ...] = ()
    head: tuple[Tensor, Tensor] | None = None
    incomplete: bool = False
    schema: int = SCHEMA

    def resize(self, classes: int, histograms: dict[str, int] | None = None) -> None:
        """Make room for so many classes, or drop rows that hold none.

        Args:
            classes: how many.
            histograms: how many channels of each layer keep one at most; None: as they are.
        """
        self.counts = resized(self.counts, classes)
        for name, layer in self.layers.items():
            most = len(layer.channels) if histograms is None else histograms[name]
            layer.resize(classes, most)

    def skip(self, name: str, why: str) -> None:
        """Follow a layer no longer."""
        self.skipped[name] = why
        self.layers.pop(name, None)

    def merge(self, other: "InspectionState") -> "InspectionState":
        """Add what `other` has seen of the same model, of other data; returns itself.

        Raises:
            InputError: other weights, other class names, or one that was left half-way.
        """
        for part in (self, other):
            part.check_whole()
        if not other.norms:
            return self
        if not self.norms:
            self.__dict__.update(other.__dict__)
            return self
        if self.norms != other.norms:
            raise InputError(
                "these are passes over different models: their normalisation layers differ; "
                "merge passes over one model"
            )
        if self.classes != other.classes:
            raise InputError(
                f"these passes have different classes, {_named(self.classes)} and "
                f"{_named(other.classes)}; merge passes over the same ones"
            )
        if (self.kind, self.cuts) != (other.kind, other.cuts):
            raise InputError(
                f"these passes have different labels, {_labels(self)} and {_labels(other)}; "
                "merge passes with the same labels="
            )
        for name in set(self.layers) & set(other.layers):
            _check_same_layer(name, self.layers[name], other.layers[name])
        classes = max(len(self.counts), len(other.counts))
        self.resize(classes)
        other.resize(classes)
        self.counts = self.counts + other.counts
        for name in ("images", "batches", "pairs", "equal"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.data = self.data or other.data
        for name, why in other.skipped.items():
            self.skip(name, why)
        for name, layer in other.layers.items():
            if name in self.skipped:
                continue
            own = self.layers.setdefault(name, layer)
            if own is not layer:
                own.merge(layer)
        return self

    def save(self, path: str | Path) -> Path:
        """Write everything, exactly, as torch.save does; nothing in the file is code.

        Raises:
            InputError: it was left half-way.
            FileError: the file cannot be written.
        """
        self.check_whole()

        def write(part: Path) -> None:
            with part.open("wb") as file:  # by a path, its name would be a part of the content
                torch.save(self, file)

        return write_whole(Path(path), write)

    @classmethod
    def load(cls, path: str | Path) -> "InspectionState":
        """Read what `save` wrote; raises FileError where the file is another one."""
        where = shown(path)
        try:
            with torch.serialization.safe_globals(STORED):
                state = torch.load(path, weights_only=True)
            schema = state.schema if isinstance(state, cls) else None
        except OSError as problem:
            raise FileError(
                f"{where} cannot be read: {problem.strerror}; "
                "name what normscope inspect --save wrote"
            ) from problem
        except Exception as problem:
            raise FileError(
                f"{where} holds no whole inspection; name what normscope inspect --save wrote"
            ) from problem
        if type(schema) is not int or schema != SCHEMA:
            raise FileError(
                f"{where} has schema {shown(repr(schema))[:40]}, this normscope reads {SCHEMA}; "
                "inspect again with the same version"
            )
        if is_overstated(state):
            raise FileError(f"{where} claims more values than it holds; inspect again")
        return cast("InspectionState", state)

    def all_reduce(self, process_group: dist.ProcessGroup | None = None) -> "InspectionState":
        """Merge what all ranks have seen, the same on every rank; itself changes too.

        Every rank must call it, one without data too. Works on any backend.

        Raises:
            InputError: this process is no rank of a distributed run, or the pass is not whole.
        """
        check_distributed(process_group)
        self.check_whole()
        together = InspectionState()
        for rank in gathered(self, process_group):
            together.merge(rank)
        self.__dict__.update(together.__dict__)
        return self

    def check_whole(self) -> None:
        """Refuse one that holds part of a batch."""
        if self.incomplete:
            raise InputError(
                "a batch failed half-way through this pass, so some layers have seen more than "
                "others; start it again"
            )


def beside(record: Path) -> Path:
    """Return where the state of a record lies: the same name, .pt."""
    return record if record.suffix == SUFFIX else record.with_suffix(SUFFIX)


# what a saved state consists of, besides tensors and plain values
STORED: list[Any] = [
    InspectionState,
    TrackedLayer,
    ChannelMap,
    Stage,
    Sample,
    Moments,
]


def _check_same_layer(name: str, a: TrackedLayer, b: TrackedLayer) -> None:
    tables = ("mean", "var", "gamma", "beta")
    if not all(torch.equal(*(getattr(x.map, t).nan_to_num() for x in (a, b))) for t in tables):
        raise InputError(
            f"these are passes over different weights: layer {name} differs; "
            "merge passes over one checkpoint, or compare them"
        )


def _labels(state: InspectionState) -> str:
    if state.cuts is not None:
        return "groups at {:.3g} and {:.3g}".format(*state.cuts)
    return {"classes": "one class per sample", "positions": "masks"}.get(state.kind or "", "none")


def _named(classes: Sequence[str] | None) -> str:
    return (
        "unnamed ones" if classes is None else ", ".join(classes[:4]) + ", ..." * (len(classes) > 4)
    )
