"""Telemetry inside other people's training loops: Lightning and the Hugging Face Trainer."""

import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from normscope.batches import LABELS
from normscope.errors import MissingExtraError
from normscope.lens.watch import Sink, Watch, watch

LIGHTNING = ("lightning.pytorch", "pytorch_lightning")

Labels = Callable[[Any], Tensor | None]  # finds the labels in a batch


def labels_of(batch: Any) -> Tensor | None:
    """The labels of a batch: its second part, or what a dict holds under one of LABELS."""
    found = None
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        found = batch[1]
    elif hasattr(batch, "get"):
        found = next((batch.get(key) for key in LABELS if batch.get(key) is not None), None)
    if not isinstance(found, Tensor) or found.dim() != 1:
        return None
    return None if found.is_floating_point() or found.dtype == torch.bool else found


def lightning(*, every: int = 100, to: Iterable[Sink] = (), labels: Labels = labels_of) -> Any:
    """A callback for `Trainer(callbacks=[...])` of Lightning; see `watch`.

    Without `to`, values go to the trainer's loggers. Its attribute `watching` is the `Watch`.

    Args:
        every: as `watch`.
        to: as `watch`.
        labels: finds the labels in a batch.

    Raises:
        MissingExtraError: neither lightning nor pytorch-lightning is installed.
    """
    sinks = tuple(to)

    class NormWatch(_lightning_base()):  # type: ignore[misc]
        """Watches the normalisation layers of the module that is trained."""

        watching: Watch | None = None

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.watching = watch(module, every=every, to=sinks or [_loggers(trainer)])

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

    return NormWatch()


def trainer(*, every: int = 100, to: Iterable[Sink] = ()) -> Any:
    """A callback for `Trainer(callbacks=[...])` of Hugging Face transformers; see `watch`.

    A step there may hold several batches; the first is measured. The trainer does not hand its
    batches to callbacks, so there is no eta2. The attribute `watching` is the `Watch`.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    try:
        base: Any = import_module("transformers.trainer_callback").TrainerCallback
    except ImportError as problem:
        raise MissingExtraError(
            "this callback needs transformers: pip install 'normscope[transformers]'"
        ) from problem
    sinks = tuple(to)

    class NormWatch(base):  # type: ignore[misc]
        """Watches the normalisation layers of the model that is trained."""

        watching: Watch | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.watching = watch(given["model"], every=every, to=sinks)

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

    return NormWatch()


def _lightning_base() -> Any:
    """The Callback class of the package that is in use; both may be installed."""
    loaded = [name for name in LIGHTNING if name in sys.modules]
    for name in (*loaded, *LIGHTNING):
        try:
            return import_module(name).Callback
        except ImportError:
            continue
    raise MissingExtraError(
        "this callback needs Lightning: pip install 'normscope[lightning]' or lightning"
    )


def _loggers(trainer: Any) -> Sink:
    def write(step: int, values: dict[str, float]) -> None:
        named = {f"norms/{name}": value for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=step)

    return write
