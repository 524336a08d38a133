"""The state of an inspection: it merges, is saved and loaded, and becomes a record."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normscope.errors import FileError, InputError
from normscope.files import shown, write_whole
from normscope.lens.channel_map import ChannelMap
from normscope.lens.statistics import Sample, Stage, TrackedLayer, resized
from normscope.moments import Moments

KEY = "normscope.inspection"
SCHEMA = 2
SUFFIX = ".safetensors"
TENSOR = "$tensor"  # no name of a layer
SMALL = 1 << 16  # numbers
LONGEST = 100 << 20  # bytes of the metadata of a file


@dataclass(eq=False)
class BatchComposition:
    """How often two images of one batch share their class: what the composition law needs.

        r = (q - sum p_k^2) / (1 - sum p_k^2),   q = share of pairs in a batch with equal labels

    Attributes:
        batches: how many.
        pairs: sum of m (m - 1) over the batches.
        equal: sum of n_k (n_k - 1) over batches and classes.
    """

    batches: int = 0
    pairs: int = 0
    equal: int = 0

    def add(self, labels: Tensor) -> None:
        """Add a batch."""
        counts = labels.unique(return_counts=True)[1]
        self.batches += 1
        self.pairs += len(labels) * (len(labels) - 1)
        self.equal += int((counts * (counts - 1)).sum())

    def __add__(self, other: "BatchComposition") -> "BatchComposition":
        return BatchComposition(
            self.batches + other.batches, self.pairs + other.pairs, self.equal + other.equal
        )


@dataclass(eq=False)
class InspectionState:
    """All that is kept of a model and its data; its size does not depend on how much was seen.

    Attributes:
        model: shown in the record.
        data: shown in the record.
        classes: K names; None where classes are named by their numbers.
        counts: (K,) int64, images per class.
        composition: of the batches.
        layers: those that are followed, by name, in the order of their first call.
        skipped: layer name -> message key of why it was not followed.
        norms: names of all normalisation layers that could be followed.
        head: weight (K, C) and bias (K,) of a linear head, where the model ends in one.
        incomplete: a batch was left half-way; what was kept of it cannot be taken out again.
    """

    model: str = ""
    data: str = ""
    classes: tuple[str, ...] | None = None
    counts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    composition: BatchComposition = field(default_factory=BatchComposition)
    layers: dict[str, TrackedLayer] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    norms: tuple[str, ...] = ()
    head: tuple[Tensor, Tensor] | None = None
    incomplete: bool = False

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
        for name in set(self.layers) & set(other.layers):
            _check_same_layer(name, self.layers[name], other.layers[name])
        classes = max(len(self.counts), len(other.counts))
        self.resize(classes)
        other.resize(classes)
        self.counts = self.counts + other.counts
        self.composition = self.composition + other.composition
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

    def save(self, path: Path) -> Path:
        """Write everything, exactly, as one safetensors file.

        The metadata hold one JSON text under KEY: the fields as they are, with {"$tensor": NAME} in
        the place of each tensor. Nothing in the file is code.

        Raises:
            InputError: it was left half-way.
            FileError: the file cannot be written.
        """
        from safetensors.torch import save_file

        self.check_whole()
        tensors, metadata = self._parts()
        return write_whole(path, lambda part: save_file(tensors, part, metadata))

    @classmethod
    def load(cls, path: Path) -> "InspectionState":
        """Read what `save` wrote; raises FileError where the file is another one."""
        from safetensors.torch import load_file

        try:
            with path.open("rb") as file:
                head = file.read(min(int.from_bytes(file.read(8), "little"), LONGEST))
        except OSError as problem:
            raise FileError(
                f"{shown(path)} cannot be read: {problem.strerror}; "
                "name what normscope inspect --save wrote"
            ) from problem
        return _restored(head, lambda: load_file(path), shown(path))

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors by name, and the metadata."""
        tensors: dict[str, Tensor] = {}
        about = {"schema": SCHEMA, **_plain(self, "", tensors)}
        return tensors, {KEY: json.dumps(about, ensure_ascii=False)}

    def all_reduce(self, process_group: dist.ProcessGroup | None = None) -> "InspectionState":
        """Merge what all ranks have seen, the same on every rank; itself changes too.

        Every rank must call it, one without data too. Works on any backend.
        """
        from safetensors.torch import load, save

        self.check_whole()
        own = torch.frombuffer(bytearray(save(*self._parts())), dtype=torch.uint8)
        world = dist.get_world_size(process_group)
        device = "cuda" if dist.get_backend(process_group) == "nccl" else "cpu"
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world)]
        dist.all_gather(sizes, torch.tensor([len(own)], device=device), group=process_group)
        padded = resized(own.to(device), max(int(size) for size in sizes))
        ranks = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(ranks, padded, group=process_group)
        together = InspectionState()
        for rank, size in zip(ranks, sizes, strict=True):
            content = bytes(rank[: int(size)].cpu().numpy())
            head = content[8 : 8 + int.from_bytes(content[:8], "little")]
            together.merge(_restored(head, partial(load, content), "a rank"))
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
    """Where the state of a record lies: the same name, .safetensors."""
    return record if record.suffix == SUFFIX else record.with_suffix(SUFFIX)


