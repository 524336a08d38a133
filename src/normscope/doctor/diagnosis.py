"""`diagnose`: every check, then the causes, the one that explains most first."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normscope.arguments import check_model
from normscope.doctor import state
from normscope.doctor.attribution import Attribution
from normscope.doctor.channels import channel_gaps
from normscope.doctor.checks import CHECKS, Check, CheckContext, Skip
from normscope.doctor.evidence import Evidence, collected, norms_by_name
from normscope.doctor.verdict import ranked, verdict
from normscope.equivalence import read_passport
from normscope.errors import InputError, ModelError
from normscope.probe.batches import Forward, Loader, Part
from normscope.probe.compare import Answer, Goal, Loss, Metric
from normscope.probe.frozen import check_runnable, refuse_traced
from normscope.probe.grammar import Labels
from normscope.probe.load import read_weights
from normscope.progress import Progress, expected, steps
from normscope.records import Cause, Diagnosis, Finding, Gap, Passport, Severity, Skipped

Subject = nn.Module | Mapping[str, Tensor] | str | Path


def diagnose(
    subject: Subject,
    batches: Iterable[Any] | None = None,
    *,
    live: Iterable[Any] | None = None,
    forward: Forward | None = None,
    labels: Labels | None = None,
    metric: Metric | None = None,
    loss: Loss | None = None,
    reference: nn.Module | None = None,
    select: Iterable[str] = (),
    thresholds: Mapping[str, tuple[float, float]] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    accumulate: int | None = None,
    momentum: float = state.MOMENTUM,
    eps: float = state.EPS,
    passport: Passport | None = None,
    batch_limit: int | None = None,
    model_name: str = "",
    data_name: str = "",
    part: Part = "all",
    process_group: dist.ProcessGroup | Literal["world"] | None = None,
    on_progress: Progress | None = None,
    progress: bool | None = None,
) -> Diagnosis:
    """Ask every check of a model, or of a checkpoint alone, and rank the causes of its gap.

    The data are read once. With them, what differs between train() and eval() is taken apart on
    up to 768 samples: each cause is overridden alone and the remaining difference measured. The
    model comes back as it was, also after an exception.

    Args:
        subject: a model; or the path of a checkpoint, or a state_dict: then checks that need a
            model are skipped.
        batches: as in training (its data, size and order); see `probe.grammar` for what a batch
            may be. A third entry of a tuple is the domain of each sample. None: no check that
            needs data.
        live: batches as in use, to look for drift.
        forward: forward(model, batch), for batches of another structure.
        labels: a key or position in the batch, or labels(batch). Labels count where they fit
            the output (as classes, masks, yes or no, values) and are predicted beyond chance.
        metric: metric(output, batch), higher is better, the mean over batches.
        loss: loss(output, batch), lower is better, one number or one per sample.
        reference: the model that this one is an average or a copy of.
        select: beginnings of codes, as "NS00"; empty: all.
        thresholds: code -> (warning, error), instead of the check's own.
        optimizer: that trains the model.
        accumulate: batches per step of the optimizer.
        momentum: of training, for a checkpoint alone, which does not say.
        eps: likewise.
        passport: of the checkpoint; None: the one in it or beside it, where a path is given. It
            comes before `momentum` and `eps`.
        batch_limit: read so many batches at most; None: all, or 1,000 of a loader without length.
        model_name: shown in the record.
        data_name: shown in the record.
        part: "first" leaves out the batches that `repair` holds out.
        process_group: ranks whose statistics are compared, "world" for all; every rank must
            call. None: this process alone.
        on_progress: called before each step: how many are done, how many there are, its name.
        progress: show a bar; None: in a notebook and on a terminal, without on_progress.

    Raises:
        InputError: an unknown code, a loader that fails or is empty.
        ModelError: no layer with running statistics, a forward that fails.
        FileError: a checkpoint that cannot be read.

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    >>> batches = [(torch.randn(32, 4), torch.arange(32) % 2) for _ in range(4)]
    >>> with torch.no_grad():
    ...     net[1].running_mean += 3  # statistics that are not those of the data
    >>> "NS003" in normscope.diagnose(net, batches).codes
    True
    """
    checks = _checks(tuple(select), thresholds or {})
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise InputError(
            f"the optimizer is a {type(optimizer).__name__}; give the torch.optim.Optimizer that "
            "trains the model"
        )
    goal = Goal(metric, loss)

    def reader(given: Iterable[Any]) -> Loader:
        assert isinstance(subject, nn.Module), "asked with a model only"
        return Loader.reading(given, subject, forward=forward, labels=labels, limit=batch_limit)

    case = _context(subject, batches, live, momentum, eps, passport)
    case.optimizer, case.accumulate, case.reference = optimizer, accumulate, reference
    case.group = dist.group.WORLD if process_group == "world" else process_group
    with steps(progress, on_progress, expected(batches, batch_limit)) as told:
        if case.subject is not None:
            layers = norms_by_name(case.subject)
            if batches is not None:
                loader = reader(batches)
                case.data = collected(
                    case.subject, loader, layers, goal, part=part, on_progress=told
                )
                if case.data.gap.samples:
                    case.attribution = Attribution(case.subject, loader, case.data, case.layers)
            if live is not None:
                case.live = collected(case.subject, reader(live), layers, goal)
        findings, skipped, passed = _asked(case, checks, told)
        causes = _causes(case, checks, findings, told)
    ordered = ranked(findings, causes)
    return Diagnosis(
        model=model_name or (str(subject) if isinstance(subject, (str, Path)) else _kind(subject)),
        data=data_name,
        layers=len(case.layers),
        findings=tuple(ordered),
        skipped=tuple(skipped),
        passed=tuple(passed),
        gap=None if case.data is None or not case.data.gap.samples else _gap(case.data),
        causes=causes,
        by_layer=() if case.attribution is None else case.attribution.by_layer(),
        channels=channel_gaps(case, ordered),
        verdict=verdict(ordered, causes),
    )


def _kind(subject: Subject) -> str:
    return type(subject).__name__ if isinstance(subject, nn.Module) else "checkpoint"


def _checks(
    select: tuple[str, ...], thresholds: Mapping[str, tuple[float, float]]
) -> dict[str, Check]:
    for prefix in (*select, *thresholds):
        if not any(code.startswith(prefix) for code in CHECKS):
            raise InputError(f"there is no check {prefix!r}; there are {', '.join(CHECKS)}")
    made = {}
    for code, kind in CHECKS.items():
        if select and not code.startswith(select):
            continue
        check = kind()
        if code in thresholds:
            check.warn, check.fail = thresholds[code]
        made[code] = check
    return made


def _context(
    subject: Subject,
    batches: Iterable[Any] | None,
    live: Iterable[Any] | None,
    momentum: float,
    eps: float,
    passport: Passport | None,
) -> CheckContext:
    refuse_traced(subject)
    if not isinstance(subject, (str, os.PathLike, Mapping)):
        check_model(subject)
    if isinstance(subject, nn.Module):
        check_runnable(subject)
        layers = state.of_model(subject)
        if not layers:
            raise ModelError(state.without_statistics(subject))
        return CheckContext(layers, subject, passport=passport)
    if batches is not None or live is not None:
        raise InputError("data need a model to run them through; give the model, not its weights")
    content = read_weights(Path(subject)) if isinstance(subject, (str, Path)) else subject
    if passport is None and isinstance(subject, (str, Path)):
        passport = read_passport(Path(subject))
    layers = state.of_checkpoint(content, momentum, eps, passport)
    return CheckContext(layers, names=frozenset(content), passport=passport, state=content)


def _asked(
    case: CheckContext, checks: Mapping[str, Check], on_progress: Progress
) -> tuple[list[Finding], list[Skipped], list[str]]:
    findings: list[Finding] = []
    skipped: list[Skipped] = []
    passed: list[str] = []
    for done, (code, check) in enumerate(checks.items()):
        on_progress(done, len(checks), code)
        why = check.missing(case)
        found: list[Finding] = []
        if why is None:
            try:
                found = list(check.find(case))
            except Skip as skip:
                why = str(skip)
        if why is not None:
            skipped.append(Skipped(code=code, reason=why))
        elif found:
            findings += [_allowed(case, finding) for finding in found]
        else:
            passed.append(code)
    return findings, skipped, passed


def _allowed(case: CheckContext, finding: Finding) -> Finding:
    """Keep no error and no repair where new statistics would do harm; layers never updated stay."""
    never = finding.facts.get("kind") == "never"
    if finding.repair != "recalibrate" or never or not case.keep_stored:
        return finding
    severity: Severity = "info" if CHECKS[finding.code].specific == 1 else "warning"
    return replace(finding, severity=severity, repair="")


def _causes(
    case: CheckContext,
    checks: Mapping[str, Check],
    findings: Sequence[Finding],
    on_progress: Progress,
) -> tuple[Cause, ...]:
    """Order the causes of the gap by how much of it goes when each alone is fixed."""
    attribution, data = case.attribution, case.data
    if attribution is None or data is None:
        return ()
    causes: list[Cause] = []

    def add(name: str, code: str, layers: tuple[str, ...], answers: Sequence[Answer]) -> None:
        closes, sure = attribution.closes(answers), attribution.advantage(answers)
        causes.append(Cause(name=name, code=code, closes=closes, layers=layers, advantage=sure))

    concerned: dict[str, list[str]] = {}
    for finding in findings:
        concerned.setdefault(finding.code, []).append(finding.layer)
    for done, (code, found) in enumerate(concerned.items()):
        on_progress(done, len(concerned), code)
        names = tuple(n for n in dict.fromkeys(found) if n in attribution.states)
        names = names or tuple(attribution.states)
        fixed = checks[code].fixed(case, names)
        if fixed is not None:
            add(fixed[0], code, names, fixed[1])
    for name, override in attribution.parts().items():
        add(name, "", tuple(attribution.states), attribution.answers(override))
    composed = "NS008" in concerned
    name, code = ("composition", "NS008") if composed else ("small_batch", "NS007")
    causes.append(Cause(name=name, code=code, closes=attribution.of_batches, layers=()))
    return tuple(sorted(causes, key=lambda cause: -cause.closes))


def _gap(data: Evidence) -> Gap:
    gap = data.gap
    train, evaluated = gap.accuracies
    counts = gap.known
    return Gap(
        relative=gap.relative,
        disagreement=gap.disagreement,
        train_accuracy=train,
        eval_accuracy=evaluated,
        samples=gap.samples,
        train_loss=gap.reference.loss if counts else float("nan"),
        eval_loss=gap.other.loss if counts else float("nan"),
        train_metric=gap.reference.metric,
        eval_metric=gap.other.metric,
        advantage=gap.advantage,
        by_chance=math.nan if counts else gap.other.accuracy,
        from_one=0 if counts else _from_one(data),
    )


def _from_one(data: Evidence) -> int:
    """Return the number of classes where labels are 1 to that; 0 where they are not."""
    labels = data.labels.counts
    widths = {answer.values.shape[1] for answer in data.eval if answer.values.dim() == 2}
    return max(labels) if labels and min(labels) == 1 and widths == {max(labels)} else 0
