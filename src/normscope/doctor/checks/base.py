"""What every check is: a code, what it needs, thresholds with their source, and a question."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normscope.doctor.attribution import Attribution, Override
from normscope.doctor.evidence import Evidence
from normscope.doctor.scale import other_columns, other_scale
from normscope.doctor.state import LayerState, of_model
from normscope.moments import drift, rms
from normscope.probe.compare import SURE, Answer, Quality
from normscope.records import Confidence, Finding, Passport, Severity

Needs = Literal["checkpoint", "model", "data"]
SHOWN = 20  # channels that a finding lists
APART = 0.1  # relative difference of outputs from which it matters, where nothing says what is good
FALL = 0.005  # of accuracy, likewise
CHECKS: dict[str, type["Check"]] = {}  # by code, filled by `register`


@dataclass(eq=False)
class CheckContext:
    """All that is known of a model or a checkpoint.

    Attributes:
        layers: with running statistics.
        subject: the model; None where only a checkpoint is there.
        data: None where no data were given.
        live: data as in use, beside those of training.
        attribution: of the gap on the data; None without.
        names: of everything in a checkpoint.
        optimizer: that trains the model.
        accumulate: batches per optimizer step.
        reference: the model that this one is an average or a copy of.
        passport: of the checkpoint; None where it has none.
        group: ranks that all ask; None: this process alone.
        state: the tensors of a checkpoint without a model.
    """

    layers: list[LayerState]
    subject: nn.Module | None = None
    data: Evidence | None = None
    live: Evidence | None = None
    attribution: Attribution | None = None
    names: frozenset[str] = frozenset()
    optimizer: torch.optim.Optimizer | None = None
    accumulate: int | None = None
    reference: nn.Module | None = None
    passport: Passport | None = None
    group: dist.ProcessGroup | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The model; checks that need one are not asked without."""
        assert self.subject is not None, "needed"
        return self.subject

    @property
    def evidence(self) -> Evidence:
        """What the data say; checks that need data are not asked without."""
        assert self.data is not None, "needed"
        return self.data

    @cached_property
    def damaged(self) -> set[str]:
        """Layers with statistics that are not finite or negative; others do not judge these."""
        return {s.name for s in self.layers if bool(broken(s).any())}

    @cached_property
    def furthest(self) -> float:
        """The drift of the layer that is furthest from the data, root mean square; 0: of none."""
        found = (away for s in self.layers if (away := self.away(s)) is not None)
        return max(map(rms, found), default=0.0)

    @cached_property
    def followed(self) -> dict[str, LayerState]:
        """The layers of the reference, by name; empty without one."""
        return {} if self.reference is None else {s.name: s for s in of_model(self.reference)}

    @cached_property
    def gap_matters(self) -> bool:
        """Whether eval() is worse than it could be.

        Where labels, a loss or a metric say what is good: whether train(), or the statistics of
        the data, do better beyond the standard error, by more than FALL of accuracy or APART of
        the loss. Else whether outputs differ by APART.
        """
        if self.data is None:
            return False
        gap = self.data.gap
        if not gap.known:
            return gap.relative > APART
        fall = gap.reference.accuracy - gap.other.accuracy
        worse = gap.advantage < -SURE and not fall <= FALL and _much(gap.other, gap.reference)
        if worse or self.attribution is None or not self.restored > SURE:
            return worse
        found = self.attribution.against_eval(self.attribution.restored)
        return _much(found.reference, found.other)

    @cached_property
    def restored(self) -> float:
        """Standard errors by which the statistics of the data do better; NaN: not known."""
        if self.attribution is None:
            return float("nan")
        return self.attribution.advantage(self.attribution.restored)

    @property
    def keep_stored(self) -> bool:
        """Whether the data cannot judge the stored statistics.

        With these the model does better, or the samples are a few ones over and over.
        """
        return self.restored < -SURE or (self.data is not None and self.data.few)

    @cached_property
    def scales(self) -> dict[str, float]:
        """By how many times inputs are larger than in training, of layers where they are."""
        if self.data is None:
            return {}
        whole = (state for state in self.layers if state.name not in self.damaged)
        reached = (state for state in whole if self.away(state) is not None)
        found = {state.name: other_scale(self.model, self.data, state) for state in reached}
        return {name: factor for name, factor in found.items() if factor}

    @cached_property
    def columns(self) -> dict[str, Tensor]:
        """The channels that came in another order or unit, by layer."""
        if self.data is None:
            return {}
        whole = (s for s in self.layers if s.name not in self.damaged and s.name not in self.scales)
        reached = (state for state in whole if self.away(state) is not None)
        found = {state.name: other_columns(self.data, state) for state in reached}
        return {name: marks for name, marks in found.items() if marks is not None}

    @property
    def other_inputs(self) -> set[str]:
        """Layers whose inputs were prepared otherwise than in training."""
        return {*self.scales, *self.columns}

    def away(self, state: LayerState) -> Tensor | None:
        """Return the drift of a layer's stored statistics from the data's; None where not run.

        Channels that are broken, or of which the data hold too little, count as 0.
        """
        if self.data is None or state.name not in self.data.by_batch:
            return None
        mean, var = self.data.population(state.name)
        known = var.isfinite() & ~broken(state)
        return torch.where(known, drift(state.mean, state.var, mean, var), 0)


