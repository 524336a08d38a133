"""Read the data once and collect what every check needs."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normscope import probe
from normscope.errors import NormscopeError
from normscope.functional import batch_norm, moments
from normscope.moments import Moments
from normscope.probe import Call
from normscope.probe.batches import Loader, Part
from normscope.probe.compare import Answer, Comparison, Goal
from normscope.probe.grammar import Batch, tensors
from normscope.probe.run import NormRun, dropouts
from normscope.probe.stream import MomentStream, population_of
from normscope.progress import Progress

KEPT = 768  # samples that are kept to measure causes on
CLOSE = 1024  # samples whose activations and sample means are looked at one by one
GROUPS = 256  # domains or classes at most whose statistics are compared
WIDE = 32  # values of a sample, from which two are equal only if one is a copy
CLOSELY = 0.05  # of the mean squared distance of two samples
FEW = 16  # distinct samples, on which statistics cannot be judged
OFTEN = 4  # samples per domain at least; ids that are nearly all distinct are no domains


@dataclass
class Composition:
    """How one kind of label is spread over batches."""

    pairs: float = 0.0  # pairs in one batch with equal labels
    of: float = 0.0  # pairs in one batch
    counts: Counter[int] = field(default_factory=Counter)
    columns: list[Tensor] = field(default_factory=list)  # labels of whole batches, by place

    def add(self, labels: Tensor) -> None:
        """Record one batch."""
        n = len(labels)
        values, counts = labels.cpu().unique(return_counts=True)
        self.pairs += float((counts.double() * (counts - 1)).sum())
        self.of += n * (n - 1)
        self.counts.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        if len(self.columns) < 64:
            self.columns.append(labels.cpu())

    @property
    def chance(self) -> float:
        """Probability that two samples of the data share the label."""
        total = sum(self.counts.values())
        return sum((n / total) ** 2 for n in self.counts.values()) if total else 1.0

    def excess(self) -> float:
        """Return r: how much likelier than chance samples of a batch share the label; or NaN."""
        if not self.of or self.chance > 1 - 1e-9 or len(self.columns) < 2:
            return float("nan")
        return (self.pairs / self.of - self.chance) / (1 - self.chance)

    def fixed_places(self) -> float:
        """Compute the same over batches at one place of them; NaN with fewer than four batches."""
        size = len(self.columns[0]) if self.columns else 0
        whole = [c for c in self.columns if len(c) == size]
        if len(whole) < 4 or self.chance > 1 - 1e-9:
            return float("nan")
        table = torch.stack(whole)  # batches x places
        same = torch.stack([(table == row).sum(0) for row in table]).sum() - table.numel()
        q = float(same) / (table.numel() * (len(whole) - 1))
        return (q - self.chance) / (1 - self.chance)

    @property
    def repeats(self) -> bool:
        """Whether labels come up often enough to be groups, and are not ids."""
        return 1 < len(self.counts) <= min(GROUPS, sum(self.counts.values()) / OFTEN)


@dataclass
class LayerSample:
    """One layer on the first samples, while it normalises by the batch.

    Attributes:
        active: (C,) values above zero after scale and shift.
        values: per channel.
        means: moments of the means over positions of each sample.
        within: (C,) their sum of squares about the means of their batches.
        all: moments of all values.
        sizes: of the batches.
        positions: of one sample.
        padded: largest share of trailing positions that repeat in every channel.
    """

    active: Tensor | int = 0
    values: int = 0
    activation: str = ""
    means: Moments | None = None
    within: Tensor | float = 0.0
    all: Moments | None = None
    sizes: list[int] = field(default_factory=list)
    positions: int = 1
    padded: float = 0.0

    def share_between(self) -> float:
        """Share of a channel's variance that lies between samples, beyond chance; their mean."""
        if self.means is None or self.all is None or self.positions < 2:
            return 1.0
        live = self.all.m2 > 1e-12 * self.all.count
        if not bool(live.any()):
            return 1.0
        p = self.positions
        raw = float((p * self.means.m2 / self.all.m2.clamp(min=1e-300))[live].mean())
        return min(max((raw - 1 / p) / (1 - 1 / p), 0.0), 1.0)

    def effective(self) -> float:
        """Return N P / (1 + (P-1) ICC): independent values per channel in a usual batch of N rows.

        P positions; ICC is `share_between`.
        """
        p, size = self.positions, sorted(self.sizes)[len(self.sizes) // 2]
        return size * p / (1 + (p - 1) * self.share_between())

    def batch_correlation(self) -> tuple[float, float]:
        """Return r of samples in one batch, mean over channels, and its standard error; or NaN.

        Analysis of variance of sample means by batch: (MSB - MSW) / (MSB + (m-1) MSW).
        """
        samples, batches = sum(self.sizes), len(self.sizes)
        if self.means is None or batches < 4 or samples <= batches:
            return float("nan"), float("nan")
        m = (samples - sum(n * n for n in self.sizes) / samples) / (batches - 1)
        within = torch.as_tensor(self.within) / (samples - batches)
        between = (self.means.m2 - self.within).clamp(min=0) / (batches - 1)
        live = within + between > 1e-12
        if not bool(live.any()):
            return float("nan"), float("nan")
        r = float(((between - within) / (between + (m - 1) * within))[live].mean())
        error = (2 / (batches - 1)) ** 0.5 * (1 - r) * (1 + (m - 1) * r) / m
        return r, error


@dataclass
class Evidence:
    """What the data say. Streams are layer -> one per call, of the layer's input.

    Attributes:
        stored: while layers normalised with what they have, as in eval().
        by_batch: while they normalised with the batch at hand, as in train(), dropout off.
        dropped: as by_batch, dropout on; empty where the model has none.
        gap: eval() against train() on every sample.
        sizes: of the batches.
        labels, places: how classes and domains are spread over batches.
        kept: the first batches, KEPT samples or a little more; train, eval: their answers.
        layers: the first samples, layer by layer.
        by_domain, by_class: (K,) moments per layer, where the data have domains.
        leak: largest relative change of a sample's output in other company; NaN unknown.
        normalised: whether something normalised by the batch in eval().
        noise: relative difference of two runs that should be equal.
        rounding: machine epsilon of what the last norm layer puts out, which autocast sets.
        reader: that the data came from.
    """

    stored: dict[str, list[MomentStream]] = field(default_factory=dict)
    by_batch: dict[str, list[MomentStream]] = field(default_factory=dict)
    dropped: dict[str, list[MomentStream]] = field(default_factory=dict)
    gap: Comparison = field(default_factory=Comparison)
    sizes: list[int] = field(default_factory=list)
    labels: Composition = field(default_factory=Composition)
    places: Composition = field(default_factory=Composition)
    kept: list[Batch] = field(default_factory=list)
    train: list[Answer] = field(default_factory=list)
    eval: list[Answer] = field(default_factory=list)
    layers: dict[str, LayerSample] = field(default_factory=dict)
    by_domain: dict[str, Moments] = field(default_factory=dict)
    by_class: dict[str, Moments] = field(default_factory=dict)
    leak: float = float("nan")
    normalised: bool = False
    noise: float = 0.0
    rounding: float = 0.0
    goal: Goal = field(default_factory=Goal)
    reader: Loader | None = None
    _population: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def loader(self) -> Loader:
        """The batches that were kept, to be read once more."""
        assert self.reader is not None, "set where the data are read"
        return self.reader.of(self.kept)

    @property
    def usual(self) -> int:
        """The median size of the batches."""
        return sorted(self.sizes)[len(self.sizes) // 2]

    @cached_property
    def distinct(self) -> int:
        """How many of the kept samples are not nearly copies of another; 0: not known.

        Inputs of WIDE values at least; two are copies where they lie within CLOSELY of the mean
        distance, squared.
        """
        rows = [
            x.flatten(1)[:, :: max(1, x[0].numel() // 256)].double().cpu()
            for batch in self.kept
            for x in [next(tensors((batch.args, batch.kwargs)), None)]
            if x is not None and x.is_floating_point() and x.dim() > 1 and len(x) == batch.size
        ]
        if not rows or len({r.shape[1] for r in rows}) > 1 or rows[0].shape[1] < WIDE:
            return 0
        samples = torch.cat(rows)[:KEPT]
        apart = torch.cdist(samples, samples).square()
        near = (apart < CLOSELY * apart.mean()).numpy()
        return int(connected_components(csr_array(near))[0])

    @property
    def few(self) -> bool:
        """Whether the samples are a few ones over and over."""
        many = sum(batch.size for batch in self.kept)
        return 0 < self.distinct < FEW and many >= 8 * self.distinct

    def population(self, name: str) -> tuple[Tensor, Tensor]:
        """Return mean and unbiased variance of a layer's input over the whole data, as in train().

        On the CPU; NaN where one value or none was seen.
        """
        if name not in self._population:
            mean, var = population_of(self.by_batch[name])
            self._population[name] = (mean.cpu(), var.cpu())
        return self._population[name]


def collected(
    model: nn.Module,
    loader: Loader,
    layers: Mapping[str, nn.Module],
    goal: Goal,
    *,
    part: Part = "all",
    on_progress: Progress | None = None,
) -> Evidence:
    """Read the data once; three forwards a batch at most. The model comes back as it was.

    Raises:
        InputError, ModelError: as `Loader`.
    """
    found = Evidence(gap=Comparison(given=goal.given), goal=goal, reader=loader)
    dropping = dropouts(model)
    stored = NormRun(layers)
    by_batch = NormRun(layers, by_batch=set(layers))
    dropped = NormRun(layers, by_batch=set(layers))
    norms = [n for n in probe.find_norms(model) if n.name in layers]
    rows: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for batch in loader.read(part):
        if on_progress is not None:
            on_progress(len(found.sizes), 0, "data")
        watcher = _Watcher(found, batch, rows)
        with probe.preserved(model):
            with stored.active(), _BatchNormCalls() as calls:
                evaluated = stored.answer(loader, model, batch, goal)
            if stored.features is not None and stored.features.is_floating_point():
                rounding = torch.finfo(stored.features.dtype).eps
                found.rounding = max(found.rounding, rounding)
            if not found.sizes:
                found.normalised = calls.seen
                found.noise, found.leak = _leak(model, loader, batch, layers, evaluated, goal)
                found.gap.noise = found.noise
            looks = sum(found.sizes) < CLOSE or batch.condition is not None
            # activations are looked at as in training, where no stored statistics mislead them
            with ExitStack() as inside:
                inside.enter_context(by_batch.active())
                if looks:
                    inside.enter_context(probe.observe(model, norms, watcher))
                trained = by_batch.answer(loader, model, batch, goal)
        if dropping:
            with probe.preserved(model), dropped.active():
                for module in dropping:
                    module.training = True
                dropped.run(loader, model, batch)
        found.gap.add(trained, evaluated)
        if sum(b.size for b in found.kept) < KEPT:
            found.kept.append(batch)
            found.train.append(trained)
            found.eval.append(evaluated)
        if (groups := batch.classes) is not None:
            found.labels.add(groups)
        if batch.condition is not None:
            found.places.add(batch.condition)
        found.sizes.append(batch.size)
    found.stored, found.by_batch = stored.streams, by_batch.streams
    found.dropped = dropped.streams
    return found


class _BatchNormCalls(TorchFunctionMode):
    """Inside, `seen` tells whether a batch norm normalised by the batch, wherever it was called."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.batch_norm, batch_norm):
            self.seen |= bool(args[5] if len(args) > 5 else (kwargs or {}).get("training"))
        return func(*args, **(kwargs or {}))


class _Watcher:
    """Records what enters and leaves each layer while it normalises by the batch."""

    def __init__(
        self, found: Evidence, batch: Batch, rows: tuple[dict[int, int], dict[int, int]]
    ) -> None:
        self._found = found
        self._groups: list[tuple[dict[str, Moments], Tensor]] = []
        if batch.condition is not None:
            ids = (batch.condition, batch.classes)
            tables = (found.by_domain, found.by_class)
            for table, values, seen in zip(tables, ids, rows, strict=True):
                if values is not None and (numbers := _numbered(values, seen)) is not None:
                    self._groups.append((table, numbers))

    def normed(self, call: Call, before: Tensor, after: Tensor) -> None:
        x = before.detach()
        if x.dim() < 2 or not x.is_floating_point():
            return
        for table, ids in self._groups:
            if len(x) == len(ids):
                new = moments(x, ids, int(ids.max()) + 1)
                table[call.layer] = _sum(table.get(call.layer), new)
        seen = self._found.layers.setdefault(call.name, LayerSample())
        if sum(seen.sizes) >= CLOSE:
            return
        seen.sizes.append(len(x))
        seen.positions = max(x[0, 0].numel(), 1) if len(x) else 1
        seen.active = seen.active + (after.detach() > 0).sum([0, *range(2, x.dim())])
        seen.values += x.numel() // x.shape[1]
        means = x.double().flatten(2).mean(2) if x.dim() > 2 else x.double()
        of_batch, whole = moments(means)[0], moments(x)[0]
        seen.within = seen.within + of_batch.m2
        seen.means = of_batch if seen.means is None else seen.means + of_batch
        seen.all = whole if seen.all is None else seen.all + whole
        if x.dim() == 3 and x.shape[2] > 1:
            seen.padded = max(seen.padded, _padded(x))

    def activated(self, call: Call, activation: str, after: Tensor) -> None:
        if call.name in self._found.layers:
            self._found.layers[call.name].activation = activation


def _numbered(ids: Tensor, rows: dict[int, int]) -> Tensor | None:
    """Return row numbers of ids, in the order in which they came up; None beyond GROUPS."""
    for value in ids.unique().tolist():
        rows.setdefault(value, len(rows))
    if len(rows) > GROUPS:
        return None
    return torch.tensor([rows[value] for value in ids.tolist()], device=ids.device)


def _sum(old: Moments | None, new: Moments) -> Moments:
    if old is None:
        return new
    sets = max(len(old.count), len(new.count))
    return old.padded(sets) + new.padded(sets)


def _padded(x: Tensor) -> float:
    """Share of positions at the ends that repeat the last one in all channels, of (N, C, L)."""
    same = (x == x[:, :, -1:]).all(1)  # N x L
    run = same.flip(1).cumprod(1).sum(1)
    return float((run - 1).clamp(min=0).sum()) / (x.shape[0] * x.shape[2])


def _leak(
    model: nn.Module,
    loader: Loader,
    batch: Batch,
    layers: Mapping[str, nn.Module],
    whole: Answer,
    goal: Goal,
) -> tuple[float, float]:
    """Measure noise between equal runs, and how the first half changes in other company.

    The first half stands in the place of the second too, so shapes and random numbers are equal.
    """
    run = NormRun(layers, measured=set())
    half = batch.size // 2
    company = torch.arange(batch.size) % max(half, 1)
    other = loader.rows(batch, company) if half else None
    with run.active():
        same = run.answer(loader, model, batch, goal)
        try:
            beside = None if other is None else run.answer(loader, model, other, goal)
        except NormscopeError:  # such a batch cannot be divided
            beside = None
    compared = Comparison()
    compared.add(whole, same)
    a = whole.values
    comparable = beside is not None and a.shape == beside.values.shape == same.values.shape
    if beside is None or not comparable or len(a) != batch.size or not bool(a.isfinite().all()):
        return compared.relative, float("nan")
    scale = a.abs().max().clamp(min=1e-12)
    noise = float((same.values - a).abs().max() / scale)
    change = float((beside.values - a)[:half].abs().max() / scale)
    return compared.relative, change if change > 5 * noise else 0.0


def norms_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers whose inputs are measured: with statistics per channel or per condition."""
    return {n.name: n.module for n in probe.find_norms(model) if n.skipped is None}
