"""What a pass over the data leaves: it merges, is saved and loaded, and becomes an inspection."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from normscope.errors import InputError
from normscope.lens import storage
from normscope.lens.channel_map import ChannelMap
from normscope.lens.tally import Tally, grown


@dataclass(eq=False)
class Followed:
    """A layer, or the images of one condition at it, with all that was seen of it.

    Attributes:
        norm: the layer's class name.
        shown: its map per channel, (C,); the pooled one where several maps come together.
        mixed: whether several maps come together.
        gated: whether all images meet the same gate.
        tally: what was seen.
    """

    norm: str
    shown: ChannelMap
    mixed: bool
    gated: bool
    tally: Tally


@dataclass(eq=False)
class Mates:
    """Who shared a batch with whom: what the composition law needs of the labels.

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
        """A batch."""
        counts = torch.bincount(labels).tolist()
        self.batches += 1
        self.pairs += len(labels) * (len(labels) - 1)
        self.equal += sum(n * (n - 1) for n in counts)

    def __add__(self, other: "Mates") -> "Mates":
        return Mates(
            self.batches + other.batches, self.pairs + other.pairs, self.equal + other.equal
        )


@dataclass(eq=False)
class Accumulation:
    """All that is kept of a model and its data; its size does not depend on how much was seen.

    Attributes:
        model: shown in the record.
        data: shown in the record.
        classes: K names; None where classes are named by their numbers.
        counts: (K,) int64, images per class.
        mates: of the batches.
        followed: layers by name, in the order of their first call.
        skipped: layer name -> message key of why it was not followed.
        norms: names of all normalisation layers that could be followed.
        head: weight (K, C) and bias (K,) of a linear head, where the model ends in one.
        torn: a batch was left half-way; what was kept of it cannot be taken out again.
    """

    model: str = ""
    data: str = ""
    classes: tuple[str, ...] | None = None
    counts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    mates: Mates = field(default_factory=Mates)
    followed: dict[str, Followed] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    norms: tuple[str, ...] = ()
    head: tuple[Tensor, Tensor] | None = None
    torn: bool = False

    def make_room(self, classes: int) -> None:
        """Room for so many classes."""
        if classes > len(self.counts):
            self.counts = grown(self.counts, classes)
            for layer in self.followed.values():
                layer.tally.grow(classes)

    def skip(self, name: str, why: str) -> None:
        """Follow a layer no longer."""
        self.skipped[name] = why
        self.followed.pop(name, None)

    def merge(self, other: "Accumulation") -> "Accumulation":
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
        classes = max(len(self.counts), len(other.counts))
        self.make_room(classes)
        other.make_room(classes)
        self.counts = self.counts + other.counts
        self.mates = self.mates + other.mates
        self.data = self.data or other.data
        for name, why in other.skipped.items():
            self.skip(name, why)
        for name, layer in other.followed.items():
            if name in self.skipped:
                continue
            mine = self.followed.setdefault(name, layer)
            if mine is not layer:
                _check_same_layer(name, mine, layer)
                mine.tally.merge(layer.tally)
        return self

    def save(self, path: Path) -> Path:
        """Write everything, exactly, as one safetensors file; see `storage`.

        Raises:
            InputError: it was left half-way.
            FileError: the file cannot be written.
        """
        self.check_whole()
        return storage.write(path, self)

    @classmethod
    def load(cls, path: Path) -> "Accumulation":
        """What `save` wrote; raises FileError where the file is another one."""
        return storage.read(path, cls())

    def all_reduce(self, process_group: dist.ProcessGroup | None = None) -> "Accumulation":
        """What all ranks have seen together, the same on every rank; itself changes too.

        Every rank must call it, one without data too. Works on any backend.
        """
        self.check_whole()
        mine = torch.frombuffer(bytearray(storage.packed(self)), dtype=torch.uint8)
        world = dist.get_world_size(process_group)
        device = "cuda" if dist.get_backend(process_group) == "nccl" else "cpu"
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world)]
        dist.all_gather(sizes, torch.tensor([len(mine)], device=device), group=process_group)
        longest = max(int(size) for size in sizes)
        padded = grown(mine.to(device), longest)
        ranks = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(ranks, padded, group=process_group)
        together = Accumulation()
        for rank, size in zip(ranks, sizes, strict=True):
            content = bytes(rank[: int(size)].cpu().numpy())
            together.merge(storage.unpacked(content, Accumulation(), "a rank"))
        self.__dict__.update(together.__dict__)
        return self

    def check_whole(self) -> None:
        """Refuse one that holds part of a batch."""
        if self.torn:
            raise InputError(
                "a batch failed half-way through this pass, so some layers have seen more than "
                "others; start it again"
            )


def _check_same_layer(name: str, a: Followed, b: Followed) -> None:
    tables = ("mean", "var", "gamma", "beta")
    if not all(torch.equal(getattr(a.shown, t), getattr(b.shown, t)) for t in tables):
        raise InputError(
            f"these are passes over different weights: layer {name} differs; "
            "merge passes over one checkpoint, or compare them"
        )


def _named(classes: Sequence[str] | None) -> str:
    return (
        "unnamed ones" if classes is None else ", ".join(classes[:4]) + ", ..." * (len(classes) > 4)
    )
