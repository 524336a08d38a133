"""The doctor's watch inside other people's training loops: Lightning and the Trainer."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from normscope.doctor.watch import Watch
from normscope.errors import MissingExtraError
from normscope.records import Finding, Severity

LIGHTNING = ("lightning.pytorch", "pytorch_lightning")
Tell = Callable[[Finding], object] | None


def lightning(on_finding: Tell = None, *, least: Severity = "warning") -> Any:
    """A callback for `Trainer(callbacks=[...])` of Lightning: the cheap checks each epoch.

    Its attribute `record` is the latest `Diagnosis`.

    Args:
        on_finding: as `Watch`.
        least: as `Watch`.

    Raises:
        MissingExtraError: neither lightning nor pytorch-lightning is installed.
    """

    class NormHealth(_lightning_base()):  # type: ignore[misc]
        """Asks the checks that need no data at the end of every training epoch."""

        record: Any = None

        def on_train_start(self, trainer: Any, module: Any) -> None:
            optimizer = next(iter(trainer.optimizers), None)
            self._watch = Watch(module, on_finding, least=least, optimizer=optimizer)

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.record = self._watch()

    return NormHealth()


def trainer(on_finding: Tell = None, *, least: Severity = "warning") -> Any:
    """A callback for `Trainer(callbacks=[...])` of Hugging Face transformers; as `lightning`.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    try:
        base: Any = import_module("transformers.trainer_callback").TrainerCallback
    except ImportError as problem:
        raise MissingExtraError(
            "this callback needs transformers: pip install 'normscope[transformers]'"
        ) from problem

    class NormHealth(base):  # type: ignore[misc]
        """Asks the checks that need no data at the end of every epoch."""

        record: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            optimizer = given.get("optimizer")
            self._watch = Watch(given["model"], on_finding, least=least, optimizer=optimizer)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.record = self._watch()

    return NormHealth()


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
