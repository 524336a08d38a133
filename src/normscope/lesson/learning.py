"""gamma and beta of every class, learned by gradient descent from random starts."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from normscope.lesson.example import Example
from normscope.lesson.threshold import best_thresholds
from normscope.records import Learning

SPACING = 2.0  # between the class templates of the reader, in their own standard deviations
RATE = 0.1  # step size; the loss curves by at most about 1, so each step goes down
SHOWN_STEPS = 31  # how many of the steps are recorded


@dataclass(frozen=True, eq=False)
class Learned:
    """What gradient descent ended with, one column per start, and the reader of each start."""

    gamma: Tensor  # (K, S)
    beta: Tensor  # (K, S)
    templates: Tensor  # (S, K): where the reader of each start expects each class

    @property
    def first(self) -> tuple[Tensor, Tensor]:
        """Gamma and beta of the first start, (K, 1) each."""
        return self.gamma[:, :1], self.beta[:, :1]

    def answers(self, y: Tensor) -> Tensor:
        """The class that each start's reader sees in y (N, S): that of the nearest template."""
        return (y.unsqueeze(2) - self.templates).abs().argmin(2)


def learn(example: Example, seeds: int, steps: int) -> tuple[tuple[Learning, ...], Learned]:
    """Gradient descent on gamma and beta of every class from `seeds` random starts.

        p(k | y) = N(y; t_k, 1) / sum_j N(y; t_j, 1),    loss = mean_i -log p(label_i | y_i)

    The reader expects class k around its template t_k; which class gets which of the evenly
    spaced templates is drawn per start, as a network's head starts at random too. y is linear in
    gamma and beta and log p is concave in y, so the loss is convex: every start can get there.
    gamma starts uniform in [0.5, 1.5], beta normal(0, 1). The starts are channels of one batch.
    """
    k = example.num_classes
    draws = [np.random.default_rng(seed) for seed in range(seeds)]
    gamma = torch.tensor(np.stack([d.uniform(0.5, 1.5, k) for d in draws], 1))
    beta = torch.tensor(np.stack([d.normal(size=k) for d in draws], 1))
    order = torch.tensor(np.stack([d.permutation(k) for d in draws]))
    templates = SPACING * (order - (k - 1) / 2)
    labels = example.labels.unsqueeze(1).expand(-1, seeds)

    shown = np.unique(np.geomspace(1, steps + 1, SHOWN_STEPS).round().astype(int) - 1).tolist()
    seen = []
    for step in range(steps + 1):
        gamma.requires_grad_()
        beta.requires_grad_()
        y = example.per_class(gamma, beta)
        logits = y.unsqueeze(2) * templates - templates**2 / 2  # y**2 / 2 is in every class's
        loss = F.cross_entropy(logits.movedim(2, 1), labels, reduction="none").mean(0)
        if step in shown:
            seen.append((loss.detach(), y.detach(), gamma.detach(), beta.detach()))
        if step < steps:
            # times K: a class moves at a pace that does not depend on how many others there are
            slopes = torch.autograd.grad(loss.sum() * k, (gamma, beta))
            gamma, beta = (gamma - RATE * slopes[0]).detach(), (beta - RATE * slopes[1]).detach()

    learning = tuple(
        Learning(
            seed=seed,
            steps=tuple(shown),
            loss=tuple(loss[seed].item() for loss, *_ in seen),
            accuracy=tuple(
                best_thresholds(y[:, seed].view(k, -1).tolist())[0] for _, y, *_ in seen
            ),
            gamma=tuple(tuple(gamma[:, seed].tolist()) for *_, gamma, _ in seen),
            beta=tuple(tuple(beta[:, seed].tolist()) for *_, beta in seen),
        )
        for seed in range(seeds)
    )
    return learning, Learned(gamma.detach(), beta.detach(), templates)
