"""Averaged weights with statistics of their own, inside Lightning."""

import copy
from collections.abc import Iterable
from contextlib import ExitStack
from glob import escape
from typing import Any

import torch

from normscope import probe
from normscope.callbacks.frameworks import callback_of_lightning, lightning
from normscope.doctor.recalibrate import Recalibration, recalibrate
from normscope.errors import InputError
from normscope.probe.batches import Forward
from normscope.probe.grammar import Labels


def lightning_averages(
    *,
    batches: int = 200,
    loader: Iterable[Any] | None = None,
    forward: Forward | None = None,
    labels: Labels | None = None,
) -> Any:
    """Make a callback for `Trainer(callbacks=[...])` of Lightning: right statistics for averages.

    Averaged weights make other activations than those whose statistics were collected while
    training, and averaging the statistics too does not give theirs. This callback stands behind
    `WeightAveraging`, `EMAWeightAveraging` or `StochasticWeightAveraging`::

        Trainer(callbacks=[EMAWeightAveraging(decay=0.99), doctor.callbacks.averages()])

    Before each validation of averaged weights, and when training ends with them, the statistics
    are measured on batches of the training data, see `doctor.recalibrate`. The averaged model
    keeps them, so that a checkpoint holds what was validated; the model in training gets back its
    own, bit for bit. Norms that were in eval() while training stay as they are.

    Args:
        batches: so many at most, each time.
        loader: gives them; None: the trainer's own.
        forward: as `doctor.recalibrate`; None: what the module's forward takes is found.
        labels: as `doctor.recalibrate`.

    Returns:
        The callback. Its attribute `last` is the latest `Recalibration`.

    Raises:
        MissingExtraError: neither lightning nor pytorch-lightning is installed.
    """

    class NormAverages(callback_of_lightning()):  # type: ignore[misc]
        """Measures the statistics of averaged weights before they are validated."""

        last: Recalibration | None = None

        def setup(self, trainer: Any, module: Any, stage: str) -> None:
            before = trainer.callbacks[: trainer.callbacks.index(self)]
            self._swaps = any(isinstance(c, _class("WeightAveraging")) for c in before)
            if not self._swaps and not any(
                isinstance(c, _class("StochasticWeightAveraging")) for c in before
            ):
                raise InputError(
                    "no callback that averages weights stands before this one; give the trainer "
                    "callbacks=[EMAWeightAveraging(), normscope.doctor.callbacks.averages()]"
                )
            self._names: tuple[str, ...] = ()

        def on_train_batch_start(
            self, trainer: Any, module: Any, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 0:  # a norm in eval() now was frozen by someone
                norms = (n for n in probe.find_norms(module) if n.skipped is None)
                self._names = tuple(escape(n.name) for n in norms if n.module.training)

        def on_validation_epoch_start(self, trainer: Any, module: Any) -> None:
            if self._swaps and trainer.state.fn == "fit" and not trainer.sanity_checking:
                self._recalibrate(trainer, module)

        def on_train_end(self, trainer: Any, module: Any) -> None:
            self._recalibrate(trainer, module)

        def _recalibrate(self, trainer: Any, module: Any) -> None:
            if not self._names:
                return
            with ExitStack() as stack:
                stack.enter_context(torch.inference_mode(mode=False))
                stack.enter_context(trainer.precision_plugin.forward_context())
                self.last = recalibrate(
                    module,
                    _own(trainer.train_dataloader) if loader is None else loader,
                    only=self._names,
                    forward=forward,
                    labels=labels,
                    batch_limit=batches,
                    process_group="world" if trainer.world_size > 1 else None,
                    progress=False,
                )

    return NormAverages()


def _class(name: str) -> Any:
    """Return a callback class of Lightning, or () where this version has none."""
    return getattr(lightning().callbacks, name, ())


def _own(loader: Any) -> Any:
    """Return the loader with an iterator of its own.

    Workers that persist are one iterator for all readers, which validation inside an epoch would
    take from the training.
    """
    own = copy.copy(loader)
    if getattr(own, "_iterator", None) is not None:
        own._iterator = None
    return own
