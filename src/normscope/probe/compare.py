"""Compare what a model returns in two states: outputs, predictions, losses."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from normscope.errors import InputError
from normscope.probe.grammar import Batch, one_class
from normscope.probe.load import reason

Metric = Callable[[Any, Any], Any]  # of an output and its batch, higher is better
Loss = Callable[[Any, Any], Any]  # likewise, lower is better; one number, or one per sample

SAMPLED = 4096  # values of a sample's output that are compared
WORST = 1e6  # stands for a difference that is not finite
SURE = 2.0  # standard errors
IGNORED = 255  # in masks with fewer classes, as negative labels are
NONE = torch.zeros(0)


@dataclass(frozen=True, eq=False)
class Answer:
    """A model's answer to one batch, in a form that can be compared.

    Attributes:
        values: (N, D) float64, SAMPLED values of each sample at most.
        features: likewise of the last norm layer, for outputs whose shape is not the same.
        losses: (N,) where labels fit the output, or as `loss` gave them; else empty.
        right: (N,) share of right predictions; empty where labels are no classes.
        choices: (N, M) predicted classes, likewise.
        predicted, truth: (K,) how often each class is predicted, and is right.
        targets: count, sum and sum of squares of labels that are values.
        metric: NaN where there is none.
    """

    values: Tensor
    features: Tensor = NONE
    losses: Tensor = NONE
    right: Tensor = NONE
    choices: Tensor = NONE
    predicted: Tensor = NONE
    truth: Tensor = NONE
    targets: Tensor = NONE
    metric: float = math.nan


class Goal(NamedTuple):
    """What good is, beside labels: a metric or a loss of an output and its batch."""

    metric: Metric | None = None
    loss: Loss | None = None

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return self.metric is not None or self.loss is not None

    def answer(self, output: Any, batch: Batch, features: Tensor | None = None) -> Answer:
        """Read an output: as scores of classes where labels or masks fit, else as values.

        Raises:
            InputError: metric or loss fails, or does not return a number.
        """
        found = [t.detach() for t in leaves(output)]
        floats = [t.double() for t in found if t.is_floating_point() and t.dim()]
        fitted: dict[str, Any] = {}
        subject = next((t for t in floats if len(t) == batch.size), None)
        if batch.labels is not None:
            fits = [
                (scores, of)
                for scores in floats
                if len(scores) == len(batch.labels) and (of := _fitted(scores, batch.labels))
            ]
            # features beside scores have more columns than there are classes
            if fits:
                subject, fitted = min(fits, key=lambda pair: len(pair[1].get("truth", ())))
        if subject is None:
            subject = next(iter(floats), next((t.double() for t in found), torch.zeros(1)))
        if self.loss is not None:
            fitted["losses"] = _called("loss", self.loss, output, batch).flatten()
        if self.metric is not None:
            fitted["metric"] = float(_called("metric", self.metric, output, batch).mean())
        return Answer(_sampled(subject), NONE if features is None else _sampled(features), **fitted)


def largest(values: Tensor) -> float:
    """Return the largest absolute value that is finite; 0 where there is none."""
    if not values.numel():
        return 0.0
    values = values.detach()
    found = max(-float(values.min()), float(values.max()))
    return found if math.isfinite(found) else largest(values[values.isfinite()])


def largest_gap(a: Tensor, b: Tensor, size: float | None = None) -> float:
    """Measure the largest absolute difference over `size`, by default the largest value of `a`.

    NaN equals NaN; a value beside a NaN is infinitely far, as is a tensor of another shape.
    """
    if a.shape != b.shape:
        return math.inf
    if not a.numel():
        return 0.0
    a, b = a.detach().double(), b.detach().double()
    alike = (a == b) | (a.isnan() & b.isnan())
    off = float(torch.where(alike, 0.0, (a - b).abs()).max())
    return math.inf if off != off else off / max(largest(a) if size is None else size, 1e-30)


def leaves(output: Any) -> Iterator[Tensor]:
    """Return every tensor in tuples, lists, mappings and plain objects, in their order."""
    if isinstance(output, Tensor):
        yield output
        return
    if isinstance(output, Mapping):
        output = output.values()
    elif not isinstance(output, (tuple, list)):
        output = getattr(output, "__dict__", {}).values()
    for part in output:
        yield from leaves(part)


@dataclass
class Quality:
    """How well one state of a model does, sample by sample."""

    losses: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)
    metrics: list[float] = field(default_factory=list)
    predicted: Tensor = NONE
    truth: Tensor = NONE
    targets: Tensor = NONE

    def add(self, of: Answer) -> None:
        """Score one batch."""
        if len(of.losses):
            self.losses.append(of.losses.cpu())
        if len(of.right):
            self.right.append(of.right.cpu())
        if not math.isnan(of.metric):
            self.metrics.append(of.metric)
        for name in ("predicted", "truth", "targets"):
            old, new = getattr(self, name), getattr(of, name).cpu().double()
            setattr(self, name, old + new if len(old) == len(new) else new)

    @property
    def accuracy(self) -> float:
        """Share of right predictions; NaN where labels are no classes."""
        return float(torch.cat(self.right).double().mean()) if self.right else math.nan

    @property
    def loss(self) -> float:
        """Mean loss; NaN where there is none."""
        return float(torch.cat(self.losses).double().mean()) if self.losses else math.nan

    @property
    def metric(self) -> float:
        """Mean over batches; NaN where there is none."""
        return sum(self.metrics) / len(self.metrics) if self.metrics else math.nan

    def beats_chance(self) -> bool:
        """Return whether labels are predicted better than by chance, beyond the standard error.

        Chance is what the same predictions reach on shuffled labels, or for values the mean. Where
        all labels are the same class of K, which may be a filler, it is half way from 1/K to 1.
        """
        if self.right:
            right = torch.cat(self.right).double()
            rates = (self.predicted / self.predicted.sum()) * (self.truth / self.truth.sum())
            one = int(self.truth.count_nonzero()) == 1
            chance = (1 + 1 / len(rates)) / 2 if one else float(rates.sum())
            spread = max(float(right.std()) if len(right) > 1 else 1.0, 0.05)
            return bool(right.mean() > chance + SURE * spread / len(right) ** 0.5)
        if len(self.targets) and self.losses:
            losses = torch.cat(self.losses).double()
            count, total, squares = self.targets.tolist()
            spread = squares / count - (total / count) ** 2
            error = float(losses.std()) / len(losses) ** 0.5 if len(losses) > 1 else spread
            return bool(losses.mean() + SURE * error < spread)
        return False


class Comparison:
    """Two states of a model on the same samples, batch by batch: `other` against `reference`.

    Attributes:
        reference, other: how well each does.
        samples: how many were compared.
        noise: relative difference of the same state from itself, taken out of `relative`.
        given: whether a loss or a metric says what good is; labels must beat chance to count.
    """

    def __init__(self, *, given: bool = False, noise: float = 0.0) -> None:
        self.reference, self.other = Quality(), Quality()
        self.samples, self.noise, self.given = 0, noise, given
        self._squares = self._spread = 0.0
        self._differ = self._chosen = 0

    @classmethod
    def of(
        cls,
        reference: Sequence[Answer],
        other: Sequence[Answer],
        *,
        given: bool = False,
        noise: float = 0.0,
    ) -> "Comparison":
        """Compare answers to the same batches."""
        compared = cls(given=given, noise=noise)
        for a, b in zip(reference, other, strict=True):
            compared.add(a, b)
        return compared

    def add(self, reference: Answer, other: Answer) -> None:
        """Compare one batch; where shapes differ, by the features of the last norm."""
        a, b = reference.values, other.values
        if a.shape != b.shape:
            a, b = reference.features, other.features
        if a.shape == b.shape and a.dim() == 2:
            known, finite = a.isfinite().all(1), b.isfinite().all(1)
            step = torch.where((known & finite).unsqueeze(1), b - a, 0)
            scale = float((a[known] - a[known].mean()).pow(2).mean(1).sum()) if known.any() else 0.0
            lost = int((known != finite).sum())
            self._squares += float(step.pow(2).mean(1).sum()) + lost * WORST * max(scale, 1e-12)
            self._spread += scale
            self.samples += len(a)
        self.reference.add(reference)
        self.other.add(other)
        if len(other.choices) and other.choices.shape == reference.choices.shape:
            self._differ += int((other.choices != reference.choices).sum())
            self._chosen += other.choices.numel()

    @property
    def known(self) -> bool:
        """Whether it can be said which state is better."""
        if self.given:
            return True
        return self.reference.beats_chance() or self.other.beats_chance()

    @property
    def relative(self) -> float:
        """Root of the mean squared difference over the spread of the reference."""
        ratio = self._squares / max(self._spread, 1e-12)
        return math.sqrt(max(ratio - self.noise**2, 0.0))

    @property
    def disagreement(self) -> float:
        """Share of samples that get another class; NaN where labels are no classes."""
        judged = self._chosen and self.known
        return self._differ / self._chosen if judged else math.nan

    @property
    def accuracies(self) -> tuple[float, float]:
        """Of the reference and of the other; NaN where labels do not count."""
        if not self.known:
            return math.nan, math.nan
        return self.reference.accuracy, self.other.accuracy

    @property
    def advantage(self) -> float:
        """By how many standard errors the other is better; NaN where that is not known."""
        if not self.known:
            return math.nan
        return advantage(self.reference, self.other)


def advantage(before: Quality, after: Quality) -> float:
    """Return the mean paired gain over its standard error: of the metric, else of what says most.

    With one number per batch, and one or two batches, a change by a hundredth counts as sure.
    """
    if after.metrics:
        gains = torch.tensor(after.metrics) - torch.tensor(before.metrics)
        return _z(gains, before.metric, whole=True)
    scores = []
    if after.losses:
        gains = torch.cat(before.losses).double() - torch.cat(after.losses).double()
        scores.append(_z(gains, before.loss, whole=all(len(v) == 1 for v in after.losses)))
    if after.right:
        scores.append(_z(torch.cat(after.right).double() - torch.cat(before.right).double(), 1.0))
    if not scores:
        return math.nan
    # accuracy is what people ask for; the loss speaks where accuracy does not
    return scores[-1] if abs(scores[-1]) > SURE else max(scores, key=abs)


def _z(gains: Tensor, scale: float, *, whole: bool = False) -> float:
    """Return the mean over its standard error; `whole`: each number is that of a batch."""
    mean, scale = float(gains.mean()), max(abs(scale), 1e-12)
    if whole and len(gains) < 3:
        return math.copysign(2 * SURE, mean) if abs(mean) > 0.01 * scale else 0.0
    error = float(gains.std()) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    return mean / max(error, 1e-4 * scale)


def _called(what: str, function: Callable[[Any, Any], Any], output: Any, batch: Batch) -> Tensor:
    try:
        value = torch.as_tensor(function(output, batch.given)).detach().double()
    except Exception as problem:
        raise InputError(
            f"{what}(output, batch) failed on batch {batch.index}: {reason(problem)}; it takes "
            "what the model returned and the batch as the loader gave it, and returns a number"
        ) from problem
    if not bool(value.isfinite().all()):
        return torch.full_like(value, -WORST if what == "metric" else WORST)
    return value


def _sampled(values: Tensor) -> Tensor:
    """Return (N, D) float64, evenly spaced values of each sample."""
    rows = values.detach().reshape(len(values) if values.dim() else 1, -1)
    return rows[:, :: max(1, -(-rows.shape[1] // SAMPLED))].double()


def _fitted(scores: Tensor, labels: Tensor) -> dict[str, Any] | None:
    """Return losses and predictions where labels are classes, masks, yes or no, or values."""
    return _classes(scores, labels) or _binary(scores, labels) or _values(scores, labels)


def _classes(scores: Tensor, labels: Tensor) -> dict[str, Any] | None:
    """Return classes over dimension 1, or the last, of scores; labels (N,), one-hot or a mask."""
    n = len(scores)
    whole = one_class(labels, n) if scores.dim() == 2 else None
    if whole is None:
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            return None
        whole = labels[:, 0] if labels.dim() > 2 and labels.shape[1] == 1 else labels
    if scores.dim() == whole.dim() + 1 and scores.shape[:-1] == whole.shape:
        scores = scores.movedim(-1, 1)
    elif scores.dim() < 2 or (n, *scores.shape[2:]) != tuple(whole.shape):
        return None
    classes = scores.shape[1]
    used = (whole >= 0) & ~((whole == IGNORED) & (classes <= IGNORED))
    if classes < 2 or not bool(used.any()) or int(whole[used].max()) >= classes:
        return None
    truth = torch.where(used, whole, 0).long()
    finite = scores.isfinite().all(1)
    losses = -scores.log_softmax(1).gather(1, truth.unsqueeze(1)).squeeze(1)
    choices = torch.where(finite, scores.argmax(1), -1)
    kept = used.reshape(n, -1).double()
    share = kept.sum(1).clamp(min=1)
    hits = (choices == truth).reshape(n, -1).double() * kept
    flat = choices.reshape(n, -1)
    some = kept.sum(1) > 0  # samples without any label say nothing
    return {
        "losses": ((_bounded(losses).reshape(n, -1) * kept).sum(1) / share)[some],
        "right": (hits.sum(1) / share)[some],
        "choices": flat[:, :: max(1, -(-flat.shape[1] // SAMPLED))],
        "predicted": torch.bincount(choices[used].clamp(min=0), minlength=classes),
        "truth": torch.bincount(truth[used], minlength=classes),
    }


def _binary(scores: Tensor, labels: Tensor) -> dict[str, Any] | None:
    """Return one score per yes or no: logits, or probabilities where all lie between 0 and 1."""
    n = len(scores)
    flat, wanted = scores.reshape(n, -1), labels.reshape(n, -1).double()
    if flat.shape != wanted.shape or not bool(((wanted == 0) | (wanted == 1)).all()):
        return None
    probable = bool(((flat >= 0) & (flat <= 1)).all())
    logits = torch.logit(flat, 1e-6) if probable else flat
    choices = torch.where(flat.isfinite(), (logits > 0).long(), -1)
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return {
        "losses": _bounded(losses).mean(1),
        "right": (choices == wanted).double().mean(1),
        "choices": choices[:, :: max(1, -(-choices.shape[1] // SAMPLED))],
        "predicted": torch.bincount(choices.flatten().clamp(min=0), minlength=2),
        "truth": torch.bincount(wanted.long().flatten(), minlength=2),
    }


def _values(scores: Tensor, labels: Tensor) -> dict[str, Any] | None:
    """Return squared errors of targets in the shape of the output."""
    n = len(scores)
    flat, wanted = scores.reshape(n, -1), labels.reshape(n, -1).double()
    if flat.shape != wanted.shape or labels.is_complex() or not bool(wanted.isfinite().all()):
        return None
    errors = (flat - wanted).pow(2)
    return {
        "losses": torch.where(errors.isfinite(), errors, WORST).mean(1),
        "targets": torch.stack([
            torch.tensor(float(wanted.numel()), dtype=torch.float64, device=wanted.device),
            wanted.sum(),
            wanted.pow(2).sum(),
        ]),
    }  # fmt: skip


def _bounded(losses: Tensor) -> Tensor:
    worst = math.log(WORST)
    return torch.where(losses.isfinite(), losses, worst).clamp(max=worst)
