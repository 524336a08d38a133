"""A passport in every checkpoint of Lightning and the Trainer of transformers."""

import warnings
from pathlib import Path
from typing import Any

from normscope import equivalence
from normscope.callbacks.frameworks import callback_of_lightning, callback_of_transformers
from normscope.probe.layers import has_statistics
from normscope.records import Mismatch


def lightning_passport(*, batches: int = 0) -> Any:
    """Make a callback for `Trainer(callbacks=[...])` of Lightning: a passport in every checkpoint.

    What it says is checked where a checkpoint is loaded again: a UserWarning names the first
    norm that is not so. `equivalence.passport_in(checkpoint)` reads it.

    Args:
        batches: of the training data, measured at every save; 0: none.

    Raises:
        MissingExtraError: neither lightning nor pytorch-lightning is installed.
    """

    class NormPassport(callback_of_lightning()):  # type: ignore[misc]
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

    class NormPassport(callback_of_transformers()):  # type: ignore[misc]
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
    """Warn of the first difference from the passport."""
    if found:
        first = found[0]
        warnings.warn(
            f"norm {first.norm!r} is not what the checkpoint's passport says: {first.code} "
            f"{first.passport} is now {first.found or 'absent'} ({len(found)} such in all)",
            stacklevel=3,
        )
