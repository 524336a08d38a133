"""What inspect, diagnose and repair look at: a model, its data, and what good is."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from normscope.cli.app import tell
from normscope.cli.language import spoken
from normscope.errors import InputError
from normscope.files import shown
from normscope.progress import expected

if TYPE_CHECKING:
    from torch import nn

    from normscope.experiment.model_data import ModelData
    from normscope.probe.batches import Loader
    from normscope.records import Passport

Key = Annotated[
    str | None,
    typer.Option(help="The state dict to take where a checkpoint holds several, as g_ema."),
]
FUNCTION = "path/file.py:function"
JUDGING = "What is good"
ALONE = "A checkpoint without its model"
DATA = (
    "The data: digits, iris, wine, breast_cancer, a .npz, .csv or .parquet file, a folder of "
    "class folders of images, or path/file.py:function that returns data."
)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The options of commands that run a model on data."""

    PANEL: ClassVar = "Model and data"

    model: Annotated[
        str | None,
        typer.Option(
            help="The model: path/file.py:function that makes it, pkg.module:function, timm:NAME, "
            "or the folder of a run."
        ),
    ] = None
    weights: Annotated[
        Path | None, typer.Option(help="Its checkpoint: safetensors, or a weights-only file.")
    ] = None
    key: Key = None
    data: Annotated[str | None, typer.Option(help=DATA)] = None
    loader: Annotated[
        str | None,
        typer.Option(
            help="Instead of --data: path/file.py:function that returns a DataLoader, or a list of "
            "batches."
        ),
    ] = None
    labels: Annotated[
        str | None,
        typer.Option(
            show_default="found by itself",
            help=f"Where the labels are in a batch: a key, a position, or {FUNCTION}.",
        ),
    ] = None
    forward: Annotated[
        str | None,
        typer.Option(
            show_default="found by itself",
            help=f"How a batch is run, forward(model, batch): {FUNCTION}.",
        ),
    ] = None
    batches: Annotated[
        int | None, typer.Option(min=1, show_default="all", help="Read so many batches at most.")
    ] = None

    @property
    def has_data(self) -> bool:
        """Whether there are data: named here, or those of a run."""
        return bool(self.data or self.loader or (self.model and Path(self.model).is_dir()))

    def check(self) -> None:
        """Refuse options that would have no effect, in one sentence."""
        if self.data and self.loader:
            raise InputError("--data and --loader both name data; give one of them")
        if self.model is None:
            self.needs(
                "--model", "name the model", "data", "loader", "labels", "batches", "forward"
            )
        if not self.has_data:
            self.needs("--data or --loader", "name data", "labels", "batches")

    def needs(self, option: str, advice: str, *names: str) -> None:
        """Refuse those of these options that were given, for want of another."""
        for name in names:
            if getattr(self, name) is not None:
                raise InputError(
                    f"--{name} has no effect without {option}; {advice} or leave it out"
                )

    def loaded(
        self, batch_size: int, test_size: int | None = None
    ) -> "tuple[nn.Module, str, ModelData | None]":
        """Return the model, its name, and the data."""
        from normscope.experiment.model_data import TEST_SIZE, data_for_model, data_for_run

        assert self.model is not None, "checked before"
        test_size, spec = test_size or TEST_SIZE, self.loader or self.data
        if self.loader:
            checked_spec("--loader", self.loader)
        if Path(self.model).is_dir():
            if self.weights is not None or self.key is not None:
                raise InputError("a run folder has its own weights; leave --weights and --key out")
            return data_for_run(Path(self.model), spec, batch_size, test_size)
        from normscope.probe.load import load_model

        network = load_model(self.model, self.weights, self.key).eval()
        self._hold_against_passport(network)
        factory, sizes = bool(self.loader), (batch_size, test_size)
        data = None if spec is None else data_for_model(spec, *sizes, factory=factory)
        return network, self.model, data

    def passport(self) -> "Passport | None":
        """Read what the weights say of themselves, where they say it."""
        if self.weights is None:
            return None
        from normscope.equivalence import read_passport

        return read_passport(self.weights)

    def _hold_against_passport(self, network: "nn.Module") -> None:
        """Say on stderr where a loaded model is not what the passport of its weights says."""
        own = self.passport()
        if own is None:
            return
        from normscope.equivalence import compare_to_passport

        found = compare_to_passport(network, own)
        if found:
            count, first = len({m.norm for m in found}), found[0]
            values = {key: getattr(first, key) for key in ("norm", "code", "passport", "found")}
            tell(spoken(), "passport.loaded", count=count, **values)

    def expected(self, data: "ModelData | None") -> int | None:
        """Return the number of batches that will be read, where it is known."""
        return None if data is None else expected(data.train, self.batches)

    def reading(self) -> dict[str, Any]:
        """Return how batches are read, by the names of the library."""
        labels: Any = self.labels
        if labels and ":" in labels:
            labels = named("--labels", labels)
        elif labels and labels.isdecimal():
            labels = int(labels)
        forward = named("--forward", self.forward)
        return {"forward": forward, "labels": labels, "batch_limit": self.batches}

    def reader(self, network: "nn.Module") -> "partial[Loader]":
        """Make what reads batches for this model, all in the same way."""
        from normscope.probe.batches import Loader

        how = self.reading()
        limit = how.pop("batch_limit")
        return partial(Loader, model=network, limit=limit, **how)


