"""`repair`: each remedy tried, judged on held-out samples, kept or taken back."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normscope import probe
from normscope.doctor.evidence import norms_by_name
from normscope.doctor.loader import Forward, Loader, Part, device_of, rows
from normscope.doctor.outputs import Comparison, scores_of
from normscope.doctor.passage import Passage
from normscope.doctor.remedies import REMEDIES, Memory, Patient, Remedy, Unfit
from normscope.errors import InputError, ModelError, NormscopeError
from normscope.records import Diagnosis, Finding, Repaired, Score, Trial
from normscope.weights import write_weights

# right by themselves: kept where nothing gets worse
NEUTRAL = frozenset({"fold_bias", "widen", "momentum", "freeze"})
SYMPTOM = "NS004"  # goes with its cause
ALONE = 4  # samples at a time, where a model normalises by the batch although in eval()
NOTHING = Score(accuracy=math.nan, loss=math.nan, gap=math.nan, samples=0)


class Repair:
    """What `repair` did to a model, and the way back.

    Attributes:
        model: the same object, changed by what was kept.
        record: what was tried, what held-out samples said, what was kept.
    """

    def __init__(self, model: nn.Module, record: Repaired, before: Memory) -> None:
        self.model, self.record, self._before = model, record, before

    def undo(self) -> nn.Module:
        """The model as it was before, to the byte; returns it."""
        self._before.rollback()
        return self.model

    def save(self, path: Path) -> None:
        """Write the weights as safetensors, with the record in the metadata.

        Raises:
            FileError: the file cannot be written; what was there before is still there.
        """
        write_weights(path, self.model.state_dict(), {"normscope.repair": self.record.to_json()})


def repair(
    model: nn.Module,
    diagnosis: Diagnosis,
    batches: Iterable[Any] | None = None,
    *,
    held_out: Iterable[Any] | None = None,
    remedies: Iterable[str] = (),
    force: bool = False,
    dry_run: bool = False,
    forward: Forward | None = None,
) -> Repair:
    """Try the remedies that findings name, the likeliest explanation first; keep what helps.

    Each is applied whole, judged in eval() on samples that no remedy saw, and taken back unless
    it helps: accuracy not lower, and higher or with a smaller loss; without labels, a smaller
    gap between train() and eval(). An exception leaves the model as it was.

    Args:
        model: changed in place.
        diagnosis: of this model; see `diagnose`.
        batches: as in training; None: only remedies without data, which force must allow, since
            nothing can judge them.
        held_out: judge on these; None: on 30 % of the samples of batches, which remedies do not
            read then.
        remedies: names, instead of those of the findings that are warnings or errors.
        force: keep what does not help.
        dry_run: report, and take everything back.
        forward: as for `recalibrate`.

    Raises:
        InputError: an unknown remedy, a loader that fails or is empty.
        ModelError: a forward that fails.
    """
    plan = _plan(diagnosis, tuple(remedies))
    judge = _Judge(model, batches, held_out, forward)
    start = Memory(model)
    trials: list[Trial] = []
    try:
        before = now = judge.score(model)
        for name, findings in plan.items():
            trial = _tried(judge, model, name, findings, now, force=force)
            trials.append(trial)
            now = trial.after if trial.kept else now
    except BaseException:
        start.rollback()
        raise
    if dry_run:
        start.rollback()
    answered = {code for trial in trials if trial.kept for code in trial.codes}
    record = Repaired(
        model=diagnosis.model,
        data=diagnosis.data,
        dry_run=dry_run,
        before=before,
        after=now,
        trials=tuple(trials),
        advice=tuple(
            dict.fromkeys(
                f.code
                for f in diagnosis.findings
                if f.code not in answered and f.severity != "info"
                if f.code != SYMPTOM and (not f.repair or f.repair not in REMEDIES)
            )
        ),
    )
    return Repair(model, record, start)


def _plan(diagnosis: Diagnosis, names: tuple[str, ...]) -> dict[str, list[Finding]]:
    for name in names:
        if name not in REMEDIES:
            raise InputError(f"there is no remedy {name!r}; there are {', '.join(REMEDIES)}")
    plan: dict[str, list[Finding]] = {name: [] for name in names}
    for finding in diagnosis.findings:
        wanted = finding.repair in REMEDIES and finding.severity != "info"
        if finding.repair in plan or (wanted and not names):
            plan.setdefault(finding.repair, []).append(finding)
    return plan


class _Judge:
    """Who reads the held-out samples."""

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any] | None,
        held_out: Iterable[Any] | None,
        forward: Forward | None,
    ) -> None:
        device = device_of(model)
        self.loader = None if batches is None else Loader(batches, forward, device)
        self._apart = None if held_out is None else Loader(held_out, forward, device)
        self.open: Part = "first" if held_out is None else "all"

    def score(self, model: nn.Module, part: Part = "held_out") -> Score:
        """In eval(), beside train(): the gap needs both."""
        loader = self._apart if self._apart is not None and part == "held_out" else self.loader
        if loader is None:
            return NOTHING
        if loader is self._apart:
            part = "all"
        layers = norms_by_name(model)
        compared = Comparison()
        training = Passage(layers, by_batch=set(layers), measured=set())
        left = [m for m in layers.values() if m.training and not model.training]
        for batch in loader.read(part):
            with probe.untouched(model):
                # a layer that was left in train() is part of what is judged: as in use, where
                # samples do not come in large batches
                for layer in left:
                    layer.training = True
                parts = torch.arange(batch.size).split(ALONE if left else batch.size)
                outputs = []
                for part_of in parts:
                    keep = torch.zeros(batch.size, dtype=torch.bool)
                    keep[part_of] = True
                    some = loader.batch(0, rows(batch.given, keep, batch.size)) if left else batch
                    outputs.append(scores_of(loader.run(model, some), some.size))
                evaluated = torch.cat(outputs)
            with probe.untouched(model), training.watching():
                trained = scores_of(training.run(loader, model, batch), batch.size)
            compared.add(trained, evaluated, batch.labels)
        return compared.score()


def _tried(
    judge: _Judge,
    model: nn.Module,
    name: str,
    findings: list[Finding],
    now: Score,
    *,
    force: bool,
) -> Trial:
    """Every variant of a remedy; the best is kept where it helps."""
    layers = tuple(dict.fromkeys(f.layer for f in findings if f.layer))
    codes = tuple(dict.fromkeys(f.code for f in findings))
    memory = Memory(model)
    best: tuple[Score, Remedy] | None = None
    note = ""
    for remedy in REMEDIES[name]:
        try:
            _applied(judge, model, remedy, layers)
            after = judge.score(model)
        except (Unfit, ModelError) as problem:
            note = str(problem)
            continue
        finally:
            memory.rollback()
        if best is None or _worth(after) > _worth(best[0]):
            best = after, remedy
    if best is None:
        return Trial(
            remedy=name, codes=codes, layers=(), before=now, after=now, helps=False, kept=False,
            note=note,
        )  # fmt: skip
    after, remedy = best
    helped = helps(now, after, neutral=name in NEUTRAL)
    changed = layers
    if helped or force:
        try:
            changed = _applied(judge, model, remedy, layers)
        except BaseException:
            memory.rollback()
            raise
    return Trial(
        remedy=name, codes=codes, layers=changed, before=now, after=after, helps=helped,
        kept=helped or force,
    )  # fmt: skip


def _applied(
    judge: _Judge, model: nn.Module, remedy: Remedy, layers: tuple[str, ...]
) -> tuple[str, ...]:
    scored = None if judge.loader is None else lambda: judge.score(model, judge.open)
    try:
        return remedy(Patient(model, judge.loader, scored, judge.open), layers)
    except InputError:
        raise
    except NormscopeError as problem:
        raise Unfit(str(problem)) from problem


def _worth(score: Score) -> tuple[float, float, float]:
    """The larger the better; what is not known does not count."""
    known = [0.0 if v != v else v for v in (score.accuracy, score.loss, score.gap)]
    return (known[0], -known[1], -known[2])


def helps(before: Score, after: Score, *, neutral: bool = False) -> bool:
    """Whether held-out samples are served better, by more than chance would."""
    if not before.samples:
        return False
    if neutral and not after.gap > before.gap + 1e-3 and not after.accuracy < before.accuracy:
        return True
    if after.accuracy == after.accuracy:
        gained, cheaper = after.accuracy - before.accuracy, after.loss < 0.98 * before.loss
        return gained > 0.005 or (gained >= 0 and cheaper)
    return after.gap < 0.95 * before.gap
