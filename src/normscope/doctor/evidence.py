"""The one pass over the data that all checks read."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from normscope import probe
from normscope.doctor.loader import Batch, Forward, Loader, Part, rows
from normscope.doctor.outputs import Comparison, scores_of
from normscope.doctor.passage import Passage, dropouts
from normscope.doctor.tally import Tally, merged
from normscope.functional import moments
from normscope.moments import Moments
from normscope.probe import Call, Norm

KEPT = 768  # samples that are kept to measure causes on
CLOSE = 1024  # samples of which gates and images are looked at one by one

# fmt: off
GATES = frozenset({"relu", "relu6", "leaky_relu", "silu", "gelu", "elu", "hardswish", "mish",
                   "prelu", "celu", "selu", "clamp_min"})
# fmt: on


@dataclass
class Labels:
    """What the labels say of how batches are composed."""

    pairs: float = 0.0  # pairs of batch-mates with equal labels
    of: float = 0.0  # pairs
    counts: Counter[int] = field(default_factory=Counter)
    columns: list[Tensor] = field(default_factory=list)  # labels of whole batches, by place

    def add(self, labels: Tensor) -> None:
        """One batch."""
        n = len(labels)
        if n > 1:
            per_class = torch.bincount(labels.cpu()).double()
            self.pairs += float((per_class * (per_class - 1)).sum())
            self.of += n * (n - 1)
        self.counts.update(labels.tolist())
        if len(self.columns) < 64:
            self.columns.append(labels.cpu())

    def excess(self) -> float:
        """r: how much likelier than chance a batch-mate shares the class; NaN where unknown."""
        total = sum(self.counts.values())
        chance = sum((n / total) ** 2 for n in self.counts.values()) if total else 1.0
        if not self.of or chance > 1 - 1e-9 or len(self.columns) < 2:
            return float("nan")
        return (self.pairs / self.of - chance) / (1 - chance)

    def fixed_places(self) -> float:
        """The same over batches at one place of the batch; NaN with fewer than four batches."""
        size = len(self.columns[0]) if self.columns else 0
        whole = [c for c in self.columns if len(c) == size]
        total = sum(self.counts.values())
        chance = sum((n / total) ** 2 for n in self.counts.values()) if total else 1.0
        if len(whole) < 4 or chance > 1 - 1e-9:
            return float("nan")
        table = torch.stack(whole)  # batches x places
        same = torch.stack([(table == row).sum(0) for row in table]).sum() - table.numel()
        q = float(same) / (table.numel() * (len(whole) - 1))
        return (q - chance) / (1 - chance)


@dataclass
class Look:
    """What was seen of one layer beside its moments, on the first samples."""

    fired: Tensor | None = None  # (C,), values above zero after scale and shift
    values: int = 0  # per channel
    activation: str = ""
    between: Tensor | None = None  # (C,), sum of squares of image means about their mean
    within: Tensor | None = None  # (C,), all values
    positions: int = 1
    padded: float = 0.0  # share of trailing positions that repeat in every channel
    seen: int = 0


@dataclass
class Evidence:
    """What the data told. Tallies are layer -> one per call, of the layer's input.

    Attributes:
        stored: while layers normalised with what they have, as in eval().
        by_batch: while they normalised with the batch at hand, as in train(), dropout off.
        dropped: as by_batch, dropout on; empty where the model has none.
        gap: eval() against train() on every sample.
        sizes: of the batches.
        labels, places: how classes and domains are spread over batches.
        kept: the first batches, KEPT samples or a little more.
        by_domain, by_class: (K,) moments per layer, where the data have domains.
        leak: largest relative change of a sample's output when its batch-mates go; NaN unknown.
    """

    stored: dict[str, list[Tally]] = field(default_factory=dict)
    by_batch: dict[str, list[Tally]] = field(default_factory=dict)
    dropped: dict[str, list[Tally]] = field(default_factory=dict)
    gap: Comparison = field(default_factory=Comparison)
    sizes: list[int] = field(default_factory=list)
    labels: Labels = field(default_factory=Labels)
    places: Labels = field(default_factory=Labels)
    kept: list[Batch] = field(default_factory=list)
    looks: dict[str, Look] = field(default_factory=dict)
    by_domain: dict[str, Moments] = field(default_factory=dict)
    by_class: dict[str, Moments] = field(default_factory=dict)
    domains: int = 0
    leak: float = float("nan")
    forward: Forward | None = None

    def again(self) -> Loader:
        """The batches that were kept, to be read once more."""
        return Loader([batch.given for batch in self.kept], self.forward)

    def population(self, name: str) -> Moments:
        """Of a layer's input over the whole data, as in train()."""
        return merged([tally.total() for tally in self.by_batch[name]])