class Skip(Exception):
    """A check cannot answer; its argument is the message key of the reason."""


def register(
    code: str,
    *,
    needs: Needs = "checkpoint",
    repair: str = "",
    cause: str = "",
    specific: Literal[0, 1, 2] = 2,
) -> Callable[[type["Check"]], type["Check"]]:
    """Add a check to CHECKS.

    Args:
        code: that it is known by.
        needs: what it must be given; with "model" and "data" there is more in the context.
        repair: the remedy that it offers; empty: none.
        cause: its name in the attribution of the gap; empty: not in it.
        specific: 0 a symptom, 1 a general cause, 2 a particular one.
    """

    def add(check: type[Check]) -> type[Check]:
        check.code, check.needs, check.specific = code, needs, specific
        check.repair, check.cause = repair, cause
        CHECKS[code] = check
        return check

    return add


class Check:
    """A question to a `CheckContext`: to each layer (`judge`), or to the whole of it (`find`).

    A class's docstring is its title. What is wrong, how it is seen and what to do is told in both
    languages in report/messages, under doctor.CODE. Its family is the file that it is in.

    Attributes:
        code, needs, repair, cause, specific: as registered.
        source: where the thresholds come from.
        warn, fail: thresholds of the two severities; may be set per run.
    """

    code: ClassVar[str]
    needs: ClassVar[Needs]
    repair: ClassVar[str]
    cause: ClassVar[str]
    specific: ClassVar[int]
    source: ClassVar[str]
    warn: float = 0.0
    fail: float = float("inf")

    def find(self, case: CheckContext) -> Iterator[Finding]:
        """Name every layer, or the model, of which it is true."""
        for state in case.layers:
            yield from self.judge(case, state)

    def judge(self, case: CheckContext, state: LayerState) -> Iterator[Finding]:
        """Name one layer, where it is true of it."""
        raise NotImplementedError

    def override(self, case: CheckContext, names: tuple[str, ...]) -> Override:
        """Return what these layers would normalise with, were the fault fixed."""
        assert case.attribution is not None, "asked with data only"
        return Override({name: case.attribution.target[name] for name in names})

    def fixed(
        self, case: CheckContext, names: tuple[str, ...]
    ) -> tuple[str, Sequence[Answer]] | None:
        """Return the cause's name, and the answers with these layers fixed; None: no cause."""
        if not self.cause or case.attribution is None:
            return None
        return self.cause, case.attribution.answers(self.override(case, names))

    def missing(self, case: CheckContext) -> str | None:
        """Return the message key of why it cannot be asked; None where it can."""
        if self.needs != "checkpoint" and case.subject is None:
            return "doctor.skip.model"
        if self.needs == "data" and case.data is None:
            return "doctor.skip.data"
        return None

    def graded(
        self, value: float, case: CheckContext | None = None
    ) -> tuple[Severity, float] | None:
        """Return severity and threshold of a number that is worse the larger it is.

        With a case, it is an error only where eval() is worse for it.
        """
        if value > self.fail and (case is None or case.data is None or case.gap_matters):
            return "error", self.fail
        return ("warning", self.warn) if value > self.warn else None

    def above(
        self, layer: str, value: float, case: CheckContext | None = None, **facts: Any
    ) -> Iterator[Finding]:
        """Make a finding where a number is above a threshold, of the severity of `graded`."""
        if (grade := self.graded(value, case)) is not None:
            yield self.finding(layer, grade[0], value, grade[1], **facts)

    def finding(
        self,
        layer: str,
        severity: Severity,
        measured: float,
        threshold: float | None = None,
        *,
        channels: Tensor | None = None,
        confidence: Confidence = "high",
        repair: str | None = None,
        **facts: object,
    ) -> Finding:
        """Make one finding; `channels` is a mask over channels, `threshold` else that to warn."""
        numbers = () if channels is None else tuple(channels.nonzero()[:, -1].tolist())
        return Finding(
            code=self.code,
            severity=severity,
            layer=layer,
            measured=measured,
            threshold=self.warn if threshold is None else threshold,
            source=self.source,
            facts={name: in_digits(value) for name, value in facts.items()},
            channels=tuple(dict.fromkeys(numbers))[:SHOWN],
            repair=self.repair if repair is None else repair,
            confidence=confidence,
        )


def in_digits(value: Any) -> str:
    """Write a number in few digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def broken(state: LayerState) -> Tensor:
    """Mark channels whose stored statistics are not finite, or whose variance is negative."""
    return ~(state.mean.isfinite() & state.var.isfinite() & (state.var >= 0))


def _much(worse: Quality, better: Quality) -> bool:
    """Tell whether a difference that is sure is large enough to matter; a metric says so alone."""
    if better.metrics or better.accuracy - worse.accuracy > FALL:
        return True
    return worse.loss - better.loss > APART * abs(worse.loss)