@dataclass(frozen=True, kw_only=True)
class Checkup(Inputs):
    """Those of diagnose and repair beside."""

    live: Annotated[
        str | None,
        typer.Option(help="Data as they come in use, to compare with; named as for --data."),
    ] = None
    metric: Annotated[
        str | None,
        typer.Option(
            help=f"Judge by metric(output, batch), higher is better: {FUNCTION}.",
            rich_help_panel=JUDGING,
        ),
    ] = None
    loss: Annotated[
        str | None,
        typer.Option(
            help=f"Judge by loss(output, batch), lower is better: {FUNCTION}.",
            rich_help_panel=JUDGING,
        ),
    ] = None
    reference: Annotated[
        str | None,
        typer.Option(
            help="The model that this one averages or copies (EMA, target): "
            "path/file.py:function that makes it, or its weights in --model.",
            rich_help_panel=JUDGING,
        ),
    ] = None
    batch_size: Annotated[
        int,
        typer.Option(min=1, help="Samples per batch of --data; the same as in training is best."),
    ] = 64
    momentum: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            show_default="0.1",
            help="Momentum that the norm layers have in training.",
            rich_help_panel=ALONE,
        ),
    ] = None
    eps: Annotated[
        float | None,
        typer.Option(
            min=0, show_default="1e-5", help="eps that the norm layers have.", rich_help_panel=ALONE
        ),
    ] = None

    def check(self) -> None:
        """Add `look`, and the options of checkpoints that do not stand beside a model."""
        super().check()
        if self.model is None and self.weights is None:
            raise InputError("name a model (--model), or a checkpoint alone (--weights)")
        if self.model is None:
            self.needs("--model", "name the model", "live", "reference", "metric", "loss")
        else:
            for name in ("momentum", "eps"):
                if getattr(self, name) is not None:
                    raise InputError(f"--{name} is for a checkpoint alone; a model has its own")
        if not self.has_data and not self.live:
            self.needs("--data or --loader", "name data", "forward", "metric", "loss")

    def of_training(self) -> dict[str, float]:
        """Return what a checkpoint does not say, where it was given."""
        given = {"momentum": self.momentum, "eps": self.eps}
        return {name: value for name, value in given.items() if value is not None}

    def arguments(self, network: "nn.Module | None", data: "ModelData | None") -> dict[str, Any]:
        """Return what diagnose and repair of the library share, by their names there.

        Batches are read by one reader, so that an iterator serves both.
        """
        given: dict[str, Any] = {
            "metric": named("--metric", self.metric),
            "loss": named("--loss", self.loss),
        }
        if network is None:
            return given | self.of_training()
        from normscope.probe.load import load_model

        if self.reference is not None:
            weights = Path(self.reference)
            of_file = self.model and weights.is_file() and not Path(self.model).is_dir()
            spec = (self.model, weights) if of_file else (self.reference,)
            given["reference"] = load_model(*spec).eval()
        reader = self.reader(network)
        if data is not None:
            given["batches"] = reader(data.train)
        if self.live is not None:
            given["live"] = reader(self._in_use(self.live))
        return given

    def _in_use(self, live: str) -> Iterable[Any]:
        """Return the test part of --live, or all that a loader gives."""
        from normscope.experiment.model_data import data_for_model, data_for_run

        sizes = (self.batch_size, self.batch_size)
        if self.model and Path(self.model).is_dir():
            *_, data = data_for_run(Path(self.model), live, *sizes)
        else:
            data = data_for_model(live, *sizes)
        return data.batches


def checked_spec(option: str, spec: str) -> tuple[str, str]:
    """Split path/file.py:name into the file or package and the name."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise InputError(f"{option} is {shown(spec)}; write path/file.py:name")
    return place, name


def named(option: str, spec: str | None) -> Any:
    """Return the function that an option names, as it is."""
    if spec is None:
        return None
    from normscope.probe.load import made

    value = made(*checked_spec(option, spec), finished=object)
    if not callable(value):
        raise InputError(
            f"{option}: {shown(spec)} is of type {type(value).__name__}; a function is needed"
        )
    return value
