"""Options of inspect, diagnose and repair: the model, its data, and how results are judged."""

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
JUDGING = "What is good"
ALONE = "A checkpoint without its model"
DATA = (
    "The data: digits, iris, wine, breast_cancer, a .npz, .csv or .parquet file, a folder of "
    "class folders of images, or path/file.py:function that returns data."
)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The options of commands that run a model on data.

    Attributes:
        model: The model: path/file.py:function that makes it, pkg.module:function,
            timm:NAME, or the folder of a run.
        weights: Its checkpoint: safetensors, or a weights-only file.
        loader: Instead of --data: path/file.py:function that returns a DataLoader, or a
            list of batches.
        labels: Where the labels are in a batch: a key, a position, or
            path/file.py:function.
        forward: How a batch is run, forward(model, batch): path/file.py:function.
        batches: Read so many batches at most.
    """

    PANEL: ClassVar = "Model and data"

    model: str | None = None
    weights: Path | None = None
    key: Key = None
    data: Annotated[str | None, typer.Option(help=DATA)] = None
    loader: str | None = None
    labels: Annotated[str | None, typer.Option(show_default="found by itself")] = None
    forward: Annotated[str | None, typer.Option(show_default="found by itself")] = None
    batches: Annotated[int | None, typer.Option(min=1, show_default="all")] = None

    @property
    def has_data(self) -> bool:
        """Return whether data are named here, or come with a run."""
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
        """Refuse these options where another one, which they need, is missing."""
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
        """Read the passport of the weights; None where they have none."""
        if self.weights is None:
            return None
        from normscope.equivalence import read_passport

        return read_passport(self.weights)

    def _hold_against_passport(self, network: "nn.Module") -> None:
        """Report on stderr where a loaded model differs from the passport of its weights."""
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
        """Return the settings for reading batches, as keyword arguments of the library."""
        labels: Any = self.labels
        if labels and ":" in labels:
            labels = named("--labels", labels)
        elif labels and labels.isdecimal():
            labels = int(labels)
        forward = named("--forward", self.forward)
        return {"forward": forward, "labels": labels, "batch_limit": self.batches}

    def reader(self, network: "nn.Module") -> "partial[Loader]":
        """Return a `Loader` for this model with these settings, still without batches."""
        from normscope.probe.batches import Loader

        how = self.reading()
        limit = how.pop("batch_limit")
        return partial(Loader, model=network, limit=limit, **how)


@dataclass(frozen=True, kw_only=True)
class Checkup(Inputs):
    """The further options of diagnose and repair.

    Attributes:
        live: Data as they come in use, to compare with; named as for --data.
        metric: Judge by metric(output, batch), higher is better: path/file.py:function.
        loss: Judge by loss(output, batch), lower is better: path/file.py:function.
        reference: The model that this one averages or copies (EMA, target):
            path/file.py:function that makes it, or its weights in --model.
        batch_size: Samples per batch of --data; the same as in training is best.
        momentum: Momentum that the norm layers have in training.
        eps: eps that the norm layers have.
    """

    live: str | None = None
    metric: Annotated[str | None, typer.Option(rich_help_panel=JUDGING)] = None
    loss: Annotated[str | None, typer.Option(rich_help_panel=JUDGING)] = None
    reference: Annotated[str | None, typer.Option(rich_help_panel=JUDGING)] = None
    batch_size: Annotated[int, typer.Option(min=1)] = 64
    momentum: Annotated[
        float | None, typer.Option(min=0, max=1, show_default="0.1", rich_help_panel=ALONE)
    ] = None
    eps: Annotated[
        float | None, typer.Option(min=0, show_default="1e-5", rich_help_panel=ALONE)
    ] = None

    def check(self) -> None:
        """Refuse further options that would have no effect, in one sentence."""
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
        """Return momentum and eps of training, those that are given."""
        given = {"momentum": self.momentum, "eps": self.eps}
        return {name: value for name, value in given.items() if value is not None}

    def arguments(self, network: "nn.Module | None", data: "ModelData | None") -> dict[str, Any]:
        """Return the keyword arguments that diagnose and repair of the library share.

        Both read batches through one `Loader`, so that an iterator can be given once.
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
        """Return the test part of --live, or all batches of a loader."""
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
    """Import the function that an option names; None where the option is not given."""
    if spec is None:
        return None
    from normscope.probe.load import made

    value = made(*checked_spec(option, spec), finished=object)
    if not callable(value):
        raise InputError(
            f"{option}: {shown(spec)} is of type {type(value).__name__}; a function is needed"
        )
    return value
