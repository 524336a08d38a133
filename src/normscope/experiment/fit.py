"""Train the same network under several normalisations, record what they do, compare them."""

import hashlib
import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from normscope.environment import threads, versions
from normscope.errors import InputError, MissingExtraError, shown
from normscope.experiment import checkpoint, comparison, history, ranks, telemetry
from normscope.experiment.data import IN_MEMORY, Data, Source, load
from normscope.experiment.folder import RunFolder
from normscope.experiment.loop import Trainer, steps_per_epoch
from normscope.experiment.nets import NORMS, ModelConfig, check_names, norm_layers, standing_for
from normscope.lens import sinks
from normscope.progress import Progress
from normscope.records import Run, RunConfig, Sweep

__all__ = ["SWEEP", "Progress", "load_member", "load_run", "train"]

SWEEP = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # learning rates
SWEEP_EPOCHS = 5  # of each rate's short training, or more where that is fewer steps than
SWEEP_STEPS = 60


def train(
    config: RunConfig,
    out: Path,
    *,
    data: Source | None = None,
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
        data: samples in the place of those that `config` names, see `data.load`.
        resume: continue the run in `out`.
        overwrite: replace the run in `out`.
        tensorboard: write events as well.
        on_progress: called after every step.

    Returns:
        The record as it is in run.json, without an inspection.

    Raises:
        InputError: a config, norm or data that cannot be trained; other options on resume; ranks
            that cannot meet, or a norm that keeps its statistics within one process.
        FileError: a folder or file that cannot be read or written; nothing is half-written.
        MissingExtraError: a package for the data or for events is not installed.
    """
    folder = RunFolder(out)
    with threads(1), ranks.world(), ExitStack() as held:
        with ranks.together():
            loaded = _checked(config, data, tensorboard=tensorboard)
        facts = versions() | {"ranks": str(ranks.size()), "data": _fingerprint(loaded)}
        ranks.check_same((config, resume, tensorboard, facts["data"]), "options or data")
        ranks.first(lambda: held.enter_context(folder.writing()))
        if resume:
            earlier = ranks.first(lambda: folder.resume(config, facts["data"]))
            if earlier.complete:
                return earlier
        else:
            ranks.first(lambda: folder.start(overwrite=overwrite))
            earlier = Run(
                config=config,
                complete=False,
                classes=loaded.classes,
                train_size=len(loaded.train_x),
                test_size=len(loaded.test_x),
                environment=facts,
            )
        return RunSession(folder, earlier, loaded, on_progress, tensorboard).run()


def load_member(out: str | Path, norm: str, seed: int) -> nn.Module:
    """Load a finished network of the run in `out`, in eval mode; raises FileError without one.

    >>> import tempfile
    >>> import normscope
    >>> out = tempfile.mkdtemp()
    >>> options = dict(norms=["batch", "none"], epochs=1, seeds=1, sweep=(), progress=False)
    >>> _ = normscope.train("iris", out=out, **options)
    >>> normscope.experiment.load_member(out, "none", seed=0).training
    False
    """
    return checkpoint.load_model(RunFolder(Path(out)).member(norm, seed))


def load_run(out: str | Path, data: Source | None = None) -> tuple[Run, nn.Module, Data]:
    """Load the run in `out`: its record, its representative network in eval mode, its data.

    Args:
        out: the folder that `train` was given.
        data: the samples, where they were handed to `train` in memory.

    Raises:
        FileError, InputError: it is not whole, or its data were handed over and are not given.

    >>> import tempfile
    >>> import normscope
    >>> out = tempfile.mkdtemp()
    >>> _ = normscope.train("iris", norms=["batch"], epochs=1, seeds=1, sweep=(), out=out)
    >>> run, model, data = normscope.experiment.load_run(out)
    >>> model(data.test_x).shape[1] == len(run.classes)
    True
    """
    folder = RunFolder(Path(out))
    run = folder.read()
    model = checkpoint.load_model(folder.model)
    config = run.config
    if data is None and config.data == IN_MEMORY:
        raise InputError(
            f"the run in {shown(folder.root)} was trained on data in memory, which it does not "
            "keep; give the data again"
        )
    source = config.data if data is None else data
    return run, model, load(source, seed=config.seed, domains=config.domains)


@dataclass(eq=False)
class RunSession:
    """A run in progress: its finished networks, and the network in training."""

    folder: RunFolder
    earlier: Run
    data: Data
    on_progress: Progress | None
    tensorboard: bool
    trainer: Trainer | None = None
    steps_done: int = 0

    def __post_init__(self) -> None:
        self.config, self.sweeps = self.earlier.config, self.earlier.sweeps
        self.histories = {h.norm: h for h in self.earlier.histories}
        self.done = {(m.norm, m.seed): m for m in self.earlier.members if m.status != "stopped"}
        begun = ranks.first(lambda: checkpoint.load_checkpoint(self.folder.checkpoint))
        self.begun = None if begun and (begun["norm"], begun["seed"]) in self.done else begun
        self.jobs = self._jobs()

    def run(self) -> Run:
        """Train what is missing; the record is written before and after."""
        ranks.first(lambda: telemetry.keep_lines(self.folder.telemetry, self._is_settled))
        self._write()
        try:
            for (norm, seed), steps in self.jobs.items():
                end = self.steps_done + steps
                if seed is None:
                    self._sweep(norm)
                elif (norm, seed) not in self.done:
                    self._train(norm, seed)
                self.steps_done = end
        except KeyboardInterrupt:
            return self._write()
        run = self._write(complete=True)
        ranks.first(lambda: self.folder.checkpoint.unlink(missing_ok=True))
        return run

    def _jobs(self) -> dict[tuple[str, int | None], int]:
        """Count the steps of each training (norm, seed) and each sweep (norm, None), in order."""
        config = self.config
        steps = max(1, len(self.data.train_x) // config.batch_size)
        self.short = min(config.epochs, max(SWEEP_EPOCHS, math.ceil(SWEEP_STEPS / steps)))
        epochs: dict[tuple[str, int | None], int] = {
            (norm, config.seed + i): config.epochs
            for norm in config.norms
            for i in range(config.seeds)
        }
        if config.sweep:
            epochs |= {(norm, None): self.short * len(config.sweep) for norm in config.norms}
        each = {n: steps_per_epoch(self.data, n, config.batch_size) for n in config.norms}
        return {(norm, seed): count * each[norm] for (norm, seed), count in epochs.items()}

    def _new_trainer(self, norm: str, seed: int, lr: float, epochs: int) -> Trainer:
        model = _model(self.config, norm, self.data)
        size = self.config.batch_size
        return Trainer(self.data, model, seed, lr=lr, epochs=epochs, batch_size=size)

    def _train(self, norm: str, seed: int) -> None:
        """Train a network to its last epoch, from its checkpoint where there is one."""
        config, folder, begun = self.config, self.folder, self.begun
        snapshots = history.Snapshots(folder.snapshots)
        with ExitStack() as stack:
            trainer = self.trainer = self._new_trainer(norm, seed, config.lr, config.epochs)
            layers = norm_layers(trainer.model)
            to = [sinks.jsonl(folder.telemetry, layers, norm=norm, seed=seed)]
            recorder = telemetry.Telemetry(trainer, to)
            parts = {"trainer": trainer, "telemetry": recorder.monitor}
            if begun and (begun["norm"], begun["seed"]) == (norm, seed):
                checkpoint.restore(folder.checkpoint, begun, **parts)
                self.steps_done += trainer.step
            writer = None
            if self.tensorboard and ranks.rank() == 0:
                events = telemetry.events(folder.events(norm, seed), trainer.step)
                writer = stack.enter_context(events)
                to.append(sinks.tensorboard(writer, layers=layers))

            def record(loss: float | None) -> None:
                if seed == config.seed and trainer.step % config.every == 0:
                    recorder.record(loss)

            def after_step(loss: float) -> None:
                record(loss)
                self._stepped(f"{norm}, seed {seed}")

            kept = history.frames(config.epochs) if self._is_followed(norm, seed) else set()

            def save() -> None:  # the epoch first: a checkpoint's epochs are all there
                if len(trainer.curve) in kept:
                    snapshots.save(len(trainer.curve), trainer.model)
                if trainer.curve:
                    checkpoint.save_checkpoint(folder.checkpoint, norm, seed, **parts)

            if not trainer.curve:
                ranks.first(folder.drop_snapshots)
                ranks.first(save)
                record(None)
            while len(trainer.curve) < config.epochs and (epoch := trainer.next_epoch(after_step)):
                if writer:
                    writer.add_scalar("loss/train", epoch.train_loss, trainer.step)
                    writer.add_scalar("loss/test", epoch.test_loss, trainer.step)
                    writer.add_scalar("accuracy/test", epoch.test_accuracy, trainer.step)
                    writer.flush()
                ranks.first(save)
            finished = len(trainer.curve) == config.epochs
            member = trainer.member("done" if finished else "diverged")

        def save_weights() -> None:
            paths = [folder.member(norm, seed)]
            if (norm, seed) == (standing_for(config.norms), config.seed):
                paths.append(folder.model)
            for path in paths:
                checkpoint.save_model(path, trainer.model, trainer.config)

        ranks.first(save_weights)
        if kept and finished:
            reached = {e.epoch: e.test_accuracy for e in trainer.curve if e.epoch in kept}
            reached[0] = member.accuracy_before
            followed = (trainer.config, seed, self.data, reached)
            self.histories[norm] = ranks.first(lambda: snapshots.history(*followed))
        self.done[norm, seed] = member
        self._write()
        ranks.first(folder.drop_snapshots)

    def _is_followed(self, norm: str, seed: int) -> bool:
        """Return whether a channel of this network is recorded through its training."""
        able = [n for n in self.config.norms if n in history.FOLLOWED]
        return seed == self.config.seed and norm in {
            *able[:1],
            *(n for n in able if NORMS[n].affine_only),
        }

    def _sweep(self, norm: str) -> None:
        """Measure test accuracy of the first seed's network after short trainings over a grid.

        NaN where the loss became infinite.
        """
        if any(s.norm == norm for s in self.sweeps):
            return
        begin, rates, accuracy = self.steps_done, tuple(sorted(self.config.sweep)), []
        for done, lr in enumerate(rates, start=1):
            trainer = self._new_trainer(norm, self.config.seed, lr, self.short)
            losses = (
                trainer.train_epoch(e, lambda _: self._stepped(f"{norm}, learning rates"))
                for e in range(1, self.short + 1)
            )
            diverged = any(map(math.isnan, losses))  # no epoch is trained after it
            accuracy.append(math.nan if diverged else trainer.score().accuracy)
            self.steps_done = begin + self.jobs[norm, None] * done // len(rates)
        found = Sweep(norm=norm, lr=rates, accuracy=tuple(accuracy), lowest=None, highest=None)
        self.sweeps = comparison.judged((*self.sweeps, found))
        self._write()

    def _write(self, *, complete: bool = False) -> Run:
        def write() -> Run:
            members, trainer = list(self.done.values()), self.trainer
            running = trainer and (trainer.config.norm, trainer.seed) not in self.done
            if trainer and trainer.curve and running:
                members.append(trainer.member("stopped"))
            run = replace(
                self.earlier,
                complete=complete,
                members=tuple(members),
                rows=comparison.rows(self.config.norms, members, self.sweeps),
                traces=telemetry.traces(self.folder.telemetry),
                sweeps=self.sweeps,
                histories=tuple(self.histories.values()),
            )
            self.folder.write(run)
            return run

        return ranks.first(write)

    def _stepped(self, message: str) -> None:
        self.steps_done += 1
        if self.on_progress:
            self.on_progress(self.steps_done, sum(self.jobs.values()), message)

    def _is_settled(self, line: telemetry.Line) -> bool:
        """Return whether a telemetry line is final."""
        place, begun = (line["norm"], line["seed"]), self.begun
        if begun and (begun["norm"], begun["seed"]) == place:
            return bool(line["step"] <= begun["trainer"]["step"])
        return place in self.done


def _checked(config: RunConfig, data: Source | None, *, tensorboard: bool) -> Data:
    """Check all arguments that need no folder, then load the data."""
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
    if config.freeze_head and not any(NORMS[norm].affine_only for norm in config.norms):
        raise InputError(
            "freeze_head is for affine_only, which is not among the norms "
            f"{', '.join(config.norms)}; add it, as in --norm batch,affine_only --freeze-head"
        )
    if tensorboard:
        try:
            import tensorboard as _  # noqa: F401
        except ImportError as problem:
            raise MissingExtraError(
                "--tensorboard needs the tensorboard package: pip install 'normscope[tensorboard]'"
            ) from problem
    source = config.data if data is None else data
    loaded = load(source, seed=config.seed, domains=config.domains, every_class=True)
    for norm in config.norms:
        model = _model(config, norm, loaded)
        if ranks.size() > 1:
            ranks.check_synchronises(model.build(config.seed))
    return loaded


def _model(config: RunConfig, norm: str, data: Data) -> ModelConfig:
    return ModelConfig.of(config.net, norm, data, freeze_head=config.freeze_head)


def _fingerprint(data: Data) -> str:
    """Return a short hash of the samples, their order and their split."""
    digest = hashlib.sha256()
    for tensor in (data.train_x, data.train_y, data.test_x, data.test_y):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]
