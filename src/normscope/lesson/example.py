"""Classes of plain numbers as a batch of one channel, checked, with the moments of each class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normscope.errors import InputError
from normscope.functional import batch_norm, moments
from normscope.lesson.threshold import best_thresholds
from normscope.moments import Moments
from normscope.records import ClassValues, Stage

LARGEST = 1e100  # its square is still far from the end of float64
SMALLEST_VAR = 1e-250  # below, float64 loses digits of the variance


@dataclass(frozen=True, eq=False)
class Example:
    """The numbers as a batch of one channel, and the moments that normalise it."""

    x: Tensor  # (N, 1) float64
    labels: Tensor  # (N,)
    num_classes: int
    eps: float
    own: Moments  # per class, (K, 1)
    pooled: Moments  # (1,)

    def per_class(
        self, gamma: Tensor | None = None, beta: Tensor | None = None, picked: Tensor | None = None
    ) -> Tensor:
        """Normalise by class: the value's own, or `picked`; gamma, beta (K, C) give (N, C)."""
        return batch_norm(
            *self._columns(self.own, gamma),
            gamma,
            beta,
            eps=self.eps,
            groups=self.labels if picked is None else picked,
            num_groups=self.num_classes,
        )

    def joint(self, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
        """Normalise all values alike; gamma, beta (C,) give (N, C)."""
        return batch_norm(*self._columns(self.pooled, gamma), gamma, beta, eps=self.eps)

    def stage(
        self,
        name: str,
        y: Tensor,
        gamma: Tensor | None = None,
        beta: Tensor | None = None,
        **facts: float,
    ) -> Stage:
        """Record one stage: y (N, 1) with the gamma and beta (K, 1) that made it."""
        rows = y.view(self.num_classes, -1)
        own = moments(y, self.labels, self.num_classes)
        var, pooled = own.var(correction=0), own.pool()
        total = pooled.m2.item()
        between = (own.count * (own.mean - pooled.mean)[:, 0] ** 2).sum().item()
        accuracy, thresholds = best_thresholds(rows.tolist())
        return Stage(
            name=name,
            classes=tuple(
                ClassValues(
                    values=tuple(rows[k].tolist()),
                    mean=own.mean[k].item(),
                    var=var[k].item(),
                    min=rows[k].min().item(),
                    max=rows[k].max().item(),
                    gamma=None if gamma is None else gamma[k].item(),
                    beta=None if beta is None else beta[k].item(),
                )
                for k in range(self.num_classes)
            ),
            threshold_accuracy=accuracy,
            thresholds=thresholds,
            eta2=between / total if total > 0 else 0.0,  # a constant has nothing to share
            facts=facts,
        )

    def _columns(self, stored: Moments, gamma: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        width = 1 if gamma is None else gamma.shape[-1]
        mean, var = stored.mean, stored.var(correction=0)
        x, mean, var = (t.expand(*t.shape[:-1], width).contiguous() for t in (self.x, mean, var))
        return x, mean, var


def read_example(classes: Sequence[Sequence[float]], eps: float) -> Example:
    """Check the user's numbers and measure them; raises InputError as `lesson` says."""
    if len(classes) < 2:
        raise InputError(f"at least 2 classes are needed to compare; {len(classes)} came")
    rows = [_numbers(f"class {k}", values) for k, values in enumerate(classes, 1)]
    for k, row in enumerate(rows, 1):
        if len(row) < 2:
            raise InputError(
                f"at least 2 values are needed for a variance; class {k} has {len(row)}"
            )
        if len(row) != len(rows[0]):
            raise InputError(
                f"class 1 has {len(rows[0])} values and class {k} has {len(row)}; "
                "give every class the same number of values"
            )
    if not (math.isfinite(eps) and eps >= 0):
        raise InputError(f"eps is {eps}; it must be a number of at least 0")
    x = torch.tensor(rows, dtype=torch.float64)
    labels = torch.arange(len(rows)).repeat_interleave(x.shape[1])
    own = moments(x.view(-1, 1), labels, len(rows))
    if eps == 0:
        for k, row in enumerate(rows, 1):
            if min(row) == max(row) or own.var(correction=0)[k - 1].item() < SMALLEST_VAR:
                raise InputError(
                    f"class {k} has a variance of zero ({row[0]:g} to {row[-1]:g}), which nothing "
                    "can standardise; give it values that differ, or an eps above 0"
                )
    return Example(x.view(-1, 1), labels, len(rows), eps, own, own.pool())


def read_affine(
    name: str, values: Sequence[float] | None, num_classes: int, fresh: float
) -> Tensor:
    """Return gamma or beta as (K, 1): one per class, or `fresh` where none are given."""
    numbers = [fresh] * num_classes if values is None else _numbers(name, values)
    if len(numbers) != num_classes:
        raise InputError(
            f"{name} has length {len(numbers)} for {num_classes} classes; give one number per class"
        )
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(1)


def _numbers(name: str, values: Sequence[float]) -> list[float]:
    numbers = []
    for value in values:
        try:
            number = float(value)
        except (TypeError, ValueError) as problem:
            raise InputError(f"{name} holds {value!r}, which is no number") from problem
        if not abs(number) <= LARGEST:
            raise InputError(
                f"{name} holds {number:g}; give finite numbers of at most {LARGEST:g} in size"
            )
        numbers.append(number)
    return numbers
