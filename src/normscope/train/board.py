"""The same telemetry as TensorBoard events."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from normscope.errors import FileError, MissingExtraError
from normscope.files import shown
from normscope.records import Epoch


def check_installed() -> None:
    """Raise MissingExtraError unless the tensorboard package is there."""
    try:
        import tensorboard  # noqa: F401
    except ImportError as problem:
        raise MissingExtraError(
            "--tensorboard needs the tensorboard package: pip install 'normscope[tensorboard]'"
        ) from problem


class Board:
    """Events of one network: loss and accuracy per epoch, gamma and beta as histograms.

    Args:
        folder: of this network's events.
        step: events after this step are replaced when a run continues.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        with self._one_sentence():
            self._writer: Any = SummaryWriter(folder, purge_step=step + 1)

    def epoch(self, epoch: Epoch, step: int) -> None:
        """Points of the learning curves."""
        with self._one_sentence():
            losses = {"train": epoch.train_loss, "test": epoch.test_loss}
            for part, loss in losses.items():
                self._writer.add_scalar(f"loss/{part}", loss, step)
            self._writer.add_scalar("accuracy/test", epoch.test_accuracy, step)
            self._writer.flush()

    def layers(self, line: dict[str, Any]) -> None:
        """What a telemetry line holds."""
        with self._one_sentence():
            for layer, values in line["layers"].items():
                for key in ("gamma", "beta"):
                    known = [value for value in values[key] if value is not None]
                    if known:
                        self._writer.add_histogram(f"{key}/{layer}", np.array(known), line["step"])
                for key in ("gradient", "drift", "drift_after"):
                    if values[key] is not None:
                        self._writer.add_scalar(f"{key}/{layer}", values[key], line["step"])

    def close(self) -> None:
        """Write what is left."""
        with self._one_sentence():
            self._writer.close()

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise FileError(
                f"events cannot be written to {shown(self.folder)}: {problem.strerror}; "
                "make room or leave --tensorboard out"
            ) from problem
