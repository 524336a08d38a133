"""Callbacks for Lightning and the Hugging Face Trainer: telemetry, health checks, passports."""

import sys
import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normscope import equivalence
from normscope.doctor.watch import Watch
from normscope.errors import MissingExtraError
from normscope.lens.monitor import Monitor, Sink, monitor
from normscope.probe.grammar import parts
from normscope.probe.layers import has_statistics
from normscope.records import Finding, Mismatch, Severity

Labels = Callable[[Any], Tensor | None]  # finds the labels in a batch
OnFinding = Callable[[Finding], object] | None


def labels_of(batch: Any) -> Tensor | None:
    """Return the classes of a batch's samples, found by `probe.grammar`; None where it has none."""
    found = None if isinstance(batch, (tuple, list)) and not batch else parts(0, batch)[1]
    if not isinstance(found, Tensor) or found.dim() != 1:
        return None
    return None if found.is_floating_point() or found.dtype == torch.bool else found


def lightning_monitor(
    *, every: int = 100, to: Iterable[Sink] = (), labels: Labels = labels_of
) -> Any:
    """Make a callback for `Trainer(callbacks=[...])` of Lightning; see `lens.monitor`.

    Without `to`, values go to the trainer's loggers. Its attribute `watching` is the `Monitor`.

    Args:
        every: as `lens.monitor`.
        to: as `lens.monitor`.
        labels: finds the labels in a batch.

    Raises:
        MissingExtraError: neither lightning nor pytorch-lightning is installed.
    """
    sinks = tuple(to)

    class NormMonitor(_lightning_base()):  # type: ignore[misc]
        """Measures the normalisation layers of the module that is trained."""

        watching: Monitor | None = None

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.watching = monitor(module, every=every, to=sinks or [_loggers(trainer)])

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


def trainer_monitor(*, every: int = 100, to: Iterable[Sink] = ()) -> Any:
    """Make a callback for `Trainer(callbacks=[...])` of transformers; see `lens.monitor`.

    A step there may hold several batches; the first is measured. The trainer does not hand its
    batches to callbacks, so there is no eta2. The attribute `watching` is the `Monitor`.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    sinks = tuple(to)

    class NormMonitor(_trainer_base()):  # type: ignore[misc]
        """Measures the normalisation layers of the model that is trained."""

        watching: Monitor | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.watching = monitor(given["model"], every=every, to=sinks)

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


def lightning_health(on_finding: OnFinding = None, *, least: Severity = "warning") -> Any:
    """Make a callback for `Trainer(callbacks=[...])` of Lightning: the cheap checks each epoch.

    Its attribute `record` is the latest `Diagnosis`.

    Args:
        on_finding: as `doctor.Watch`.
        least: as `doctor.Watch`.

    Raises:
        MissingExtraError: neither lightning nor pytorch-lightning is installed.
    """

    class NormHealth(_lightning_base()):  # type: ignore[misc]
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

    class NormHealth(_trainer_base()):  # type: ignore[misc]
        """Runs the checks that need no data at the end of every epoch."""

        record: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            optimizer = given.get("optimizer")
            self._watch = Watch(given["model"], on_finding, least=least, optimizer=optimizer)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.record = self._watch()

    return NormHealth()


def lightning_passport(*, batches: int = 0) -> Any:
    """Make a callback for `Trainer(callbacks=[...])` of Lightning: a passport in every checkpoint.

    What it says is checked where a checkpoint is loaded again: a UserWarning names the first
    norm that is not so. `equivalence.passport_in(checkpoint)` reads it.

    Args:
        batches: of the training data, measured at every save; 0: none.

    Raises:
        MissingExtraError: neither lightning nor pytorch-lightning is installed.
    """

    class NormPassport(_lightning_base()):  # type: ignore[misc]
        """Writes the passport of the module's norms into its checkpoints."""

        def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
            if has_statistics(module):
                loader = trainer.train_dataloader if batches else None
                own = equivalence.passport(module, loader, batch_limit=batches or None)
                checkpoint[equivalence.KEY] = own.to_json()

        def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
            own = equivalence.passport_in(checkpoint)
            if own is not None:
                # the tensors are those of the file, the settings those of the module
                stored = equivalence.compare_to_passport(checkpoint.get("state_dict", {}), own)
                here = equivalence.compare_to_passport(module, own)
                _warn([*stored, *(m for m in here if m.code in ("eps", "momentum"))])

    return NormPassport()


def trainer_passport() -> Any:
    """Make a callback for the Trainer of transformers: a passport in every checkpoint.

    It goes into the metadata of model.safetensors, or beside pytorch_model.bin.

    Raises:
        MissingExtraError: transformers is not installed.
    """

    class NormPassport(_trainer_base()):  # type: ignore[misc]
        """Writes the passport of the model's norms into its checkpoints."""

        def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if not state.is_world_process_zero or not has_statistics(given["model"]):
                return
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            for name in ("model.safetensors", "pytorch_model.bin"):
                if (folder / name).is_file():
                    own = equivalence.passport(given["model"])
                    equivalence.write_passport(folder / name, own)
                    return

    return NormPassport()


def _warn(found: list[Mismatch]) -> None:
    """Say the first of what is not as the passport says."""
    if found:
        first = found[0]
        warnings.warn(
            f"norm {first.norm!r} is not what the checkpoint's passport says: {first.code} "
            f"{first.passport} is now {first.found or 'absent'} ({len(found)} such in all)",
            stacklevel=3,
        )


def _lightning_base() -> Any:
    """Return the Callback class of the package that is in use; both may be installed."""
    packages = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(packages, key=lambda name: name not in sys.modules):
        try:
            return import_module(name).Callback
        except ImportError:
            continue
    raise MissingExtraError(
        "this callback needs Lightning: pip install 'normscope[lightning]' or lightning"
    )


def _trainer_base() -> Any:
    try:
        return import_module("transformers.trainer_callback").TrainerCallback
    except ImportError as problem:
        raise MissingExtraError(
            "this callback needs transformers: pip install 'normscope[transformers]'"
        ) from problem


def _loggers(trainer: Any) -> Sink:
    def write(step: int, values: dict[str, float]) -> None:
        named = {f"norms/{name}": value for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=step)

    return write