def _plain(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON can hold it; its tensors go into `tensors`."""
    if isinstance(value, Tensor):
        small = value.numel() <= SMALL  # these may share memory with one another
        tensors[name] = value.detach().cpu().contiguous()
        if small:
            tensors[name] = tensors[name].clone()
        return {TENSOR: name}
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, dict):
        # layers by their place: a layer's name may hold anything
        places = {key: str(i) if name == "layers" else key for i, key in enumerate(value)}
        return {
            key: _plain(item, f"{name}.{places[key]}".strip("."), tensors)
            for key, item in value.items()
        }
    if isinstance(value, tuple):
        return [_plain(item, f"{name}.{place}", tensors) for place, item in enumerate(value)]
    return value


def _restored(head: bytes, load: Callable[[], dict[str, Tensor]], where: str) -> InspectionState:
    """The state of a file's head and tensors; `where` names it in messages."""
    try:
        about = json.loads(json.loads(head)["__metadata__"][KEY])
        if (schema := about.pop("schema")) != SCHEMA:
            raise FileError(
                f"{where} has schema {schema}, this normscope reads {SCHEMA}; "
                "inspect again with the same version"
            )
        tensors = load()

        def revived(value: Any) -> Any:
            if isinstance(value, list):
                return tuple(map(revived, value))
            if not isinstance(value, dict):
                return value
            if value.keys() == {TENSOR}:
                return tensors[value[TENSOR]]
            return {key: revived(item) for key, item in value.items()}

        own = revived(about)
        own["composition"] = BatchComposition(**own["composition"])
        own["layers"] = {name: _layer(**parts) for name, parts in own["layers"].items()}
        return InspectionState(**own)
    except FileError:
        raise
    except Exception as problem:
        raise FileError(
            f"{where} holds no whole inspection; name what normscope inspect --save wrote"
        ) from problem


def _layer(map: Any, stages: Any, **own: Any) -> TrackedLayer:
    return TrackedLayer(
        map=ChannelMap(**map),
        stages={name: _stage(**parts) for name, parts in stages.items()},
        **own,
    )


def _stage(sample: Any, conditions: Any, **own: Any) -> Stage:
    return Stage(sample=Sample(**sample), conditions=Moments(**conditions), **own)


def _check_same_layer(name: str, a: TrackedLayer, b: TrackedLayer) -> None:
    tables = ("mean", "var", "gamma", "beta")
    if not all(torch.equal(*(getattr(x.map, t).nan_to_num() for x in (a, b))) for t in tables):
        raise InputError(
            f"these are passes over different weights: layer {name} differs; "
            "merge passes over one checkpoint, or compare them"
        )


def _named(classes: Sequence[str] | None) -> str:
    return (
        "unnamed ones" if classes is None else ", ".join(classes[:4]) + ", ..." * (len(classes) > 4)
    )
