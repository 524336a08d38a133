"""A diagnosis of a model, its causes, and the result of its repair."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from normscope.records.base import Record, scalars

Severity = Literal["error", "warning", "info"]
Confidence = Literal["high", "medium", "low"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")  # ascending


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check's verdict on one layer, or on the whole model."""

    code: str  # "NS001", ...
    severity: Severity
    layer: str  # as in model.named_modules(); empty: the whole model or its data
    measured: float  # the evidence number
    threshold: float
    source: str  # where the threshold comes from
    facts: dict[str, str] = field(default_factory=dict)  # for the placeholders of the message
    channels: tuple[int, ...] = ()  # the first twenty concerned
    repair: str = ""  # name of the remedy that fits; empty: advice only
    confidence: Confidence = "high"


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A check that was not made, and why, as a message key."""

    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Cause:
    """The share of the gap between train() and eval() that fixing this alone closes."""

    name: str  # of `doctor.cause.*`
    code: str  # of the check that it belongs to; empty: none
    closes: float  # share of the gap; negative: fixing it alone makes it wider
    layers: tuple[str, ...]
    advantage: float = math.nan  # standard errors by which the model then does better


@dataclass(frozen=True, kw_only=True)
class LayerGap:
    """The share of the gap that fixing the statistics of one layer closes."""

    name: str
    distance: float  # of its statistics from those of the data, rms over channels, in std
    both: float
    mean: float
    var: float
    worst: tuple[int, ...]  # channels, the furthest first


@dataclass(frozen=True, kw_only=True)
class ChannelGap:
    """Statistics of one channel, as stored and as measured on the data in train()."""

    layer: str
    channel: int
    stored_mean: float
    stored_var: float  # may be negative or not finite: then that is what is wrong
    mean: float
    var: float
    distance: float  # 2-Wasserstein of two normal distributions, in std of the data
    condition: int | None = None  # whose statistics, where each condition has its own


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The same samples and weights, normalised by the batch and by the stored statistics."""

    relative: float  # rms difference of outputs over their standard deviation in train()
    disagreement: float  # share of samples with another argmax; NaN where outputs are no scores
    train_accuracy: float  # normalised by the batch, dropout off; NaN where labels do not count
    eval_accuracy: float
    samples: int
    train_loss: float = math.nan
    eval_loss: float = math.nan
    train_metric: float = math.nan  # of `metric=`
    eval_metric: float = math.nan
    advantage: float = math.nan  # standard errors by which eval() does better; NaN: not known
    by_chance: float = math.nan  # accuracy in eval(), where neither mode predicts the labels
    from_one: int = 0  # number of classes, where labels are 1 to that and so cannot be read


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is at fault: the model's statistics or settings, the data at hand, or nothing."""

    kind: Literal["statistics", "data", "nothing"]
    code: str = ""  # of the finding that explains most
    closes: float = math.nan  # share of the gap that goes when it is fixed
    warns: str = ""  # what not to do, as `doctor.not.*`


@dataclass(frozen=True, kw_only=True)
class Diagnosis(Record, kind="diagnosis", parts="findings"):
    """Every check on a model: findings, causes, and what was not checked."""

    model: str
    data: str
    layers: int
    findings: tuple[Finding, ...]  # the likeliest explanation first
    skipped: tuple[Skipped, ...]
    passed: tuple[str, ...]  # codes
    gap: Gap | None = None
    causes: tuple[Cause, ...] = ()  # those that close most first
    by_layer: tuple[LayerGap, ...] = ()
    channels: tuple[ChannelGap, ...] = ()  # of layers with findings, the furthest apart first
    verdict: Verdict | None = None

    @property
    def worst(self) -> Severity | None:
        """The highest severity; None where nothing was found."""
        found = [SEVERITIES.index(finding.severity) for finding in self.findings]
        return SEVERITIES[max(found)] if found else None

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of the findings, each once, the likeliest explanation first."""
        return tuple(dict.fromkeys(finding.code for finding in self.findings))

    def fails(self, on: Severity) -> bool:
        """Return whether there is a finding of this severity or a higher one."""
        return self.worst is not None and SEVERITIES.index(self.worst) >= SEVERITIES.index(on)


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a model does on held-out samples, in eval()."""

    accuracy: float  # NaN without labels
    loss: float  # of `loss=`, or cross-entropy in nats or squared error; NaN without labels
    gap: float  # as `Gap.relative`
    samples: int
    metric: float = math.nan  # of `metric=`


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One remedy, tried."""

    remedy: str  # of `doctor.remedy.*`
    codes: tuple[str, ...]  # findings that it answers
    layers: tuple[str, ...]  # that it changed
    before: Score
    after: Score
    helps: bool  # on held-out samples
    kept: bool
    note: str = ""  # why it could not be carried out, as a sentence


@dataclass(frozen=True, kw_only=True)
class Repaired(Record, kind="repair"):
    """What `repair` tried, what held-out samples said, and what was kept."""

    model: str
    data: str
    dry_run: bool
    complete: bool  # False: stopped after these trials
    before: Score
    after: Score
    trials: tuple[Trial, ...]
    advice: tuple[str, ...]  # codes of findings that no remedy answers

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row per remedy that was tried, with the scores before and after it."""
        return [
            scalars(trial)
            | {
                f"{name}_{when}": getattr(score, name)
                for when, score in (("before", trial.before), ("after", trial.after))
                for name in ("accuracy", "loss", "metric", "gap")
            }
            for trial in self.trials
        ]

    @property
    def kept(self) -> tuple[str, ...]:
        """The remedies that were kept."""
        return tuple(trial.remedy for trial in self.trials if trial.kept)
