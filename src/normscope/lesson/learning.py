"""Gamma and beta learned by gradient descent from random starts, in three ways."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from normscope.lesson.example import Example
from normscope.lesson.threshold import best_thresholds
from normscope.records import Learning, Recovery

SPACING = 2.0  # between the class templates of the reader, in their own standard deviations
RATE = 0.1
MOMENTUM = 0.9  # of the joint form, whose loss is flat where the gate is closed
SHOWN_STEPS = 31  # how many of the steps are recorded
WITHIN = 0.01  # relative difference up to which a mean or a standard deviation is back

# one start per column; the loss of each start, and how many values of each start are right
Loss = Callable[[list[Tensor]], Tensor]
Accuracy = Callable[[list[Tensor]], list[float]]


@dataclass(frozen=True, eq=False)
class Learned:
    """The result of gradient descent, one column per start."""

    recovery: Recovery
    gamma: Tensor  # (K, S), or (1, S) where one serves all classes
    beta: Tensor

    @property
    def first(self) -> tuple[Tensor, Tensor]:
        """Gamma and beta of the first start, one row each."""
        return self.gamma[:, :1], self.beta[:, :1]


@dataclass(frozen=True, eq=False)
class Readers(Learned):
    """Gamma and beta by class, and the reader of each start that they were learned for."""

    templates: Tensor  # (S, K): where the reader of each start expects each class

    def answers(self, y: Tensor) -> Tensor:
        """Return the class that each start's reader sees in y (N, S): of the nearest template."""
        return (y.unsqueeze(2) - self.templates).abs().argmin(2)


def towards_distribution(example: Example, seeds: int, steps: int) -> Learned:
    """Learn gamma and beta by class so that each class has the mean and deviation of the input.

        loss = mean_k W2(y_k, x_k)^2 = mean_k mean_i (y_k(i) - x_k(i))^2,    values in order

    The squared 2-Wasserstein distance of two lists of n values is the mean squared difference of
    the sorted lists. Its minimum over gamma and beta is the identity: gamma_k = sqrt(var_k + eps),
    beta_k = mu_k. With the gradient of each class scaled by K, a step leaves 1 - 2 RATE of the
    distance, whatever the unit of the values is.
    """
    k = example.num_classes
    gamma, beta, _ = _starts(k, seeds)
    target = example.x.view(k, -1, 1).sort(1).values

    def loss(parameters: list[Tensor]) -> Tensor:
        y = example.per_class(*parameters).view(k, -1, seeds)
        return (y.sort(1).values - target).square().mean((0, 1))

    start, accuracy = [gamma, beta], _threshold_accuracy(example)
    return _learned("distribution", start, loss, accuracy, steps, needs_labels=True, pace=k)


def for_classification(example: Example, seeds: int, steps: int) -> Readers:
    """Learn gamma and beta by class for a reader that tells the classes apart.

        p(k | y) = N(y; t_k, 1) / sum_j N(y; t_j, 1),    loss = mean_i -log p(label_i | y_i)

    The reader expects class k around its template t_k; which class gets which of the evenly
    spaced templates is drawn per start, as a network's head starts at random too. y is linear in
    gamma and beta and log p is concave in y, so the loss is convex: every start can get there.
    """
    k = example.num_classes
    gamma, beta, order = _starts(k, seeds)
    templates = SPACING * (order - (k - 1) / 2)
    labels = example.labels.unsqueeze(1).expand(-1, seeds)

    def loss(parameters: list[Tensor]) -> Tensor:
        y = example.per_class(*parameters)
        logits = y.unsqueeze(2) * templates - templates**2 / 2  # y**2 / 2 is in every class's
        return F.cross_entropy(logits.movedim(2, 1), labels, reduction="none").mean(0)

    # times K: a class moves at a pace that does not depend on how many others there are
    start, accuracy = [gamma, beta], _threshold_accuracy(example)
    learned = _learned("classification", start, loss, accuracy, steps, needs_labels=True, pace=k)
    expected = zip(learned.recovery.learning, templates.tolist(), strict=True)
    learning = tuple(replace(path, templates=tuple(own)) for path, own in expected)
    recovery = replace(learned.recovery, learning=learning)
    return Readers(recovery, learned.gamma, learned.beta, templates)


