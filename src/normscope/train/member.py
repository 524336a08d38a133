"""One member of a run: a network trained to its last epoch, measured, and saved by epoch."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Literal

import torch

from normscope.errors import FileError
from normscope.files import shown
from normscope.lens import sinks
from normscope.records import Epoch, Member
from normscope.train import ranks
from normscope.train.checkpoint import Checkpoint, restore
from normscope.train.comparison import epochs_to_95
from normscope.train.folder import RunFolder
from normscope.train.loop import Trainer
from normscope.train.nets import norm_layers
from normscope.train.telemetry import Telemetry


class MemberRun:
    """Takes a network from its first weights, or from a checkpoint, to a record.

    Args:
        trainer: fresh, as its seed gives it.
        folder: where checkpoint, telemetry and events go.
        every: steps between two telemetry lines; None writes none.
        tensorboard: whether to write events.
        after_step: called after every step.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        *,
        every: int | None,
        tensorboard: bool,
        after_step: Callable[[], None],
    ) -> None:
        self.trainer = trainer
        self.norm, self.seed = trainer.config.norm, trainer.seed
        self.folder = folder
        self.every = every
        self.tensorboard = tensorboard
        self.after_step = after_step
        self.telemetry: Telemetry | None = None
        self.curve: list[Epoch] = []
        self.seconds = 0.0

    def run(self, begun: Checkpoint | None = None) -> Member:
        """Train the epochs that are left, from a checkpoint where one is given."""
        trainer = self.trainer
        if begun:
            restore(self.folder.checkpoint, begun, trainer.model, trainer.optimizer)
            trainer.step, self.seconds = begun.step, begun.seconds
            self.curve = [Epoch(**epoch) for epoch in begun.curve]
        with self._events() as writer:
            if self.every:
                layers = norm_layers(trainer.model)
                facts = {"norm": self.norm, "seed": self.seed}
                to = [sinks.jsonl(self.folder.telemetry, layers, **facts)]
                if writer:
                    to.append(sinks.tensorboard(writer, layers=layers))
                self.telemetry = Telemetry(trainer, *to)
                if begun:
                    self.telemetry.monitor.load_state_dict(begun.telemetry)
                else:
                    self.telemetry.record()
            if begun:
                torch.set_rng_state(begun.rng)
            for epoch in range(len(self.curve) + 1, trainer.epochs + 1):
                if not self._train_epoch(epoch, writer):
                    return self._member("diverged", math.nan)
        return self._finished()

    def so_far(self) -> Member | None:
        """Return the record as of the last whole epoch; None before the first."""
        return self._member("stopped", self.curve[-1].test_accuracy) if self.curve else None

    def _train_epoch(self, epoch: int, writer: Any) -> bool:
        """Train and save one epoch; False where a loss was not finite."""
        trainer = self.trainer
        start = time.perf_counter()
        loss = trainer.train_epoch(epoch, self._after_step)
        self.seconds += time.perf_counter() - start
        score = trainer.score()
        if not math.isfinite(loss + score.loss):
            return False
        point = Epoch(
            epoch=epoch, train_loss=loss, test_loss=score.loss, test_accuracy=score.accuracy
        )
        self.curve.append(point)
        if writer:
            writer.add_scalar("loss/train", loss, trainer.step)
            writer.add_scalar("loss/test", score.loss, trainer.step)
            writer.add_scalar("accuracy/test", score.accuracy, trainer.step)
            writer.flush()
        ranks.first(self._save)
        return True

    def _save(self) -> None:
        trainer, telemetry = self.trainer, self.telemetry
        Checkpoint(
            norm=self.norm,
            seed=self.seed,
            step=trainer.step,
            seconds=self.seconds,
            curve=[asdict(epoch) for epoch in self.curve],
            model=trainer.model.state_dict(),
            optimizer=trainer.optimizer.state_dict(),
            telemetry=telemetry.monitor.state_dict() if telemetry else {},
            rng=torch.get_rng_state(),
        ).save(self.folder.checkpoint)

    @contextmanager
    def _events(self) -> Iterator[Any]:
        """Open the TensorBoard events of this network, on rank 0 and where they are wanted."""
        if not self.tensorboard or ranks.rank() > 0:
            yield None
            return
        from torch.utils.tensorboard import SummaryWriter

        folder = self.folder.events(self.norm, self.seed)
        try:
            with SummaryWriter(folder, purge_step=self.trainer.step + 1) as writer:
                yield writer
        except OSError as problem:  # of the writer: all else that is written raises FileError
            raise FileError(
                f"events cannot be written to {shown(folder)}: {problem.strerror}; "
                "make room or leave --tensorboard out"
            ) from problem

    def _after_step(self, loss: float) -> None:
        if self.telemetry and self.every and self.trainer.step % self.every == 0:
            self.telemetry.record(loss)
        self.after_step()

    def _finished(self) -> Member:
        score = self.trainer.score()
        blind = None
        if self.trainer.norm.leaks:
            blind = self.trainer.score(with_condition=False).accuracy
        return replace(
            self._member("done", score.accuracy),
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
            leaks=self.trainer.norm.leaks,
            accuracy_without_label=None,
            accuracy_by_domain={},
            epochs_to_95=None,
            parameters=sum(p.numel() for p in self.trainer.model.parameters()),
            seconds=self.seconds,
            curve=tuple(self.curve),
        )
