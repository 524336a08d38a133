"""`repair`: each remedy tried, judged on held-out samples, kept or taken back."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normscope import probe
from normscope.doctor.diagnosis import Progress
from normscope.doctor.evidence import norms_by_name
from normscope.doctor.loader import Forward, Loader, Part, device_of, rows
from normscope.doctor.memory import Memory
from normscope.doctor.outputs import Comparison, scores_of
from normscope.doctor.passage import Passage
from normscope.doctor.remedies import REMEDIES, Patient, Remedy, Unfit
from normscope.errors import InputError, ModelError, NormscopeError
from normscope.probe.load import write_weights
from normscope.records import Diagnosis, Finding, Repaired, Score, Trial

# right by themselves: kept where nothing that can be seen changes
NEUTRAL = frozenset({"fold_bias", "widen", "momentum", "freeze"})
# right by itself: kept where no held-out sample is lost and no loss rises by more than chance
RIGHT = frozenset({"eval_mode"})
SYMPTOM = "NS004"  # goes with its cause
ALONE = 4  # samples at a time, where a model normalises by the batch although in eval()
SURE = 2.0  # standard errors
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
    live: Iterable[Any] | None = None,
    remedies: Iterable[str] = (),
    force: bool = False,
    dry_run: bool = False,
    forward: Forward | None = None,
    on_progress: Progress | None = None,
) -> Repair:
    """Try the remedies that findings name, the likeliest explanation first; keep what helps.

    Each is applied whole, judged in eval() on samples that no remedy saw, and taken back unless
    it helps; see `helps`. What did not help is tried once more after another one did. An exception
    leaves the model as it was; Ctrl-C takes back the remedy that is being tried and returns what
    was found until then.

    Args:
        model: changed in place.
        diagnosis: of this model; see `diagnose`.
        batches: as in training; None: only remedies without data, which force must allow, since
            nothing can judge them.
        held_out: judge on these; None: on 30 % of the samples of batches, which remedies do not
            read then.
        live: data as in use, for the remedy "adapt"; 30 % of the samples judge it.
        remedies: names, instead of those of the findings that are warnings or errors.
        force: keep what does not help.
        dry_run: report, and take everything back.
        forward: as for `recalibrate`.
        on_progress: called before each remedy: how many are done, how many there are, its name.

    Raises:
        InputError: an unknown remedy, a loader that fails or is empty.
        ModelError: a forward that fails.
    """
    plan = _plan(diagnosis, tuple(remedies))
    judge = _Judge(model, batches, held_out, forward)
    start = latest = Memory(model)
    trials: list[Trial] = []
    complete, todo = False, list(plan)
    try:
        before = now = judge.verdict(model)
        while todo:
            name, findings = todo[0], plan[todo[0]]
            latest = Memory(model)
            if on_progress is not None:
                on_progress(len(trials), len(trials) + len(todo), name)
            if name == "adapt" and live is not None:
                in_use = _Judge(model, live, None, forward, in_use=True)
                as_is = in_use.verdict(model)
                trial, _ = _tried(in_use, model, name, findings, as_is, force=force)
                now = judge.verdict(model)  # what it costs on data as in training
            else:
                trial, now = _tried(judge, model, name, findings, now, force=force)
            trials.append(trial)
            del todo[0]
            if trial.kept:  # what did not help before it may help on top of it, once more
                todo += [n for n in plan if n not in todo and _refused_once(trials, n)]
        complete = True
    except KeyboardInterrupt:
        latest.rollback()
        if not trials:
            raise
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
        complete=complete,
        before=before.score,
        after=now.score,
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


def _refused_once(trials: list[Trial], name: str) -> bool:
    """Whether a remedy was tried once, could be carried out, and did not help."""
    own = [trial for trial in trials if trial.remedy == name]
    return len(own) == 1 and not own[0].kept and not own[0].note


def _plan(diagnosis: Diagnosis, names: tuple[str, ...]) -> dict[str, list[Finding]]:
    for name in names:
        if name not in REMEDIES:
            raise InputError(f"there is no remedy {name!r}; there are {', '.join(REMEDIES)}")
    plan: dict[str, list[Finding]] = {name: [] for name in names or REMEDIES}
    for finding in diagnosis.findings:
        if finding.repair in plan and (names or finding.severity != "info"):
            plan[finding.repair].append(finding)
    return {name: found for name, found in plan.items() if found or names}


@dataclass(frozen=True, eq=False)
class Verdict:
    """How well a model does on the held-out samples.

    Attributes:
        score: of all together.
        losses: (N,) sample by sample; empty without labels.
        right: (N,) bool, likewise.
    """

    score: Score
    losses: Tensor
    right: Tensor


class _Judge:
    """Who reads the held-out samples."""

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any] | None,
        held_out: Iterable[Any] | None,
        forward: Forward | None,
        *,
        in_use: bool = False,
    ) -> None:
        self.in_use = in_use  # the batches are not as in training
        device = device_of(model)
        self.loader = None if batches is None else Loader(batches, forward, device)
        self._apart = None if held_out is None else Loader(held_out, forward, device)
        self.open: Part = "first" if held_out is None else "all"

    def verdict(self, model: nn.Module, part: Part = "held_out") -> Verdict:
        """In eval(), beside train(): the gap needs both."""
        loader = self._apart if self._apart is not None and part == "held_out" else self.loader
        if loader is None:
            return Verdict(NOTHING, torch.zeros(0), torch.zeros(0, dtype=torch.bool))
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
        return Verdict(compared.score(), *compared.by_sample())


def _tried(
    judge: _Judge,
    model: nn.Module,
    name: str,
    findings: list[Finding],
    now: Verdict,
    *,
    force: bool,
) -> tuple[Trial, Verdict]:
    """Every variant of a remedy; the best is kept where it helps."""
    layers = tuple(dict.fromkeys(f.layer for f in findings if f.layer))
    memory = Memory(model)
    tried: list[tuple[Verdict, Remedy]] = []
    note = ""
    for remedy in REMEDIES[name]:
        try:
            _applied(judge, model, remedy, layers)
            tried.append((judge.verdict(model), remedy))
        except (Unfit, ModelError) as problem:
            note = str(problem)
        finally:
            memory.rollback()
    codes = tuple(dict.fromkeys(f.code for f in findings))
    if not tried:
        score = now.score
        trial = Trial(
            remedy=name, codes=codes, layers=(), before=score, after=score, helps=False,
            kept=False, note=note,
        )  # fmt: skip
        return trial, now
    after, remedy = tried[0]
    for other, variant in tried[1:]:
        if helps(after, other):  # the earlier ones change less
            after, remedy = other, variant
    helped = helps(now, after)
    if name in RIGHT and after.score.accuracy >= now.score.accuracy:
        helped = not helps(after, now)
    if not helped and name in NEUTRAL:
        harmless = [pair for pair in tried if same(now, pair[0])]
        if harmless:
            (after, remedy), helped = harmless[0], True
    if helped or force:
        try:
            layers = _applied(judge, model, remedy, layers)
        except BaseException:
            memory.rollback()
            raise
    trial = Trial(
        remedy=name, codes=codes, layers=layers, before=now.score, after=after.score,
        helps=helped, kept=helped or force,
    )  # fmt: skip
    return trial, after if trial.kept else now


def _applied(
    judge: _Judge, model: nn.Module, remedy: Remedy, layers: tuple[str, ...]
) -> tuple[str, ...]:
    scored = None if judge.loader is None else lambda: judge.verdict(model, judge.open).score
    try:
        live = judge.loader if judge.in_use else None
        return remedy(Patient(model, judge.loader, scored, judge.open, live), layers)
    except InputError:
        raise
    except NormscopeError as problem:
        raise Unfit(str(problem)) from problem


def helps(before: Verdict, after: Verdict) -> bool:
    """Whether held-out samples are served better, by more than chance would.

    With labels, one of three, compared sample by sample:
    - more samples turn right than wrong, by SURE standard errors (McNemar);
    - accuracy is not lower and the mean loss falls by SURE standard errors, or by one where the
      gap between train() and eval() falls by 5 % too;
    - accuracy rises by more than one sample and half a point, and the loss does not rise by one
      standard error, or the gap falls by half.
    Without: the gap falls by 5 %.
    """
    old, new = before.score, after.score
    if not old.samples:
        return False
    closes = new.gap < 0.95 * old.gap
    if len(before.losses) < 2 or len(before.losses) != len(after.losses):
        return closes
    turned = after.right.double() - before.right.double()
    if float(turned.sum()) > SURE * max(float(turned.abs().sum()), 1.0) ** 0.5:
        return True
    gain = before.losses - after.losses
    mean, error = float(gain.mean()), max(float(gain.std() / len(gain) ** 0.5), 1e-4)
    if new.accuracy >= old.accuracy and mean > (1 if closes else SURE) * error:
        return True
    rises = new.accuracy > old.accuracy + max(0.005, 1.5 / len(gain))
    return rises and (mean > -error or new.gap < old.gap / 2)


def same(before: Verdict, after: Verdict) -> bool:
    """Whether nothing that held-out samples show has changed, up to rounding."""
    old, new = before.score, after.score
    if not old.samples or abs(new.gap - old.gap) > 1e-3 * max(old.gap, 1e-3):
        return False
    if not len(before.losses):
        return True
    return new.accuracy == old.accuracy and torch.allclose(
        before.losses, after.losses, rtol=1e-3, atol=1e-4
    )
