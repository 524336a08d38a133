"""Train and score one network: batches, steps, evaluation. Everything follows from the seed."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from normscope.experiment import ranks
from normscope.experiment.comparison import epochs_to_95
from normscope.experiment.data import Data
from normscope.experiment.nets import NORMS, ModelConfig
from normscope.layers import condition
from normscope.records import Counts, Epoch, Member

MOMENTUM = 0.9
EVALUATED_AT_ONCE = 1024  # samples
COUNTED = 20  # up to so many classes the record holds who was taken for whom


class Score(NamedTuple):
    """How a network does on the test part, in eval mode."""

    loss: float
    accuracy: float
    by_domain: dict[str, float]
    confusion: Tensor  # K x K, class by prediction


def steps_per_epoch(data: Data, norm: str, batch_size: int) -> int:
    """Count the batches that `Trainer.batches` gives."""
    parts = [len(data.train_x)]
    if NORMS[norm].separate and data.train_domain is not None:
        parts = data.train_domain.bincount(minlength=len(data.domains)).tolist()
    return sum(max(1, part // batch_size) for part in parts)


class Trainer:
    """Trains one network epoch by epoch.

    Stochastic gradient descent with momentum 0.9; the rate falls from `lr` to zero along half a
    cosine over all steps. No weight decay.

    Args:
        data: what to train on.
        config: the network.
        seed: decides the initial weights and the order of the samples.
        lr: learning rate of the first step.
        epochs: how many there will be.
        batch_size: samples per step; see `batches`.
    """

    def __init__(
        self, data: Data, config: ModelConfig, seed: int, *, lr: float, epochs: int, batch_size: int
    ) -> None:
        self.data, self.config, self.seed = data, config, seed
        self.lr, self.epochs, self.batch_size = lr, epochs, batch_size
        self.norm = NORMS[config.norm]
        self.model = config.build(seed)
        self.parallel = ranks.parallel(self.model, partly_used=self.norm.separate)
        learning = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(learning, lr=lr, momentum=MOMENTUM)
        self.step = 0
        self.steps = epochs * steps_per_epoch(data, config.norm, batch_size)
        self.curve: list[Epoch] = []
        self.seconds = 0.0

    def batches(self, epoch: int, size: int | None = None) -> list[Tensor]:
        """Draw the sample indices of each step of an epoch.

        All samples are used; the batches of a part are of nearly equal size, `size` or a little
        more, so that none is a leftover of one. The order is the same under every norm; where
        each domain has a network of its own, a batch holds one domain.
        """
        draw = np.random.default_rng((self.seed, epoch))
        order = torch.from_numpy(draw.permutation(len(self.data.train_x)))
        parts = [order]
        if self.norm.separate:
            assert self.data.train_domain is not None, "checked when the network was built"
            domain = self.data.train_domain[order]
            parts = [order[domain == d] for d in range(len(self.data.domains))]
        size = size or self.batch_size
        return [b for part in parts for b in part.tensor_split(max(1, len(part) // size))]

    def forward(self, rows: Tensor) -> Tensor:
        """Return the logits of training samples, with the condition that this norm needs."""
        ids = self.data.given("train", self.norm.given)
        with nullcontext() if ids is None else condition(ids[rows]):
            logits: Tensor = self.parallel(self.data.train_x[rows])
        return logits

    def train_epoch(self, epoch: int, after_step: Callable[[float], None]) -> float:
        """Train one epoch and return its mean loss; NaN as soon as a loss is not finite.

        Args:
            epoch: 1, 2, ...
            after_step: called with each batch's loss; gradients are still there.
        """
        self.model.train()
        total = 0.0
        for rows in self.batches(epoch):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * (1 + math.cos(math.pi * self.step / self.steps)) / 2
            self.optimizer.zero_grad()
            mine = ranks.share(rows)
            summed = cross_entropy(self.forward(mine), self.data.train_y[mine], reduction="sum")
            # shares may differ in size: the average over ranks is the mean over the batch
            loss = summed / (len(rows) / ranks.size())
            mean = ranks.average(loss.item())
            if not math.isfinite(mean):
                return math.nan
            loss.backward()
            self.optimizer.step()
            self.step += 1
            total += mean * len(rows)
            after_step(mean)
        return total / len(self.data.train_x)

    def next_epoch(self, after_step: Callable[[float], None]) -> Epoch | None:
        """Train, score and record the next epoch; None where a loss is not finite."""
        epoch, start = len(self.curve) + 1, time.perf_counter()
        loss = self.train_epoch(epoch, after_step)
        self.seconds += time.perf_counter() - start
        score = self.score()
        if not math.isfinite(loss + score.loss):
            return None
        self.curve.append(
            Epoch(epoch=epoch, train_loss=loss, test_loss=score.loss, test_accuracy=score.accuracy)
        )
        return self.curve[-1]

    @torch.no_grad()
    def score(self, *, with_condition: bool = True) -> Score:
        """Measure loss and accuracy on the test part, in eval mode; the mode is restored.

        Args:
            with_condition: hand the network what its norm is given; without it the layers do
                what they do when no condition is known.
        """
        was_training = self.model.training
        self.model.eval()
        data = self.data
        ids = data.given("test", self.norm.given) if with_condition else None
        logits = []
        for rows in torch.arange(len(data.test_x)).split(EVALUATED_AT_ONCE):
            with nullcontext() if ids is None else condition(ids[rows]):
                logits.append(self.model(data.test_x[rows]))
        self.model.train(was_training)
        outputs = torch.cat(logits)
        predicted, classes = outputs.argmax(1), len(data.classes)
        correct = (predicted == data.test_y).double()
        pairs = (data.test_y * classes + predicted).bincount(minlength=classes**2)
        return Score(
            loss=cross_entropy(outputs, data.test_y).item(),
            accuracy=correct.mean().item(),
            by_domain={
                name: correct[data.test_domain == d].mean().item()
                for d, name in enumerate(data.domains)
            },
            confusion=pairs.view(classes, classes),
        )

    def member(self, status: Literal["done", "diverged", "stopped"]) -> Member:
        """Return the record of the network as of its last whole epoch."""
        member = Member(
            norm=self.config.norm,
            seed=self.seed,
            status=status,
            accuracy=self.curve[-1].test_accuracy if status == "stopped" else math.nan,
            leaks=self.norm.leaks,
            parameters=sum(p.numel() for p in self.model.parameters()),
            learning=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            seconds=self.seconds,
            curve=tuple(self.curve),
        )
        if status != "done":
            return member
        score = self.score()
        if self.norm.leaks:
            blind = self.score(with_condition=False)
            member = replace(member, accuracy_without_label=blind.accuracy)
            if len(self.data.classes) <= COUNTED:
                member = replace(
                    member,
                    confusion=_counts(score.confusion),
                    confusion_without_label=_counts(blind.confusion),
                )
        return replace(
            member,
            accuracy=score.accuracy,
            accuracy_before=self.accuracy_before(),
            accuracy_by_domain=score.by_domain,
            epochs_to_95=epochs_to_95(self.curve),
        )

    def accuracy_before(self) -> float:
        """Measure the accuracy that the network had before its first step."""
        trained, self.model = self.model, self.config.build(self.seed)
        try:
            return self.score().accuracy
        finally:
            self.model = trained

    def state_dict(self) -> dict[str, Any]:
        """Return all that further training depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "curve": [asdict(epoch) for epoch in self.curve],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; raises where it is of another network."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, moved in self.optimizer.state.items():
            if (found := moved["momentum_buffer"].shape) != parameter.shape:
                raise ValueError(f"a momentum is {found} for a parameter {parameter.shape}")
        self.step, self.seconds = state["step"], state["seconds"]
        self.curve = [Epoch(**epoch) for epoch in state["curve"]]


def _counts(confusion: Tensor) -> Counts:
    return tuple(tuple(row) for row in confusion.tolist())
