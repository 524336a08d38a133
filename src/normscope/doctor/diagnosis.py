"""`diagnose`: every check, then the causes, the likeliest explanation first."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normscope.doctor import state
from normscope.doctor.cause import explained
from normscope.doctor.checks import CHECKS, Case, Check, Skip
from normscope.doctor.evidence import Evidence, gathered, norms_by_name
from normscope.doctor.loader import Forward, Loader, Part, device_of
from normscope.errors import InputError, ModelError
from normscope.probe.load import read_weights
from normscope.records import SEVERITIES, Cause, Diagnosis, Finding, Gap, LayerGap, Skipped

Subject = nn.Module | Mapping[str, Tensor] | str | Path
Progress = Callable[[int, int, str], None]  # done, in all, what is next


def diagnose(
    subject: Subject,
    batches: Iterable[Any] | None = None,
    *,
    live: Iterable[Any] | None = None,
    forward: Forward | None = None,
    select: Iterable[str] = (),
    thresholds: Mapping[str, tuple[float, float]] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    accumulate: int | None = None,
    momentum: float = state.MOMENTUM,
    model_name: str = "",
    data_name: str = "",
    part: Part = "all",
    on_progress: Progress | None = None,
) -> Diagnosis:
    """Ask every check of a model, or of a checkpoint alone, and rank the causes of its gap.

    The data are read once. With them, what differs between train() and eval() is taken apart on
    up to 768 samples: each cause is mended alone and the remaining difference measured. The
    model comes back as it was, also after an exception.

    Args:
        subject: a model; or the path of a checkpoint, or a state_dict: then checks that need a
            model are skipped, and momentum and eps are taken as torch's defaults.
        batches: as in training (its data, size and order), in a structure as for `recalibrate`.
            A third entry of a tuple is the domain of each sample. None: no check that needs data.
        live: batches as in use, to look for drift.
        forward: forward(model, batch), for batches of another structure.
        select: beginnings of codes, as "NS00"; empty: all.
        thresholds: code -> (warning, error), instead of the check's own.
        optimizer: that trains the model.
        accumulate: batches per step of the optimizer.
        momentum: of training, for a checkpoint alone, which does not say.
        model_name: shown in the record.
        data_name: shown in the record.
        part: "first" leaves out the samples that `repair` holds out.
        on_progress: called before each check: how many are done, how many there are, its code.

    Raises:
        InputError: an unknown code, a loader that fails or is empty.
        ModelError: no layer with running statistics, a forward that fails.
        FileError: a checkpoint that cannot be read.
    """
    checks = _checks(tuple(select), thresholds or {})
    case, loader = _case(subject, batches, live, forward, part, momentum)
    case.optimizer, case.accumulate = optimizer, accumulate
    findings: list[Finding] = []
    skipped: list[Skipped] = []
    passed: list[str] = []
    for done, (code, check) in enumerate(checks.items()):
        if on_progress is not None:
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
            findings += found
        else:
            passed.append(code)
    gap: Gap | None = None
    causes: tuple[Cause, ...] = ()
    by_layer: tuple[LayerGap, ...] = ()
    if case.model is not None and loader is not None:
        gap, causes, by_layer = explained(case.model, loader, case, findings)
    return Diagnosis(
        model=model_name or (str(subject) if isinstance(subject, (str, Path)) else _kind(subject)),
        data=data_name,
        layers=len(case.layers),
        findings=tuple(_ranked(findings, causes)),
        skipped=tuple(skipped),
        passed=tuple(passed),
        gap=gap,
        causes=causes,
        by_layer=by_layer,
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


def _case(
    subject: Subject,
    batches: Iterable[Any] | None,
    live: Iterable[Any] | None,
    forward: Forward | None,
    part: Part,
    momentum: float,
) -> tuple[Case, Loader | None]:
    if not isinstance(subject, nn.Module):
        if batches is not None or live is not None:
            raise InputError("data need a model to run them through; give the model, not a file")
        content = read_weights(Path(subject)) if isinstance(subject, (str, Path)) else subject
        return Case(state.of_checkpoint(content, momentum), names=frozenset(content)), None
    layers = state.of_model(subject)
    if not layers:
        raise ModelError(
            f"the model ({type(subject).__name__}) has no layer with running statistics; "
            "the doctor looks at batch norms"
        )
    case = Case(layers, subject)
    loader = None
    names = norms_by_name(subject)
    if batches is not None:
        loader = Loader(batches, forward, device_of(subject))
        case.data = gathered(subject, loader, names, part=part)
    if live is not None:
        case.live = _looked(subject, Loader(live, forward, device_of(subject)), names)
    return case, loader


def _looked(model: nn.Module, loader: Loader, names: Mapping[str, nn.Module]) -> Evidence:
    return gathered(model, loader, names, domains=False)


def _ranked(findings: list[Finding], causes: tuple[Cause, ...]) -> list[Finding]:
    """The likeliest explanation first: what closes more of the gap, then the more particular.

    A general cause, as stale statistics, counts for what it closes beyond the particular ones
    that are found beside it: theirs are stale statistics too.
    """
    closes: dict[str, float] = {}
    for cause in causes:
        if cause.code:
            closes[cause.code] = max(closes.get(cause.code, 0.0), min(cause.closes, 1.0))
    particular = max(
        (closes.get(f.code, 0.0) for f in findings if CHECKS[f.code].specific == 2), default=0.0
    )
    gravest = {
        code: max(SEVERITIES.index(f.severity) for f in findings if f.code == code)
        for code in {f.code for f in findings}
    }

    def place(finding: Finding) -> tuple[float, bool, float, float, str]:
        code, specific = finding.code, CHECKS[finding.code].specific
        share = closes.get(code, 0.0) - (particular if specific < 2 else 0.0)
        explains = round(share, 1) if share >= 0.2 else 0.0
        return (-explains, gravest[code] == 0, -specific, -gravest[code], code)

    return sorted(findings, key=place)