def jointly(example: Example, seeds: int, steps: int) -> Learned:
    """Learn one gamma and one beta for all classes, with a ReLU and a linear head behind.

        a = max(0, gamma z + beta),   p(k | a) = softmax_k(w_k a + c_k),   loss = mean_i -log p

    z is standardised over all values, so no label is needed to compute p; labels are in the loss
    alone, as in any training. The gate z = -beta / gamma starts between two values of the lower
    half, so that at least half of all values pass. The head starts at zero, so that every class is
    equally likely. Gradient descent has momentum here, because the loss has flat parts.
    """
    k, labels = example.num_classes, example.labels.unsqueeze(1).expand(-1, seeds)
    ordered = example.joint()[:, 0].sort().values
    draws = [np.random.default_rng(seed) for seed in range(seeds)]
    gamma = torch.tensor([[d.uniform(0.5, 1.5) for d in draws]], dtype=torch.float64)
    below = torch.tensor([int(d.integers(len(ordered) // 2)) for d in draws])
    gate = (ordered[below] + ordered[below + 1]) / 2
    head = torch.zeros(2 * k, seeds, dtype=torch.float64)

    def logits(parameters: list[Tensor]) -> Tensor:
        gamma, beta, head = parameters
        a = example.joint(gamma[0], beta[0]).relu()
        return a.unsqueeze(2) * head[:k].T + head[k:].T

    def loss(parameters: list[Tensor]) -> Tensor:
        rows = logits(parameters).movedim(2, 1)
        return F.cross_entropy(rows, labels, reduction="none").mean(0)

    def accuracy(parameters: list[Tensor]) -> list[float]:
        right = logits(parameters).argmax(2) == labels
        return list(right.double().mean(0).tolist())

    start = [gamma, -gamma * gate, head]
    return _learned("joint", start, loss, accuracy, steps, needs_labels=False, momentum=MOMENTUM)


def returned(example: Example, learned: Learned) -> Tensor:
    """Return whether each start (S,) recovered every class's mean and deviation within 1 %.

    The difference of a mean is relative to the mean or to the deviation, whichever is larger.
    """
    y = example.per_class(learned.gamma, learned.beta)
    y = y.view(example.num_classes, -1, learned.gamma.shape[1])
    x = example.x.view(example.num_classes, -1, 1)
    mean, deviation = x.mean(1), x.var(1, correction=0).sqrt()
    size = torch.maximum(mean.abs(), deviation)
    back = (y.mean(1) - mean).abs() <= WITHIN * size
    back &= (y.var(1, correction=0).sqrt() - deviation).abs() <= WITHIN * deviation
    return back.all(0)


def _starts(num_classes: int, seeds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw gamma in [0.5, 1.5], beta normal(0, 1), both (K, S), and an order of the classes."""
    draws = [np.random.default_rng(seed) for seed in range(seeds)]
    gamma = torch.tensor(np.stack([d.uniform(0.5, 1.5, num_classes) for d in draws], 1))
    beta = torch.tensor(np.stack([d.normal(size=num_classes) for d in draws], 1))
    order = torch.tensor(np.stack([d.permutation(num_classes) for d in draws]))
    return gamma, beta, order


def _learned(
    name: str,
    parameters: list[Tensor],
    loss_of: Loss,
    accuracy_of: Accuracy,
    steps: int,
    *,
    needs_labels: bool,
    momentum: float = 0.0,
    pace: float = 1.0,
) -> Learned:
    """Run gradient descent from all starts at once, as channels of one batch, and record it.

    The parameters are gamma, beta and, for some, the head; their columns are the starts.
    """
    recorded = np.unique(np.geomspace(1, steps + 1, SHOWN_STEPS).round().astype(int) - 1).tolist()
    seen: list[tuple[list[float], list[float], list[Tensor]]] = []  # loss, accuracy, parameters
    velocity = [torch.zeros_like(p) for p in parameters]
    for step in range(steps + 1):
        parameters = [p.detach().requires_grad_() for p in parameters]
        loss = loss_of(parameters)
        if step in recorded:
            now = [p.detach() for p in parameters]
            seen.append((loss.tolist(), accuracy_of(now), now))
        if step < steps:
            slopes = torch.autograd.grad(loss.sum() * pace, parameters)
            velocity = [momentum * v + s for v, s in zip(velocity, slopes, strict=True)]
            parameters = [
                (p - RATE * v).detach() for p, v in zip(parameters, velocity, strict=True)
            ]

    def path(place: int, seed: int) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(now[place][:, seed].tolist()) for *_, now in seen)

    gamma, beta, *head = seen[-1][2]
    learning = tuple(
        Learning(
            seed=seed,
            steps=tuple(recorded),
            loss=tuple(loss[seed] for loss, *_ in seen),
            accuracy=tuple(accuracy[seed] for _, accuracy, _ in seen),
            gamma=path(0, seed),
            beta=path(1, seed),
            head=path(2, seed) if head else (),
        )
        for seed in range(gamma.shape[1])
    )
    return Learned(Recovery(name=name, needs_labels=needs_labels, learning=learning), gamma, beta)


def _threshold_accuracy(example: Example) -> Accuracy:
    """Return the accuracy that the best thresholds reach on y, for each start."""

    def accuracy(parameters: list[Tensor]) -> list[float]:
        y = example.per_class(*parameters)
        rows = y.T.reshape(y.shape[1], example.num_classes, -1).tolist()
        return [best_thresholds(classes)[0] for classes in rows]

    return accuracy
