"""Outputs of a model beside each other: how far apart, how often right."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from normscope.records import Score

WORST = 1e6  # stands for a difference that is not finite


def scores_of(output: Any, size: int) -> Tensor:
    """The first floating tensor of an output with one row per sample, as (N, D) float64."""
    for value in tree_leaves(output):
        floats = isinstance(value, Tensor) and value.is_floating_point() and value.dim()
        if floats and len(value) == size:
            return value.detach().double().reshape(size, -1)  # type: ignore[no-any-return]
    for value in tree_leaves(output):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().double().reshape(1, -1)
    return torch.zeros(size, 1, dtype=torch.float64)


@dataclass
class Comparison:
    """Two outputs of the same samples, accumulated over batches: `other` against `reference`."""

    samples: int = 0
    squares: float = 0.0
    spread: float = 0.0
    differ: int = 0
    judged: int = 0
    labelled: int = 0
    right: list[int] = field(default_factory=lambda: [0, 0])
    loss: float = 0.0
    _by_sample: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # of the other

    def add(self, reference: Tensor, other: Tensor, labels: Tensor | None) -> None:
        """One batch: (N, D) each, and labels (N,) where there are any."""
        finite = other.isfinite().all(1)
        step = torch.where(finite.unsqueeze(1), other - reference, 0)
        lost = int((~finite).sum())
        scale = float((reference - reference.mean()).pow(2).mean(1).sum())
        self.squares += float(step.pow(2).mean(1).sum()) + lost * WORST * max(scale, 1e-12)
        self.spread += scale
        self.samples += len(reference)
        if reference.shape[1] < 2:
            return
        self.judged += len(reference)
        a, b = reference.argmax(1), torch.where(finite, other.argmax(1), -1)
        self.differ += int((a != b).sum())
        if labels is not None and len(labels) == len(a) and int(labels.max()) < other.shape[1]:
            self.labelled += len(a)
            self.right[0] += int((a == labels).sum())
            self.right[1] += int((b == labels).sum())
            losses = -other.log_softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
            worst = math.log(WORST)
            losses = torch.where(losses.isfinite(), losses, worst).clamp(max=worst)
            self._by_sample.append((losses.cpu(), (b == labels).cpu()))
            self.loss += float(losses.sum())

    def by_sample(self) -> tuple[Tensor, Tensor]:
        """Losses (N,) of the other output, and whether it is right; empty without labels."""
        if not self._by_sample:
            return torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        losses, right = zip(*self._by_sample, strict=True)
        return torch.cat(losses), torch.cat(right)

    @property
    def relative(self) -> float:
        """Root of the mean squared difference over the spread of the reference."""
        return math.sqrt(self.squares / max(self.spread, 1e-12))

    @property
    def disagreement(self) -> float:
        """Share of samples with another argmax; NaN where outputs are no scores."""
        return self.differ / self.judged if self.judged else math.nan

    def accuracy(self, which: int) -> float:
        """Of the reference (0) or the other (1); NaN without labels."""
        return self.right[which] / self.labelled if self.labelled else math.nan

    def score(self) -> Score:
        """Of the other output."""
        loss = self.loss / self.labelled if self.labelled else math.nan
        return Score(accuracy=self.accuracy(1), loss=loss, gap=self.relative, samples=self.samples)
