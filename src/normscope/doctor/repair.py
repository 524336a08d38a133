"""`repair`: each remedy tried, judged on held-out batches, kept or taken back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from normscope.doctor.held_out import Evaluation, HeldOut, harms, helps, same
from normscope.doctor.remedies import REMEDIES, Remedy, RepairContext, Unfit
from normscope.doctor.verdict import SCALED
from normscope.errors import InputError, ModelError, NormscopeError
from normscope.probe.batches import Forward, Loader
from normscope.probe.compare import Goal, Loss, Metric
from normscope.probe.frozen import check_runnable
from normscope.probe.grammar import Labels
from normscope.probe.load import write_weights
from normscope.probe.restore import ModelSnapshot
from normscope.progress import Progress, steps
from normscope.records import Diagnosis, Finding, Repaired, Trial

# right by themselves: kept where nothing that can be seen changes
NO_OP_SAFE = frozenset({"fold_bias", "widen", "momentum", "freeze"})
# right by itself: kept unless held-out batches are served worse
CORRECTNESS = frozenset({"eval_mode"})
# these change what the inputs of later layers are in train(), which was measured
RESHAPES = frozenset({"choose_eps", "split", "domains", "freeze", "fold_bias"})
TRIED = "own_weight"  # where it does not help, advice is left
SYMPTOM = "NS004"  # goes with its cause


class Repair:
    """What `repair` did to a model, and the way back.

    Attributes:
        model: the same object, changed by what was kept.
        record: what was tried, what held-out batches said, what was kept.
    """

    def __init__(self, model: nn.Module, record: Repaired, before: ModelSnapshot) -> None:
        self.model, self.record, self._before = model, record, before

    def __repr__(self) -> str:
        return repr(self.record)

    def _repr_html_(self) -> str:
        return self.record._repr_html_()

    def undo(self) -> nn.Module:
        """Bring the model back as it was before, to the byte; return it."""
        self._before.rollback()
        return self.model

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors, with the record in the metadata.

        Raises:
            FileError: the file cannot be written; what was there before is still there.
        """
        facts = {"normscope.repair": self.record.to_json()}
        write_weights(Path(path), self.model.state_dict(), facts)


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
    labels: Labels | None = None,
    metric: Metric | None = None,
    loss: Loss | None = None,
    reference: nn.Module | None = None,
    batch_limit: int | None = None,
    on_progress: Progress | None = None,
    progress: bool | None = None,
) -> Repair:
    """Try the remedies that findings name, the one that explains most first; keep what helps.

    Each is applied whole, judged in eval() on batches that no remedy saw, and taken back unless
    it helps; see `held_out.helps`. What did not help is tried once more after another one did.
    Where inputs are on another scale than in training, or their columns are in another order or
    unit (NS033), held-out batches are so too and would prove what serves no others: a remedy of
    settings or statistics must be named then. An exception leaves the model as it was; Ctrl-C
    takes back the remedy that is being tried and returns what was found until then.

    Args:
        model: changed in place.
        diagnosis: of this model; see `diagnose`.
        batches: as in training; None: only remedies without data, which force must allow, since
            nothing can judge them.
        held_out: judge on these; None: on 30 % of the batches, which remedies do not read then.
        live: data as in use, for the remedy "adapt"; 30 % of the batches judge it.
        remedies: names, instead of those of the findings that are warnings or errors.
        force: keep what does not help.
        dry_run: report, and take everything back.
        forward: as for `diagnose`, as are labels, metric, loss, reference and batch_limit.
        labels: where the labels are.
        metric: decides, where it is given.
        loss: decides, where it is given and no metric is.
        reference: the model whose buffers the remedy "copy_buffers" takes.
        batch_limit: read so many batches at most.
        on_progress: called before each remedy: how many are done, how many there are, its name.
        progress: show a bar; None: in a notebook and on a terminal, without on_progress.

    Raises:
        InputError: an unknown remedy, a loader that fails or is empty.
        ModelError: a forward that fails.

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    >>> batches = [(torch.randn(32, 4), torch.arange(32) % 2) for _ in range(4)]
    >>> with torch.no_grad():
    ...     net[1].running_mean += 3
    >>> done = normscope.repair(net, normscope.diagnose(net, batches), batches)
    >>> done.record.kept
    ('recalibrate',)
    >>> net is done.undo()
    True
    """
    check_runnable(model, writes=True)
    remedies = tuple(remedies)
    plan = _plan(diagnosis, remedies)
    goal = Goal(metric, loss)

    def reader(given: Iterable[Any] | None) -> Loader | None:
        options = {"forward": forward, "labels": labels, "limit": batch_limit}
        return None if given is None else Loader.reading(given, model, **options)

    judge = HeldOut.of(model, reader(batches), reader(held_out), goal)
    context = RepairContext(model, judge.loader, judge, reference=reference)
    session = _Session(model, judge, context, force=force)
    scale = next((f for f in diagnosis.findings if f.code == SCALED), None)
    if scale is not None and not remedies and not force:
        factor = scale.facts.get("factor")
        how = f"{factor} times as large as in" if factor else "not in the order or units of"
        session.unfit = (
            f"the inputs are {how} training, held-out ones too; "
            "compare the preprocessing, or name this remedy if the inputs are as in use"
        )
    if live is not None and "adapt" in plan:
        in_use = reader(live)
        session.in_use = HeldOut.of(model, in_use, None, goal)
        session.context.live = in_use
    start = ModelSnapshot(model)
    try:
        with steps(progress, on_progress) as session.on_progress:
            before = session.now = judge.evaluate(model)
            complete = session.run(plan)
    except BaseException:
        start.rollback()
        raise
    if dry_run:
        start.rollback()
    trials = session.trials
    answered = {code for trial in trials if trial.kept for code in trial.codes}
    record = Repaired(
        model=diagnosis.model,
        data=diagnosis.data,
        dry_run=dry_run,
        complete=complete,
        before=before.score,
        after=session.now.score,
        trials=tuple(trials),
        advice=tuple(
            dict.fromkeys(
                f.code
                for f in diagnosis.findings
                if f.code not in answered and f.severity != "info"
                if f.code != SYMPTOM and (f.repair in ("", TRIED) or f.repair not in REMEDIES)
            )
        ),
    )
    return Repair(model, record, start)


