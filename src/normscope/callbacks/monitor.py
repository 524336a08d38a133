"""Telemetry of the normalisation layers inside Lightning and the Trainer of transformers."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from normscope.callbacks.frameworks import callback_of_lightning, callback_of_transformers
from normscope.lens.monitor import Monitor, monitor
from normscope.probe.grammar import parts

Labels = Callable[[Any], Tensor | None]  # finds the labels in a batch


def labels_of(batch: Any) -> Tensor | None:
    """Return the classes of a batch's samples, found by `probe.grammar`; None where it has none."""
    found = None if isinstance(batch, (tuple, list)) and not batch else parts(0, batch)[1]
    if not isinstance(found, Tensor) or found.dim() != 1:
        return None
    return None if found.is_floating_point() or found.dtype == torch.bool else found


def lightning_monitor(
    *, every: int = 100, to: Iterable[Any] = (), labels: Labels = labels_of
) -> Any:
    """Make a callback for `Trainer(callbacks=[...])` of Lightning; see `lens.monitor`.

    Without `to`, values go to the trainer's loggers, whatever they are. Its attribute `watching`
    is the `Monitor`.

    Args:
        every: as `lens.monitor`.
        to: as `lens.monitor`.
        labels: finds the labels in a batch.

    Raises:
        MissingExtraError: neither lightning nor pytorch-lightning is installed.
    """
    targets = tuple(to)

    class NormMonitor(callback_of_lightning()):  # type: ignore[misc]
        """Measures the normalisation layers of the module that is trained."""

        watching: Monitor | None = None

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.watching = monitor(module, every=every, to=targets or trainer.loggers)

        def on_train_batch_start(
            self, trainer: Any, module: Any, batch: Any, batch_idx: int
        ) -> None:
            if self.watching is not None:
                self.watching.start(labels(batch))

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            if self.watching is not None:
                self.watching.gradients()

        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if self.watching is not None:
                self.watching.stop(trainer.global_step)

        def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
            if self.watching is not None:
                self.watching.release()

    return NormMonitor()


def trainer_monitor(*, every: int = 100, to: Iterable[Any] = ()) -> Any:
    """Make a callback for `Trainer(callbacks=[...])` of transformers; see `lens.monitor`.

    A step there may hold several batches; the first is measured. The trainer does not hand its
    batches to callbacks, so there is no eta2. The attribute `watching` is the `Monitor`.

    A trainer knows what it reports to, and a callback does not know its trainer. To write there::

        trainer.add_callback(lens.callbacks.trainer(to=[trainer]))

    Args:
        every: as `lens.monitor`.
        to: as `lens.monitor`; with the trainer itself among it, what its `report_to` names.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    targets = tuple(to)

    class NormMonitor(callback_of_transformers()):  # type: ignore[misc]
        """Measures the normalisation layers of the model that is trained."""

        watching: Monitor | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.watching = monitor(given["model"], every=every, to=targets)

        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if self.watching is not None:
                self.watching.start()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if self.watching is not None:
                self.watching.gradients()

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if self.watching is not None:
                self.watching.stop(state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if self.watching is not None:
                self.watching.release()

    return NormMonitor()
