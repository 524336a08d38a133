"""Train the same network under several normalisations, record what they do, compare them."""

import hashlib
import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from normscope import __version__
from normscope.errors import InputError, MissingExtraError
from normscope.records import Run, RunConfig
from normscope.train import ranks, telemetry
from normscope.train.checkpoint import Checkpoint, load_model, save_model
from normscope.train.comparison import rows
from normscope.train.data import Data, load
from normscope.train.folder import RunFolder
from normscope.train.loop import Trainer, steps_per_epoch
from normscope.train.member import MemberRun
from normscope.train.nets import ModelConfig, check_names
from normscope.train.sweep import RATES as SWEEP
from normscope.train.sweep import judged, short_epochs, sweep

__all__ = ["SWEEP", "Progress", "environment", "load_member", "load_run", "train"]

Progress = Callable[[int, int, str], None]  # steps done, steps in all, what is being trained


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
    on_progress: Progress | None = None,
) -> Run:
    """Train every norm with every seed, then find the learning rates that train each norm.

    Networks of one seed start from the same weights and see the samples in the same order. All
    numbers but the seconds follow from `config`, whether or not the run was interrupted.

    Ctrl-C ends the run early: what is finished is in the record, which then is not `complete`,
    and `resume` continues from the last epoch. A loss that is not finite ends that network only;
    its status is "diverged".

    Under torchrun, or in a process group, every rank makes the same call: each batch is shared
    out, layers normalise over all ranks, and rank 0 alone uses `out`. The numbers are those of
    one process to rounding, and the same record is returned on every rank.

    Args:
        config: what to train, on what, for how long.
        out: the run's folder, see `RunFolder`.
        resume: continue the run in `out`.
        overwrite: replace the run in `out`.
        tensorboard: write events as well.
        on_progress: called after every step with the steps done, the steps in all, and what is
            being trained.

    Returns:
        The record as it is in run.json, without an inspection.

    Raises:
        InputError: a config, norm or data that cannot be trained; other options on resume; ranks
            that cannot meet, or a norm that keeps its statistics within one process.
        FileError: a folder or file that cannot be read or written; nothing is half-written.
        MissingExtraError: a package for the data or for events is not installed.
    """
    folder = RunFolder(out)
    with _one_thread(), ranks.world():
        with ranks.together():
            data = _checked(config, tensorboard=tensorboard)
        facts = environment() | {"data": _fingerprint(data)}
        ranks.check_same((config, resume, tensorboard, facts["data"]), "options or data")
        if resume:
            earlier = ranks.first(lambda: folder.resume(config, facts["data"]))
            if earlier.complete:
                return earlier
        else:
            ranks.first(lambda: folder.start(overwrite=overwrite))
            earlier = Run(
                config=config,
                complete=False,
                classes=data.classes,
                train_size=len(data.train_x),
                test_size=len(data.test_x),
                environment=facts,
                rows=(),
                members=(),
                traces=(),
                sweeps=(),
                inspection=None,
            )
        return RunSession(folder, earlier, data, on_progress, tensorboard=tensorboard).run()


def load_member(out: Path, norm: str, seed: int) -> nn.Module:
    """Load a finished network of the run in `out`, in eval mode; raises FileError without one."""
    return load_model(RunFolder(out).member(norm, seed))


def load_run(out: Path) -> tuple[Run, nn.Module, Data]:
    """Load the run in `out`: its record, the network of its first norm and seed, its data."""
    folder = RunFolder(out)
    run = folder.read()
    model = load_model(folder.model)
    return run, model, load(run.config.data, seed=run.config.seed, domains=run.config.domains)


def environment() -> dict[str, str]:
    """Return versions and settings that decide speed and the last digits."""
    return {
        "normscope": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
        "ranks": str(ranks.size()),
    }