def gathered(
    model: nn.Module,
    loader: Loader,
    layers: Mapping[str, nn.Module],
    *,
    part: Part = "all",
    domains: bool = True,
) -> Evidence:
    """Read the data once; three forwards a batch at most. The model comes back as it was.

    Raises:
        InputError, ModelError: as `Loader`.
    """
    found = Evidence(forward=loader.forward)
    dropping = dropouts(model)
    stored = Passage(layers)
    by_batch = Passage(layers, by_batch=set(layers))
    dropped = Passage(layers, by_batch=set(layers))
    norms = [n for n in probe.find_norms(model) if n.name in layers]
    for batch in loader.read(part):
        close = sum(found.sizes) < CLOSE
        watcher = _Watcher(found, batch if domains else None, batch)
        with probe.untouched(model):
            with stored.watching():
                evaluated = scores_of(stored.run(loader, model, batch), batch.size)
            if not found.sizes:
                found.leak = _leak(model, loader, batch, evaluated)
            looks = close or (domains and batch.condition is not None)
            # gates are looked at as in training, where no stored statistics mislead them
            with ExitStack() as inside:
                inside.enter_context(by_batch.watching())
                if looks:
                    inside.enter_context(probe.observe(model, norms, watcher))
                trained = scores_of(by_batch.run(loader, model, batch), batch.size)
        if dropping:
            with probe.untouched(model), dropped.watching():
                for module in dropping:
                    module.training = True
                dropped.run(loader, model, batch)
        if evaluated.shape == trained.shape:
            found.gap.add(trained, evaluated, batch.labels)
        if sum(b.size for b in found.kept) < KEPT:
            found.kept.append(batch)
        if batch.labels is not None:
            found.labels.add(batch.labels)
        if batch.condition is not None and domains:
            found.places.add(batch.condition)
        found.sizes.append(batch.size)
    found.stored, found.by_batch = stored.tallies, by_batch.tallies
    found.dropped = dropped.tallies
    return found


class _Watcher:
    """Looks at what enters and leaves each layer while it normalises by the batch."""

    def __init__(self, found: Evidence, grouped: Batch | None, batch: Batch) -> None:
        self._found, self._batch = found, batch
        self._domains = None if grouped is None else grouped.condition

    def normed(self, call: Call, before: Tensor, after: Tensor) -> None:
        look = self._found.looks.setdefault(call.name, Look())
        x = before.detach()
        if x.dim() < 2 or not x.is_floating_point():
            return
        if self._domains is not None and len(x) == len(self._domains):
            self._group(call, x)
        if look.seen >= CLOSE:
            return
        look.seen += len(x)
        look.positions = x[0, 0].numel()
        axes = [0, *range(2, x.dim())]
        fired = (after.detach() > 0).sum(axes)
        look.fired = fired if look.fired is None else look.fired + fired
        look.values += x.numel() // x.shape[1]
        if x.dim() > 2:
            means = x.double().flatten(2).mean(2)
            middle = means.mean(0)
            between = (means - middle).pow(2).sum(0) * look.positions
            centred = (x.double().flatten(2) - middle.unsqueeze(1)).pow(2).sum((0, 2))
            look.between = between if look.between is None else look.between + between
            look.within = centred if look.within is None else look.within + centred
        if x.dim() == 3 and x.shape[2] > 1:
            look.padded = max(look.padded, _padded(x))

    def activated(self, call: Call, activation: str, after: Tensor) -> None:
        if call.name in self._found.looks:
            self._found.looks[call.name].activation = activation

    def _group(self, call: Call, x: Tensor) -> None:
        assert self._domains is not None, "asked before"
        pairs: list[tuple[dict[str, Moments], Tensor]] = [(self._found.by_domain, self._domains)]
        if self._batch.labels is not None:
            pairs.append((self._found.by_class, self._batch.labels))
        self._found.domains = max(self._found.domains, int(self._domains.max()) + 1)
        for table, ids in pairs:
            groups = max(
                int(ids.max()) + 1, len(table[call.layer].count) if call.layer in table else 1
            )
            new = moments(x, ids, groups)
            table[call.layer] = _sum(table.get(call.layer), new)


def _sum(old: Moments | None, new: Moments) -> Moments:
    if old is None:
        return new
    more = len(new.count) - len(old.count)
    if more > 0:
        empty = Moments.empty(more, new.mean.shape[1], device=new.mean.device)
        old = Moments(
            torch.cat([old.count, empty.count]),
            torch.cat([old.mean, empty.mean]),
            torch.cat([old.m2, empty.m2]),
        )
    return old + new


def _padded(x: Tensor) -> float:
    """Share of positions at the ends that repeat the last one in all channels, of (N, C, L)."""
    same = (x == x[:, :, -1:]).all(1)  # N x L
    run = same.flip(1).cumprod(1).sum(1)
    return float((run - 1).clamp(min=0).sum()) / (x.shape[0] * x.shape[2])


def _leak(model: nn.Module, loader: Loader, batch: Batch, whole: Tensor) -> float:
    """Largest change of the first half's outputs when the second half is left out."""
    half = batch.size // 2
    if half < 1:
        return float("nan")
    keep = torch.arange(batch.size) < half
    part = loader.batch(batch.index, rows(batch.given, keep, batch.size))
    alone = scores_of(loader.run(model, part), half)
    if alone.shape != whole[:half].shape or not bool(whole.isfinite().all()):
        return float("nan")
    scale = whole.abs().max().clamp(min=1e-12)
    return float((alone - whole[:half]).abs().max() / scale)


def norms_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose inputs are measured: with statistics per channel or per condition."""
    return {n.name: n.module for n in _followed(model)}


def _followed(model: nn.Module) -> list[Norm]:
    return [n for n in probe.find_norms(model) if n.skipped is None]
