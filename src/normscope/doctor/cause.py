"""Why train() and eval() differ: each cause mended alone, and how much of the gap then goes."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from normscope import probe
from normscope.doctor.checks import Case
from normscope.doctor.checks.base import broken
from normscope.doctor.evidence import Evidence
from normscope.doctor.loader import Batch, Loader, rows
from normscope.doctor.outputs import Comparison, scores_of
from normscope.doctor.passage import Passage
from normscope.doctor.state import LayerState
from normscope.doctor.tally import distance
from normscope.records import Cause, Finding, Gap, LayerGap

LAYERS = 12  # of which each is mended alone: those furthest off

# the cause that a finding stands for
CAUSES = {
    "NS001": "mode",
    "NS003": "stale",
    "NS005": "momentum",
    "NS009": "not_finite",
    "NS013": "dropout",
    "NS014": "fake_freeze",
    "NS015": "averaged",
    "NS017": "reused",
    "NS027": "double_updates",
}


@dataclass
class Mend:
    """What some layers normalise with instead: stored values, or the batch at hand."""

    stored: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    by_batch: Set[str] = frozenset()


class Measure:
    """The kept samples, run under one mend after the other, against train()."""

    def __init__(self, model: nn.Module, loader: Loader, case: Case, data: Evidence) -> None:
        self.model, self._loader, self._batches = model, loader, data.kept
        self.layers = {
            s.name: s.module
            for s in case.layers
            if s.module is not None and s.name in data.by_batch
        }
        self.train = self.outputs(Mend(by_batch=set(self.layers)))
        self.eval = self.outputs(Mend())
        self.gap = self.apart(self.eval)

    def outputs(self, mend: Mend) -> list[Tensor]:
        """Of every kept batch."""
        passage = Passage(self.layers, by_batch=mend.by_batch, stored=mend.stored, measured=set())
        with probe.untouched(self.model), passage.watching():
            return [
                scores_of(passage.run(self._loader, self.model, batch), batch.size)
                for batch in self._batches
            ]

    def apart(self, other: list[Tensor], reference: list[Tensor] | None = None) -> float:
        """Relative difference of outputs from those in train()."""
        compared = Comparison()
        for a, b in zip(self.train if reference is None else reference, other, strict=True):
            if a.shape == b.shape:
                compared.add(a, b, None)
        return compared.relative

    def closes(self, mend: Mend) -> float:
        """The share of the gap that is gone under the mend."""
        return self._share(self.apart(self.outputs(mend)))

    def _share(self, left: float) -> float:
        return 1 - left / self.gap if self.gap > 1e-9 else 0.0

    def of_batches(self) -> float:
        """The share of the gap that lies between the batches as given and one large mixed one."""
        mixed = self._mixed()
        if mixed is None:
            return 0.0
        large, order = mixed
        passage = Passage(self.layers, by_batch=set(self.layers), measured=set())
        with probe.untouched(self.model), passage.watching():
            out = scores_of(passage.run(self._loader, self.model, large), large.size)
        if len(out) != large.size:
            return 0.0
        back = torch.empty_like(out)
        back[order] = out
        ideal = list(back.split([b.size for b in self._batches]))
        apart = self.apart(ideal) / max(self.gap, 1e-9)
        return min(apart, 1.0)

    def _mixed(self) -> tuple[Batch, Tensor] | None:
        total = sum(b.size for b in self._batches)
        first = self._batches[0]
        if len(self._batches) < 2:
            return None
        order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
        sizes = iter([b.size for b in self._batches])

        def joined(*values: object) -> object:
            if not isinstance(values[0], Tensor):
                return values[0]
            return torch.cat([v for v in values if isinstance(v, Tensor)])[order]

        try:
            given = tree_map(joined, first.given, *[b.given for b in self._batches[1:]])
            return self._loader.batch(next(sizes), given), order
        except (ValueError, RuntimeError, TypeError):
            return None  # batches of other shapes stay apart

    def by_domain(self, case: Case, names: Set[str]) -> float:
        """The share that goes when every domain has statistics of its own."""
        assert case.data is not None, "domains come with data"
        per_domain = self._domain_statistics(names, case.data.domains)
        outputs = []
        for batch, usual in zip(self._batches, self.eval, strict=True):
            out = usual.clone()
            if batch.condition is not None:
                for k, stored in per_domain.items():
                    mine = (batch.condition == k).cpu()
                    if not bool(mine.any()):
                        continue
                    part = self._loader.batch(batch.index, rows(batch.given, mine, batch.size))
                    passage = Passage(self.layers, stored=stored, measured=set())
                    with probe.untouched(self.model), passage.watching():
                        y = scores_of(passage.run(self._loader, self.model, part), part.size)
                    out[mine] = y
            outputs.append(out)
        return self._share(self.apart(outputs))

    def _domain_statistics(
        self, names: Set[str], domains: int
    ) -> dict[int, dict[str, tuple[Tensor, Tensor]]]:
        found: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
        for k in range(domains):
            passage = Passage(self.layers, by_batch=set(self.layers), measured=names)
            with probe.untouched(self.model), passage.watching():
                for batch in self._batches:
                    if batch.condition is None:
                        continue
                    mine = (batch.condition == k).cpu()
                    if int(mine.sum()) > 1:
                        part = rows(batch.given, mine, batch.size)
                        passage.run(self._loader, self.model, self._loader.batch(0, part))
            if passage.tallies:
                totals = {n: calls[0].total() for n, calls in passage.tallies.items()}
                found[k] = {n: (t.mean, t.var(correction=1)) for n, t in totals.items()}
        return found


def explained(
    model: nn.Module, loader: Loader, case: Case, findings: list[Finding]
) -> tuple[Gap | None, tuple[Cause, ...], tuple[LayerGap, ...]]:
    """The gap, its causes by how much each closes, and the share of each layer."""
    data = case.data
    if data is None or not data.gap.samples:
        return None, (), ()
    gap = Gap(
        relative=data.gap.relative,
        disagreement=data.gap.disagreement,
        train_accuracy=data.gap.accuracy(0),
        eval_accuracy=data.gap.accuracy(1),
        samples=data.gap.samples,
    )
    measure = Measure(model, loader, case, data)
    states = {s.name: s for s in case.layers if s.name in measure.layers}
    target = {name: _target(data, name, state) for name, state in states.items()}
    causes = _by_finding(measure, case, findings, states, target)
    causes += _by_part(measure, states, target, data)
    small = measure.of_batches()
    composed = any(f.code == "NS008" for f in findings)
    name, code = ("composition", "NS008") if composed else ("small_batch", "NS007")
    causes.append(Cause(name=name, code=code, closes=small, layers=()))
    ranked = sorted(causes, key=lambda cause: -cause.closes)
    return gap, tuple(ranked), _layers(measure, states, target)


def _target(data: Evidence, name: str, state: LayerState) -> tuple[Tensor, Tensor]:
    """The statistics of the data; where they hold too little, what is stored."""
    total = data.population(name)
    mean, var = total.mean.cpu(), total.var(correction=1).cpu()
    known = var.isfinite()
    return torch.where(known, mean, state.mean), torch.where(known, var, state.var)


def _by_finding(
    measure: Measure,
    case: Case,
    findings: list[Finding],
    states: Mapping[str, LayerState],
    target: Mapping[str, tuple[Tensor, Tensor]],
) -> list[Cause]:
    concerned: dict[str, list[str]] = {}
    for finding in findings:
        concerned.setdefault(finding.code, []).append(finding.layer)
    causes = []
    for code, found in concerned.items():
        names = [n for n in dict.fromkeys(found) if n in states] or list(states)
        stored = {n: target[n] for n in names}
        cause = CAUSES.get(code, "")
        if code == "NS001":
            closes = 1.0 if _asis_differs(measure, names) else 0.0
        elif code == "NS002":
            cause = "never_updated" if all(states[n].fresh for n in names) else "cold"
            fixed = {n: states[n].corrected() for n in names}
            stored = {n: fixed[n] or target[n] for n in names}
            closes = measure.closes(Mend(stored))
        elif code == "NS009":
            for n in names:
                bad = broken(states[n])
                mean, var = target[n]
                stored[n] = (
                    torch.where(bad, mean, states[n].mean), torch.where(bad, var, states[n].var)
                )  # fmt: skip
            closes = measure.closes(Mend(stored))
        elif code == "NS017":
            closes = measure.closes(Mend(by_batch=set(names)))
        elif code == "NS021":
            cause, closes = "domains", measure.by_domain(case, set(states))
        elif cause:
            closes = measure.closes(Mend(stored))
        else:
            continue
        causes.append(Cause(name=cause, code=code, closes=closes, layers=tuple(names)))
    return causes


def _asis_differs(measure: Measure, names: list[str]) -> bool:
    """Whether the model as it was handed over computes something else than in eval()."""
    batches = measure.outputs(Mend(by_batch=set(names)))
    return measure.apart(batches, measure.eval) > 1e-3


def _by_part(
    measure: Measure,
    states: Mapping[str, LayerState],
    target: Mapping[str, tuple[Tensor, Tensor]],
    data: Evidence,
) -> list[Cause]:
    """All means, all variances, and the correction n/(n-1) of small batches."""
    means = {n: (target[n][0], s.var) for n, s in states.items()}
    variances = {n: (s.mean, target[n][1]) for n, s in states.items()}
    usual = sorted(data.sizes)[len(data.sizes) // 2]
    biased = {}
    for n, s in states.items():
        look = data.looks.get(n)
        count = usual * (look.positions if look is not None else 1)
        biased[n] = (s.mean, s.var * (count - 1) / max(count, 1))
    everything = tuple(states)
    return [
        Cause(name=name, code="", closes=measure.closes(Mend(stored)), layers=everything)
        for name, stored in (
            ("stale_mean", means), ("stale_var", variances), ("unbiased", biased),
        )
    ]  # fmt: skip


def _layers(
    measure: Measure,
    states: Mapping[str, LayerState],
    target: Mapping[str, tuple[Tensor, Tensor]],
) -> tuple[LayerGap, ...]:
    away = {n: distance(s.mean, s.var, *target[n]) for n, s in states.items()}
    size = {n: float(a.clamp(max=1e6).pow(2).mean().sqrt()) for n, a in away.items()}
    furthest = sorted(size, key=lambda n: -size[n])[:LAYERS]
    found = []
    for name in (n for n in states if n in furthest):
        mean, var = target[name]
        state = states[name]
        worst = away[name].flatten().argsort(descending=True)[:5] % away[name].shape[-1]
        found.append(
            LayerGap(
                name=name,
                distance=size[name],
                both=measure.closes(Mend({name: (mean, var)})),
                mean=measure.closes(Mend({name: (mean, state.var)})),
                var=measure.closes(Mend({name: (state.mean, var)})),
                worst=tuple(worst.tolist()),
            )
        )
    return tuple(found)
