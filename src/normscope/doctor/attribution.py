"""Take the gap between train() and eval() apart: override one cause, measure what is left."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from normscope import probe
from normscope.doctor.evidence import Evidence
from normscope.doctor.pooled import pooled
from normscope.doctor.state import LayerState
from normscope.errors import NormscopeError
from normscope.moments import drift, rms
from normscope.probe.batches import Loader
from normscope.probe.compare import Answer, Comparison, Goal
from normscope.probe.grammar import Batch
from normscope.probe.run import NormRun
from normscope.probe.stream import population_of
from normscope.records import LayerGap

NOTHING = 1e-3  # relative difference of outputs, of which no cause has a share
LAYERS = 8  # of which each is overridden alone: those furthest off
FEW = 4  # the share of the kept samples on which single layers are measured is one in this many
LARGE = 8  # times the usual size: a batch that is mixed from all

Statistics = tuple[Tensor, Tensor]


@dataclass
class Override:
    """What some layers normalise with instead: stored values, or the batch at hand."""

    stored: Mapping[str, Statistics] = field(default_factory=dict)
    by_batch: Set[str] = frozenset()


class Attribution:
    """Runs the kept samples under one override after the other, against train() and eval().

    Attributes:
        layers: by name; those that the data reached.
        states: of them.
        train, eval: answers of both modes to the kept batches, small ones put together.
        target: the statistics of the data; where they hold too little, what is stored.
        restored: answers with all layers at their target.
    """

    def __init__(
        self, model: nn.Module, loader: Loader, data: Evidence, states: Sequence[LayerState]
    ) -> None:
        self._model, self._loader, self._data = model, loader, data
        reached = [s for s in states if s.module is not None and s.name in data.by_batch]
        self.states = {s.name: s for s in reached}
        self.layers: dict[str, nn.Module] = {
            s.name: s.module for s in reached if s.module is not None
        }
        self.target = {name: _target(data, name, state) for name, state in self.states.items()}
        self._pool = pooled(model, loader, self.layers, data.kept, data.goal, data.eval, data.train)
        self._kept = self._pool.batches
        self.train, self.eval = self._pool.join(data.train), self._pool.join(data.eval)
        self.restored: list[Answer] = []
        self.restored = self.answers(Override(self.target))
        self._gap = self._apart(self.eval)

    def answers(
        self,
        override: Override,
        batches: Sequence[Batch] | None = None,
        *,
        goal: Goal | None = None,
    ) -> list[Answer]:
        """Return the answers to every kept batch, or to these.

        Parts and mixtures of batches have no goal: a loss or a metric is made for whole batches
        as the loader gives them. Layers that normalise by the batch are given it as it came.
        """
        if batches is None and self.restored and not override.by_batch:
            same = (override.stored.get(name) is value for name, value in self.target.items())
            if all(same):
                return self.restored
        apart = batches is None and bool(override.by_batch)
        if batches is None:
            batches = self._data.kept if apart else self._kept
        run = NormRun(
            self.layers, by_batch=override.by_batch, stored=override.stored, measured=set()
        )
        judge = self._data.goal if goal is None else goal
        with probe.preserved(self._model), run.active():
            found = [run.answer(self._loader, self._model, batch, judge) for batch in batches]
        return self._pool.join(found) if apart else found

    def closes(self, answers: Sequence[Answer]) -> float:
        """Return the share of the gap that is gone with these answers."""
        return 1 - self._apart(answers) / self._gap if self._gap > NOTHING else 0.0

    def against_eval(self, answers: Sequence[Answer]) -> Comparison:
        """Compare answers with those of eval()."""
        return Comparison.of(self.eval, answers, given=self._data.gap.known)

    def advantage(self, answers: Sequence[Answer]) -> float:
        """Return by how many standard errors they beat eval(); NaN where it is not known."""
        return self.against_eval(answers).advantage if self._data.gap.known else float("nan")

    def changes(self, answers: Sequence[Answer]) -> float:
        """Return the relative difference of these answers from those of eval()."""
        return self._apart(answers, self.eval)

    def _apart(self, other: Sequence[Answer], reference: Sequence[Answer] | None = None) -> float:
        reference = self.train[: len(other)] if reference is None else reference
        return Comparison.of(reference, other, noise=self._data.noise).relative

    def parts(self) -> dict[str, Override]:
        """Try all means, all variances, and the correction n/(n-1) of small batches."""
        states, target = self.states, self.target
        biased = {}
        for name, state in states.items():
            sample = self._data.layers.get(name)
            count = self._data.usual * (1 if sample is None else sample.positions)
            biased[name] = (state.mean, state.var * (count - 1) / max(count, 1))
        return {
            "stale_mean": Override({n: (target[n][0], s.var) for n, s in states.items()}),
            "stale_var": Override({n: (s.mean, target[n][1]) for n, s in states.items()}),
            "unbiased": Override(biased),
        }

    @cached_property
    def of_batches(self) -> float:
        """The share of the gap that lies between the batches as given and large mixed ones."""
        batches = self._data.kept
        total = sum(b.size for b in batches)
        order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
        whole = self._loader.together(batches, order) if len(batches) > 1 else None
        if whole is None:
            return 0.0
        size = max(LARGE * self._data.usual, 128)
        parts = [self._loader.rows(whole, part) for part in torch.arange(total).split(size)]
        if any(part is None for part in parts):
            return 0.0
        try:
            by_batch = Override(by_batch=set(self.layers))
            found = self.answers(by_batch, [p for p in parts if p], goal=Goal())
        except NormscopeError:  # such batches cannot be mixed
            return 0.0
        if any(len(a.values) != p.size for a, p in zip(found, parts, strict=True) if p):
            return 0.0
        mixed = torch.cat([answer.values for answer in found])
        back = torch.empty_like(mixed)
        back[order.to(mixed.device)] = mixed
        ideal = [Answer(values) for values in back.split([b.size for b in self._kept])]
        return min(self._apart(ideal) / max(self._gap, 1e-9), 1.0)

    def by_domain(self) -> list[Answer]:
        """Return the answers where every domain has statistics of its own."""
        per_domain = self._domain_statistics()
        found = []
        for batch, usual in zip(self._kept, self.eval, strict=True):
            values = usual.values.clone()
            for number, stored in per_domain.items():
                mine = self._of_domain(batch, number)
                if mine is not None:
                    rows, part = mine
                    (answer,) = self.answers(Override(stored), [part], goal=Goal())
                    if answer.values.shape == values[rows].shape:
                        values[rows] = answer.values
            found.append(Answer(values))
        return found

    def _domain_statistics(self) -> dict[int, dict[str, Statistics]]:
        found: dict[int, dict[str, Statistics]] = {}
        for number in self._data.places.counts:
            run = NormRun(self.layers, by_batch=set(self.layers))
            with probe.preserved(self._model), run.active():
                for batch in self._kept:
                    mine = self._of_domain(batch, number)
                    if mine is not None and mine[1].size > 1:
                        run.run(self._loader, self._model, mine[1])
            if run.streams:
                found[number] = {n: population_of(calls[:1]) for n, calls in run.streams.items()}
        return found

    def _of_domain(self, batch: Batch, number: int) -> tuple[Tensor, Batch] | None:
        if batch.condition is None:
            return None
        mine = batch.condition == number
        part = self._loader.rows(batch, mine.cpu()) if bool(mine.any()) else None
        return None if part is None else (mine, part)

    def by_layer(self) -> tuple[LayerGap, ...]:
        """Measure each layer's part: those furthest off, on a part of the samples."""
        away = {n: drift(s.mean, s.var, *self.target[n]) for n, s in self.states.items()}
        size = {n: rms(a.clamp(max=1e6)) for n, a in away.items()}
        furthest = sorted(size, key=lambda n: -size[n])[:LAYERS]
        wanted = sum(b.size for b in self._kept) / FEW
        few = [
            batch
            for i, batch in enumerate(self._kept)
            if sum(b.size for b in self._kept[:i]) < wanted
        ]
        gap = self._apart(self.eval[: len(few)])

        def closes(name: str, *stored: Tensor) -> float:
            left = self._apart(self.answers(Override({name: (stored[0], stored[1])}), few))
            return 1 - left / gap if gap > NOTHING else 0.0

        found = []
        for name in (n for n in self.states if n in furthest):
            (mean, var), state = self.target[name], self.states[name]
            worst = away[name].flatten().argsort(descending=True)[:5] % away[name].shape[-1]
            found.append(
                LayerGap(
                    name=name,
                    distance=size[name],
                    both=closes(name, mean, var),
                    mean=closes(name, mean, state.var),
                    var=closes(name, state.mean, var),
                    worst=tuple(worst.tolist()),
                )
            )
        return tuple(found)


def _target(data: Evidence, name: str, state: LayerState) -> Statistics:
    mean, var = data.population(name)
    known = var.isfinite()
    return torch.where(known, mean, state.mean), torch.where(known, var, state.var)