def _plan(diagnosis: Diagnosis, names: tuple[str, ...]) -> dict[str, list[Finding]]:
    for name in names:
        if name not in REMEDIES:
            raise InputError(f"there is no remedy {name!r}; there are {', '.join(REMEDIES)}")
    plan: dict[str, list[Finding]] = {name: [] for name in names or REMEDIES}
    for finding in diagnosis.findings:
        if finding.repair in plan and (names or finding.severity != "info"):
            plan[finding.repair].append(finding)
    return {name: found for name, found in plan.items() if found or names}


@dataclass
class _Session:
    """Remedies tried one after the other."""

    model: nn.Module
    judge: HeldOut
    context: RepairContext
    in_use: HeldOut | None = None
    force: bool = False
    unfit: str = ""  # why held-out batches prove nothing
    on_progress: Progress | None = None
    now: Evaluation = field(default_factory=Evaluation)
    trials: list[Trial] = field(default_factory=list)

    def run(self, plan: dict[str, list[Finding]]) -> bool:
        """Try all of them; False where Ctrl-C came before the end, and something was tried."""
        todo = list(plan)
        while todo:
            name = todo[0]
            latest = ModelSnapshot(self.model)
            try:
                if self.on_progress is not None:
                    self.on_progress(len(self.trials), len(self.trials) + len(todo), name)
                trial, now = self._tried(name, plan[name])
            except KeyboardInterrupt:
                latest.rollback()
                if not self.trials:
                    raise
                return False
            self.trials.append(trial)
            self.now = now
            del todo[0]
            if trial.kept:  # what did not help before it may help on top of it, once more
                todo += [n for n in plan if n not in todo and self._refused_once(n)]
        return True

    def _refused_once(self, name: str) -> bool:
        """Return whether a remedy was tried once, could be carried out, and did not help."""
        own = [trial for trial in self.trials if trial.remedy == name]
        return len(own) == 1 and not own[0].kept and not own[0].note

    def _tried(self, name: str, findings: Sequence[Finding]) -> tuple[Trial, Evaluation]:
        """Try every variant of a remedy; the best is kept where it helps."""
        judge, now = self.judge, self.now
        if name == "adapt" and self.in_use is not None:
            judge = self.in_use
            now = judge.evaluate(self.model)
        layers = tuple(dict.fromkeys(f.layer for f in findings if f.layer))
        memory = ModelSnapshot(self.model)
        tried: list[tuple[Evaluation, Remedy]] = []
        note = ""
        for remedy in REMEDIES[name]:
            try:
                if self.unfit and name not in CORRECTNESS:
                    raise Unfit(self.unfit)
                self._applied(remedy, layers)
                tried.append((judge.evaluate(self.model), remedy))
            except (Unfit, ModelError) as problem:
                note = str(problem)
            finally:
                memory.rollback()
        codes = tuple(dict.fromkeys(f.code for f in findings))
        trial = Trial(
            remedy=name, codes=codes, layers=layers, before=now.score, after=now.score, helps=False,
            kept=False,
        )  # fmt: skip
        if not tried:
            return replace(trial, layers=(), note=note), self.now
        after, remedy = tried[0]
        for other, variant in tried:
            if helps(after, other):  # the earlier ones change less
                after, remedy = other, variant
        helped = helps(now, after)
        if name in CORRECTNESS and judge.loader is not None:
            helped = helped or not harms(now, after)
        if not helped and name in NO_OP_SAFE:
            harmless = [pair for pair in tried if same(now, pair[0])]
            if harmless:
                (after, remedy), helped = harmless[0], True
        kept = helped or self.force
        if kept:
            layers = self._applied(remedy, layers)
            if name in RESHAPES:
                self.context.forget()
        trial = replace(trial, layers=layers, after=after.score, helps=helped, kept=kept)
        if not kept:
            return trial, self.now
        # what adapting costs on data as in training
        return trial, after if judge is self.judge else self.judge.evaluate(self.model)

    def _applied(self, remedy: Remedy, layers: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return remedy(self.context, layers)
        except InputError:
            raise
        except NormscopeError as problem:
            raise Unfit(str(problem)) from problem
