"""A run's folder: where each part lies, when it may be written, what it takes to continue."""

import shutil
from dataclasses import fields
from pathlib import Path

from normscope.errors import FileError, InputError
from normscope.files import read_text, shown, writable_folder, write_whole
from normscope.records import Run, RunConfig

PARTS = ("run.json", "telemetry.jsonl", "model.safetensors", "members", "progress", "tensorboard")


class RunFolder:
    """The files of one run.

        run.json            the record, rewritten after every network
        telemetry.jsonl     what the normalisation layers did, line by line
        model.safetensors   the network of the first norm and seed
        members/            every finished network, as NORM-SEED/model.safetensors
        progress/           the network in training, at its last epoch
        tensorboard/        events, where they were asked for

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.record = root / "run.json"
        self.telemetry = root / "telemetry.jsonl"
        self.model = root / "model.safetensors"
        self.checkpoint = root / "progress" / "state.pt"

    def member(self, norm: str, seed: int) -> Path:
        """The weights of a finished network."""
        return self.root / "members" / f"{norm}-{seed}" / "model.safetensors"

    def events(self, norm: str, seed: int) -> Path:
        """The folder of a network's TensorBoard events."""
        return self.root / "tensorboard" / f"{norm}-{seed}"

    def start(self, *, overwrite: bool) -> None:
        """Make the folder ready for a new run; an earlier run goes only with `overwrite`.

        Raises:
            FileError: it holds a run, or files that are not a run's, or cannot be written.
        """
        name = shown(self.root)
        if self.root.exists() and not self.root.is_dir():
            raise FileError(f"{name} is a file; name a folder for the run")
        writable_folder(self.root)
        held = [path for path in self.root.iterdir() if not path.name.startswith(".")]
        if held and not self.record.exists():
            raise FileError(f"{name} holds files that are no run's; name a new or an empty folder")
        if held and not overwrite:
            raise FileError(
                f"{name} holds a run already; name another folder, or give --resume to continue "
                "it or --overwrite to replace it"
            )
        try:
            # the record goes last: a folder that is half cleared is still known as a run's
            for part in reversed(PARTS):
                path = self.root / part
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        except OSError as problem:
            raise FileError(f"{name} cannot be cleared: {problem.strerror}") from problem

    def resume(self, config: RunConfig, data: str) -> Run:
        """The run so far.

        Args:
            config: what it is to be continued with.
            data: fingerprint of the data.

        Raises:
            FileError: there is no run here.
            InputError: it was started with other options or other data.
        """
        writable_folder(self.root)
        run = self.read()
        different = [
            f"{f.name} was {_listed(getattr(run.config, f.name))} and is now "
            f"{_listed(getattr(config, f.name))}"
            for f in fields(config)
            if getattr(run.config, f.name) != getattr(config, f.name)
        ]
        if different:
            raise InputError(
                f"the run in {shown(self.root)} cannot be continued with other options: "
                f"{'; '.join(different)}; give the same, or --overwrite"
            )
        if run.environment.get("data") != data:
            raise InputError(
                f"{config.data} is not what the run in {shown(self.root)} was started with; "
                "bring the old data back, or give --overwrite"
            )
        return run

    def read(self) -> Run:
        """The record; raises FileError where there is none, InputError where it is not whole."""
        return Run.from_json(read_text(self.record, "run record"))

    def write(self, run: Run) -> None:
        """Write the record whole."""
        write_whole(self.record, run.to_json())


def _listed(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return str(value)
