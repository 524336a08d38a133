"""One member of a run: a network trained to its last epoch, watched, and kept epoch by epoch."""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Literal

import torch

from normscope.records import Epoch, Member
from normscope.train import ranks
from normscope.train.board import Board
from normscope.train.checkpoint import Checkpoint, optimizer_tensors, restore
from normscope.train.comparison import epochs_to_95
from normscope.train.folder import RunFolder
from normscope.train.loop import Network
from normscope.train.telemetry import Recorder


class Training:
    """A network's way from its first weights, or from a checkpoint, to a record.

    Args:
        network: fresh, as its seed gives it.
        folder: where checkpoint, telemetry and events go.
        every: steps between two telemetry lines; None writes none.
        tensorboard: whether to write events.
        after_step: called after every step.
    """

    def __init__(
        self,
        network: Network,
        folder: RunFolder,
        *,
        every: int | None,
        tensorboard: bool,
        after_step: Callable[[], None],
    ) -> None:
        self.network = network
        self.norm, self.seed = network.design.norm, network.seed
        self.folder = folder
        self.every = every
        self.tensorboard = tensorboard
        self.after_step = after_step
        self.recorder = None if every is None else Recorder(network, folder.telemetry)
        self.board: Board | None = None
        self.curve: list[Epoch] = []
        self.seconds = 0.0

    def resume(self, begun: Checkpoint) -> None:
        """Take over weights, optimiser, random state and telemetry of a checkpoint."""
        restore(self.folder.checkpoint, begun, self.network.model, self.network.optimizer)
        self.network.step = begun.step
        self.curve, self.seconds = list(begun.curve), begun.seconds
        if self.recorder:
            self.recorder.load_state(begun.telemetry)
        torch.set_rng_state(begun.rng)

    def run(self) -> Member:
        """Train the epochs that are left."""
        with ExitStack() as stack:
            if self.tensorboard and ranks.rank() == 0:
                events = self.folder.events(self.norm, self.seed)
                self.board = Board(events, self.network.step)
                stack.callback(self.board.close)
            if not self.curve:
                self._record(None)
            for epoch in range(len(self.curve) + 1, self.network.epochs + 1):
                if not self._finishes(epoch):
                    return self._member("diverged", math.nan)
        return self._finished()

    def so_far(self) -> Member | None:
        """The record as of the last whole epoch; None before the first."""
        return self._member("stopped", self.curve[-1].test_accuracy) if self.curve else None

    def _finishes(self, epoch: int) -> bool:
        """Train and keep one epoch; False where a loss was not finite."""
        network = self.network
        start = time.perf_counter()
        loss = network.train_epoch(epoch, self._after_step)
        self.seconds += time.perf_counter() - start
        score = network.score()
        if not math.isfinite(loss + score.loss):
            return False
        point = Epoch(
            epoch=epoch, train_loss=loss, test_loss=score.loss, test_accuracy=score.accuracy
        )
        self.curve.append(point)
        if self.board:
            self.board.epoch(point, network.step)
        checkpoint = Checkpoint(
            norm=self.norm,
            seed=self.seed,
            step=network.step,
            seconds=self.seconds,
            curve=tuple(self.curve),
            model=network.model.state_dict(),
            optimizer=optimizer_tensors(network.optimizer),
            telemetry=self.recorder.state() if self.recorder else {},
            rng=torch.get_rng_state(),
        )
        ranks.first(lambda: checkpoint.save(self.folder.checkpoint))
        return True

    def _after_step(self, loss: float) -> None:
        if self.every and self.network.step % self.every == 0:
            self._record(loss)
        self.after_step()

    def _record(self, loss: float | None) -> None:
        if self.recorder:
            line = self.recorder.record(loss)
            if self.board:
                self.board.layers(line)

    def _finished(self) -> Member:
        score = self.network.score()
        member = self._member("done", score.accuracy)
        blind = None
        if self.network.norm.leaks:
            blind = self.network.score(with_condition=False).accuracy
        return replace(
            member,
            accuracy_without_label=blind,
            accuracy_by_domain=score.by_domain,
            epochs_to_95=epochs_to_95(self.curve),
        )

    def _member(self, status: Literal["done", "diverged", "stopped"], accuracy: float) -> Member:
        return Member(
            norm=self.norm,
            seed=self.seed,
            status=status,
            accuracy=accuracy,
            leaks=self.network.norm.leaks,
            accuracy_without_label=None,
            accuracy_by_domain={},
            epochs_to_95=None,
            parameters=self.network.parameters,
            seconds=self.seconds,
            curve=tuple(self.curve),
        )
