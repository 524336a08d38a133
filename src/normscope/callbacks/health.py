"""Health checks after every epoch inside Lightning and the Trainer of transformers."""

from collections.abc import Callable
from typing import Any

from normscope.callbacks.frameworks import callback_of_lightning, callback_of_transformers
from normscope.doctor.watch import Watch
from normscope.records import Finding, Severity

OnFinding = Callable[[Finding], object] | None


def lightning_health(on_finding: OnFinding = None, *, least: Severity = "warning") -> Any:
    """Make a callback for `Trainer(callbacks=[...])` of Lightning: the cheap checks each epoch.

    Its attribute `record` is the latest `Diagnosis`.

    Args:
        on_finding: as `doctor.Watch`.
        least: as `doctor.Watch`.

    Raises:
        MissingExtraError: neither lightning nor pytorch-lightning is installed.
    """

    class NormHealth(callback_of_lightning()):  # type: ignore[misc]
        """Runs the checks that need no data at the end of every training epoch."""

        record: Any = None

        def on_train_start(self, trainer: Any, module: Any) -> None:
            optimizer = next(iter(trainer.optimizers), None)
            self._watch = Watch(module, on_finding, least=least, optimizer=optimizer)

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.record = self._watch()

    return NormHealth()


def trainer_health(on_finding: OnFinding = None, *, least: Severity = "warning") -> Any:
    """Make a callback for `Trainer(callbacks=[...])` of transformers; as `lightning_health`.

    Raises:
        MissingExtraError: transformers is not installed.
    """

    class NormHealth(callback_of_transformers()):  # type: ignore[misc]
        """Runs the checks that need no data at the end of every epoch."""

        record: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            optimizer = given.get("optimizer")
            self._watch = Watch(given["model"], on_finding, least=least, optimizer=optimizer)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.record = self._watch()

    return NormHealth()
