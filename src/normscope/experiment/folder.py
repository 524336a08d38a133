"""A run's folder: the paths of its parts, when they may be written, and when a run may continue."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from normscope.errors import FileError, InputError
from normscope.files import locked, read_text, shown, writable_folder, write_whole
from normscope.records import Run, RunConfig

# the record is first: a folder is cleared from the last on, and half cleared still known as a run's
PARTS = ("run.json", "telemetry.jsonl", "model.safetensors", "members", "progress", "tensorboard")


class RunFolder:
    """The files of one run.

        run.json            the record, rewritten after every network
        telemetry.jsonl     what the normalisation layers did, line by line
        model.safetensors   the network that stands for the run, of the first seed
        members/            every finished network, as NORM-SEED/model.safetensors
        progress/           the network in training, at its last epoch; its earlier epochs
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
        self.snapshots = root / "progress" / "epochs"

    def member(self, norm: str, seed: int) -> Path:
        """Return the file of a finished network's weights."""
        return self.root / "members" / f"{norm}-{seed}" / "model.safetensors"

    def events(self, norm: str, seed: int) -> Path:
        """Return the folder of a network's TensorBoard events."""
        return self.root / "tensorboard" / f"{norm}-{seed}"

    def drop_snapshots(self) -> None:
        """Remove the earlier epochs of the network that was in training."""
        shutil.rmtree(self.snapshots, ignore_errors=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make the folder if needed, and lock it against other processes that train in it.

        Raises:
            FileError: another process writes here, or nobody can.
        """
        if self.root.exists() and not self.root.is_dir():
            raise FileError(f"{shown(self.root)} is a file; name a folder for the run")
        with locked(writable_folder(self.root), "run"):
            yield

    def start(self, *, overwrite: bool) -> None:
        """Prepare the folder for a new run; an earlier run is removed only with `overwrite`.

        Raises:
            FileError: it holds a run, or files that are not a run's, or cannot be cleared.
        """
        name = shown(self.root)
        held = any(not path.name.startswith(".") for path in self.root.iterdir())
        if held and not self.record.exists():
            raise FileError(f"{name} holds files that are no run's; name a new or an empty folder")
        if held and not overwrite:
            raise FileError(
                f"{name} holds a run already; name another folder, or give --resume to continue "
                "it or --overwrite to replace it"
            )
        try:
            for path in (self.root / part for part in reversed(PARTS)):
                if path.is_dir():
                    shutil.rmtree(path)
                path.unlink(missing_ok=True)
        except OSError as problem:
            raise FileError(f"{name} cannot be cleared: {problem.strerror}") from problem

    def resume(self, config: RunConfig, data: str) -> Run:
        """Read the unfinished run, if `config` and the fingerprint of the data are the same.

        Raises:
            FileError: there is no run here.
            InputError: it was started with other options or other data.
        """
        run = self.read()
        before, now = asdict(run.config), asdict(config)
        different = [
            f"{name} was {_listed(before[name])} and is now {_listed(now[name])}"
            for name in now
            if before[name] != now[name]
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
        """Read the record; FileError where there is none, InputError where it is not whole."""
        return Run.from_json(read_text(self.record, "run record"))

    def write(self, run: Run) -> None:
        """Write the record whole."""
        write_whole(self.record, run.to_json())


def _listed(value: object) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
