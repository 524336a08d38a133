"""Data for an existing model: batches with unchanged labels."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normscope.errors import InputError
from normscope.experiment import fit, sources
from normscope.experiment.data import TEST_SHARE, Data, batches, load
from normscope.experiment.nets import standing_for
from normscope.files import shown
from normscope.probe.grammar import walk
from normscope.probe.load import FAILURES, made, reason

TEST_SIZE = 256  # samples in a batch of the test part


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelData:
    """Batches of data, split into two parts unless they came as batches.

    Attributes:
        name: in tables and pages.
        train: as in training, in random order; or everything that a loader gives.
        test: the batches held apart; None where a loader gives everything.
        classes: their names; None where labels are the numbers of classes.
        samples: in the test part, or in the loader's data set; None where it does not say.
        total: samples in both parts; None where there is one.
    """

    name: str
    train: Iterable[Any]
    test: Sequence[Any] | None = None
    classes: tuple[str, ...] | None = None
    samples: int | None = None
    total: int | None = None

    @property
    def batches(self) -> Iterable[Any]:
        """The test part, or everything that a loader gives."""
        return self.train if self.test is None else self.test


def data_for_model(
    spec: str, batch_size: int, test_size: int = TEST_SIZE, *, factory: bool = False
) -> ModelData:
    """Read what `spec` names for a model that is not a run's; labels are not renumbered.

    A factory may give batches (a DataLoader, a list, an iterator: anything that `probe.Loader`
    reads), which are taken as they are; a `Data`; or all samples as (x, y), (x, y, condition) or
    (x, y, class names), which are split by their labels and otherwise left as they are. Other
    sources are read and standardised as for training, and labels that are whole numbers kept.

    Args:
        spec: as for `data.load`.
        batch_size: of the training part.
        test_size: of the test part.
        factory: it is one for certain, in a file or a package.

    Raises:
        InputError, FileError, MissingExtraError, ModelError: as `data.load`.
    """
    if not factory and not sources.is_factory(spec):
        data = load(spec)
        numbers = [int(name) for name in data.classes if name.isdecimal()]
        if len(numbers) < len(data.classes):
            return _parts(data, batch_size, test_size)
        # names that are numbers are the labels as they were
        return _parts(data, batch_size, test_size, torch.tensor(numbers), None)
    value = _made(spec)
    if isinstance(value, Data):
        return _parts(value, batch_size, test_size)
    return _split(spec, value, batch_size, test_size) if _whole(value) else _loader(spec, value)


def data_for_run(
    folder: Path, spec: str | None, batch_size: int, test_size: int = TEST_SIZE
) -> tuple[torch.nn.Module, str, ModelData]:
    """Load a run's network, its name, and its own data or other data.

    Other data are standardised as those of a run are, and classes found by their names.

    Raises:
        InputError: other data hold a class that the run's data do not.
        FileError, MissingExtraError, ModelError: as `fit.load_run` and `data.load`.
    """
    run, network, own = fit.load_run(folder)
    name = f"{run.config.net}, {standing_for(run.config.norms)}"
    if spec is None:
        return network, name, _parts(own, batch_size, test_size)
    if sources.is_factory(spec):
        value = _made(spec)
        if not isinstance(value, Data) and not _whole(value):
            return network, name, _loader(spec, value)
    other = load(spec, seed=run.config.seed, domains=run.config.domains)
    unknown = [c for c in other.classes if c not in own.classes]
    if unknown:
        raise InputError(
            f"{other.name} has class {unknown[0]!r}, which the run was not trained on; its classes "
            f"are {', '.join(own.classes)}"
        )
    table = torch.tensor([own.classes.index(c) for c in other.classes])
    return network, name, _parts(other, batch_size, test_size, table, own.classes)


def _made(spec: str) -> Any:
    place, _, name = spec.rpartition(":")
    return made(place, name, finished=(Data, torch.utils.data.Dataset))


def _parts(
    data: Data,
    batch_size: int,
    test_size: int,
    table: Tensor | None = None,
    classes: tuple[str, ...] | None = None,
) -> ModelData:
    """Return the two parts of data; `table` holds the labels of its classes if they are others."""
    kept = table is None or torch.equal(table, torch.arange(len(table)))
    columns = [c for c in (data.train_x, data.train_y, data.train_domain) if c is not None]
    count = len(data.test_x) // max(1, len(data.domains))  # each is shown in every domain
    test: list[tuple[Any, ...]] = list(batches(data, test_size))
    if table is not None:
        columns[1] = table[data.train_y]
        test = [(x, table[y], *rest) for x, y, *rest in test]
    return ModelData(
        name=data.name,
        train=_batched(columns, torch.arange(len(data.train_x)), batch_size),
        test=test,
        classes=classes or (data.classes if kept else None),
        samples=count,
        total=count + len(data.train_x),
    )


def _batched(columns: Sequence[Any], rows: Tensor, size: int) -> list[Any]:
    """Yield batches of these rows in random order; none of one sample, which cannot train."""
    order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return [_rows(columns, part) for part in order.split(size) if len(part) > 1 or size == 1]


def _rows(columns: Sequence[Any], which: Tensor) -> tuple[Any, ...]:
    def some(column: Any) -> Any:
        return column[which if isinstance(column, Tensor) else which.numpy()]

    found: tuple[Any, ...] = walk(tuple(columns), some)
    return found


def _whole(value: Any) -> bool:
    """Return whether these are samples, not batches: (x, y), with a condition or class names."""
    pair = isinstance(value, (tuple, list)) and len(value) in (2, 3)
    if not pair or hasattr(value, "_fields") or not isinstance(value[1], Iterable):
        return False
    x, y = _columns(value[0]), _array(value[1])
    nested = not isinstance(value[1], (Tensor, np.ndarray)) and any(
        isinstance(part, np.ndarray) for part in value[1]
    )
    if x is None or y is None or y.ndim == 0 or nested:
        return False
    if isinstance(x, (tuple, dict)):  # else it is one batch, and y another
        return all(leaf.ndim > 0 and len(leaf) == len(y) for leaf in _leaves(x))
    # a list of two tensors of one form is two batches
    return bool(x.ndim > 0 and (isinstance(value, tuple) or x.ndim > y.ndim))


def _leaves(x: Any) -> Iterator[Any]:
    for part in x.values() if isinstance(x, dict) else x:
        if isinstance(part, (tuple, dict)):
            yield from _leaves(part)
        else:
            yield part


def _columns(x: Any) -> Any:
    """Return inputs as arrays or tensors, in the tuples and dicts that they came in; else None."""
    if not isinstance(x, (tuple, Mapping)):
        return _array(x)
    found = walk(x, _array)
    arrays = all(isinstance(leaf, (Tensor, np.ndarray)) for leaf in _leaves(found))
    return found if x and arrays else None


def _array(value: Any) -> Any:
    """Return a tensor or an array of numbers or names; None of anything else."""
    if isinstance(value, Tensor) or not isinstance(value, (list, tuple, np.ndarray)):
        return value if isinstance(value, Tensor) else None
    if isinstance(value, (list, tuple)) and any(isinstance(v, (Tensor, Mapping)) for v in value):
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different length
        return None
    return array if array.dtype.kind in "biufU" else None


def _split(spec: str, value: Any, batch_size: int, test_size: int) -> ModelData:
    """Make 30 % of the samples the test part, evenly over the sorted labels."""
    where = shown(spec)
    x, y, names = _columns(value[0]), _array(value[1]), None
    if isinstance(y, np.ndarray) and y.dtype.kind == "U":
        y, names = sources.class_numbers(y, where)
    columns = [x, y]
    if len(value) == 3 and isinstance(value[2], Iterable):
        third = _array(value[2])
        named = third is None or (isinstance(third, np.ndarray) and third.dtype.kind == "U")
        if not named and third.ndim and len(third) == len(y):
            columns.append(third)
        else:
            names = tuple(map(str, value[2]))
    sizes = {len(leaf) for leaf in _leaves(tuple(columns))}
    if len(sizes) > 1 or min(sizes) < 4:
        raise InputError(
            f"{where} gives {' and '.join(map(str, sorted(sizes)))} samples; it must give "
            "one label for each sample, of 4 samples or more"
        )
    count = len(y)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    if y.ndim == 1:
        order = order[torch.as_tensor(y)[order].argsort(stable=True)]
    places = torch.arange(count + 1, dtype=torch.float64).mul(TEST_SHARE).add(0.5).floor()
    testing = places.diff() > 0
    return ModelData(
        name=spec.rpartition(":")[2],
        train=_batched(columns, order[~testing].sort().values, batch_size),
        test=[_rows(columns, part) for part in order[testing].sort().values.split(test_size)],
        classes=names,
        samples=int(testing.sum()),
        total=count,
    )


def _loader(spec: str, value: Any) -> ModelData:
    try:
        held = getattr(value, "dataset", None)
        classes = getattr(value, "classes", None) or getattr(held, "classes", None)
        names = tuple(map(str, classes)) if classes else None
        samples = len(held) if isinstance(held, Sized) else None
    except FAILURES as problem:
        raise InputError(f"{shown(spec)} gives no loader: {reason(problem)}") from problem
    return ModelData(name=spec, train=value, classes=names, samples=samples)