class RunSession:
    """A run while it runs: what is finished, and the network in training."""

    def __init__(
        self,
        folder: RunFolder,
        earlier: Run,
        data: Data,
        on_progress: Progress | None,
        *,
        tensorboard: bool,
    ) -> None:
        self.folder, self.earlier, self.config, self.data = folder, earlier, earlier.config, data
        self.on_progress = on_progress
        self.tensorboard = tensorboard
        self.members = [member for member in earlier.members if member.status != "stopped"]
        self.sweeps = earlier.sweeps
        self.checkpoint = ranks.first(self._unfinished)
        self.training: MemberRun | None = None
        self.jobs = self._jobs()
        self.steps_done = 0

    def run(self) -> Run:
        """Do what is left; the record is in the folder before and after."""
        ranks.first(lambda: telemetry.keep_lines(self.folder.telemetry, self._is_settled))
        self._write()
        try:
            for (norm, seed), steps in self.jobs.items():
                begin = self.steps_done
                if seed is None:
                    self._sweep(norm)
                elif not self._is_finished(norm, seed):
                    self._train(norm, seed)
                self.steps_done = begin + steps
        except KeyboardInterrupt:
            return self._write()
        run = self._write(complete=True)
        ranks.first(lambda: self.folder.checkpoint.unlink(missing_ok=True))
        return run

    def _jobs(self) -> dict[tuple[str, int | None], int]:
        """Count the steps of each training (norm, seed) and each sweep (norm, None), in order."""
        config = self.config
        each = {n: steps_per_epoch(self.data, n, config.batch_size) for n in config.norms}
        jobs: dict[tuple[str, int | None], int] = {
            (norm, seed): config.epochs * each[norm]
            for norm in config.norms
            for seed in range(config.seed, config.seed + config.seeds)
        }
        tries = short_epochs(config, self.data) * len(config.sweep)
        return jobs | {(norm, None): tries * each[norm] for norm in config.norms if tries}

    def _train(self, norm: str, seed: int) -> None:
        config, begun = self.config, self.checkpoint
        if begun and (begun.norm, begun.seed) != (norm, seed):
            begun = None
        model = ModelConfig.of(config.net, norm, self.data)
        sizes = {"epochs": config.epochs, "batch_size": config.batch_size}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trainer = Trainer(self.data, model, seed, lr=config.lr, **sizes)
            self.training = MemberRun(
                trainer,
                self.folder,
                every=config.every if seed == config.seed else None,
                tensorboard=self.tensorboard,
                after_step=lambda: self._stepped(f"{norm}, seed {seed}"),
            )
            self.steps_done += begun.step if begun else 0
            member = self.training.run(begun)

        def save() -> None:
            save_model(self.folder.member(norm, seed), trainer.model, model)
            if (norm, seed) == (config.norms[0], config.seed):
                save_model(self.folder.model, trainer.model, model)

        ranks.first(save)
        self.members.append(member)
        self._write()

    def _sweep(self, norm: str) -> None:
        if any(s.norm == norm for s in self.sweeps):
            return
        begin, rates = self.steps_done, len(self.config.sweep)

        def after_rate(done: int) -> None:
            self.steps_done = begin + self.jobs[norm, None] * done // rates

        message = f"{norm}, learning rates"
        found = sweep(self.config, self.data, norm, lambda: self._stepped(message), after_rate)
        self.sweeps = judged((*self.sweeps, found))
        self._write()

    def _write(self, *, complete: bool = False) -> Run:
        def write() -> Run:
            members = list(self.members)
            stopped = self.training.so_far() if self.training else None
            if stopped and not self._is_finished(stopped.norm, stopped.seed):
                members.append(stopped)
            run = replace(
                self.earlier,
                complete=complete,
                members=tuple(members),
                rows=rows(self.config.norms, members, self.sweeps),
                traces=telemetry.traces(self.folder.telemetry),
                sweeps=self.sweeps,
            )
            self.folder.write(run)
            return run

        return ranks.first(write)

    def _stepped(self, message: str) -> None:
        self.steps_done += 1
        if self.on_progress:
            self.on_progress(self.steps_done, sum(self.jobs.values()), message)

    def _unfinished(self) -> Checkpoint | None:
        """Load the network that an interrupted run was training."""
        if not self.folder.checkpoint.exists():
            return None
        found = Checkpoint.load(self.folder.checkpoint)
        return None if self._is_finished(found.norm, found.seed) else found

    def _is_finished(self, norm: str, seed: int) -> bool:
        return any((m.norm, m.seed) == (norm, seed) for m in self.members)

    def _is_settled(self, line: telemetry.Line) -> bool:
        """Tell whether a telemetry line will not be written again."""
        norm, seed, begun = line["norm"], line["seed"], self.checkpoint
        if begun and (begun.norm, begun.seed) == (norm, seed):
            return bool(line["step"] <= begun.step)
        return self._is_finished(norm, seed)


def _checked(config: RunConfig, *, tensorboard: bool) -> Data:
    """Load the data, after all checks that need no folder."""
    least = {"epochs": 1, "batch_size": 2, "seed": 0, "seeds": 1, "every": 1}
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise InputError(f"{name} is {getattr(config, name)}; it must be at least {bound}")
    for lr in (config.lr, *config.sweep):
        if not 0 < lr < math.inf:
            raise InputError(f"a learning rate is {lr}; it must be a number above 0")
    if not config.norms or len(set(config.norms)) != len(config.norms):
        raise InputError(
            f"the norms are {', '.join(config.norms) or 'none'}; name one or more, each once"
        )
    for norm in config.norms:  # before the data are read, which takes longer
        check_names(config.net, norm)
    if tensorboard:
        try:
            import tensorboard as _  # noqa: F401
        except ImportError as problem:
            raise MissingExtraError(
                "--tensorboard needs the tensorboard package: pip install 'normscope[tensorboard]'"
            ) from problem
    data = load(config.data, seed=config.seed, domains=config.domains, every_class=True)
    for norm in config.norms:
        model = ModelConfig.of(config.net, norm, data)
        if ranks.size() > 1:
            ranks.check_synchronises(model.build(config.seed))
    return data


def _fingerprint(data: Data) -> str:
    """Return a few signs that differ where the samples, their order or their split differ."""
    digest = hashlib.sha256()
    for tensor in (data.train_x, data.train_y, data.test_x, data.test_y):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: the same numbers on any machine, and no small step that waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
