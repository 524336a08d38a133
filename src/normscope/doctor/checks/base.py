"""What every check is: a code, what it needs, thresholds with their source, and a question."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from normscope.doctor.evidence import Evidence
from normscope.doctor.state import LayerState
from normscope.records import Confidence, Finding, Severity

Needs = Literal["checkpoint", "model", "data"]
SHOWN = 20  # channels that a finding lists


@dataclass(eq=False)
class Case:
    """All that is known of a patient.

    Attributes:
        layers: with running statistics.
        model: None where only a checkpoint is there.
        data: None where no data were given.
        live: data as in use, beside those of training.
        names: of everything in a checkpoint.
        optimizer: that trains the model.
        accumulate: batches per optimizer step.
    """

    layers: list[LayerState]
    model: nn.Module | None = None
    data: Evidence | None = None
    live: Evidence | None = None
    names: frozenset[str] = frozenset()
    optimizer: torch.optim.Optimizer | None = None
    accumulate: int | None = None
    batch: Any = None

    @cached_property
    def damaged(self) -> set[str]:
        """Layers with statistics that are not finite or negative; others do not judge these."""
        return {s.name for s in self.layers if bool(broken(s).any())}

    @property
    def gap_matters(self) -> bool:
        """Whether train() and eval() differ enough to call it an error."""
        if self.data is None:
            return False
        gap = self.data.gap
        apart = gap.disagreement if gap.judged else gap.relative
        worse = gap.accuracy(0) - gap.accuracy(1) if gap.labelled else 1.0
        return apart > 0.02 and worse > 0.01


class Skip(Exception):
    """A check cannot answer; its argument is the message key of the reason."""


@dataclass
class Check:
    """A question to a `Case`.

    A class's docstring is the explanation that `normscope explain CODE` prints: its first line
    the title, the rest what is wrong, how it is seen and what to do.

    Attributes:
        warn, fail: thresholds of the two severities; may be set per run.
    """

    code: ClassVar[str]
    family: ClassVar[str]
    needs: ClassVar[Needs]
    source: ClassVar[str]  # of the thresholds
    repair: ClassVar[str] = ""
    specific: ClassVar[int] = 2  # 0 a symptom, 1 a general cause, 2 a particular one
    warn: float = 0.0
    fail: float = field(default=float("inf"))

    def find(self, case: Case) -> Iterator[Finding]:
        """Every layer, or the model, of which it is true."""
        raise NotImplementedError

    def missing(self, case: Case) -> str | None:
        """The message key of why it cannot be asked; None where it can."""
        if self.needs != "checkpoint" and case.model is None:
            return "doctor.skip.model"
        if self.needs == "data" and case.data is None:
            return "doctor.skip.data"
        return None

    def graded(self, value: float) -> tuple[Severity, float] | None:
        """Severity and threshold of a number that is worse the larger it is."""
        if value > self.fail:
            return "error", self.fail
        return ("warning", self.warn) if value > self.warn else None

    def finding(
        self,
        layer: str,
        severity: Severity,
        measured: float,
        threshold: float,
        *,
        channels: Tensor | None = None,
        confidence: Confidence = "high",
        repair: str | None = None,
        **facts: object,
    ) -> Finding:
        """One finding; `channels` is a mask over channels."""
        numbers = () if channels is None else tuple(channels.nonzero()[:, -1].tolist())
        return Finding(
            code=self.code,
            severity=severity,
            layer=layer,
            measured=measured,
            threshold=threshold,
            source=self.source,
            facts={name: told(value) for name, value in facts.items()},
            channels=tuple(dict.fromkeys(numbers))[:SHOWN],
            repair=self.repair if repair is None else repair,
            confidence=confidence,
        )


def told(value: object) -> str:
    """A number in few digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def broken(state: LayerState) -> Tensor:
    """Channels whose stored statistics are not finite, or whose variance is negative."""
    return ~(state.mean.isfinite() & state.var.isfinite() & (state.var >= 0))
