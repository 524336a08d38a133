"""Data for training: split, standardised, moved into domains; the same for the same seed."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normscope.errors import FileError, InputError
from normscope.experiment import sources
from normscope.experiment.domains import check_domains, shifted
from normscope.experiment.images import read_folder
from normscope.experiment.tables import read_csv, read_parquet
from normscope.files import shown
from normscope.functional import moments
from normscope.moments import Moments
from normscope.probe.load import made

READERS = {".npz": sources.read_npz, ".csv": read_csv, ".parquet": read_parquet}
TEST_SHARE = 0.3
CONSTANT = 1e-12  # a channel whose std is below this share of its mean holds rounding only

Given = Literal["label", "domain"]
IN_MEMORY = "in memory"  # stands for data that were handed over, not named


@dataclass(frozen=True, eq=False, kw_only=True)
class Data:
    """A training and a test part, ready for a network.

    Raises InputError for parts that do not fit each other, labels or domains out of range, and a
    domain with fewer than two training samples.
    """

    name: str  # in tables and pages
    classes: tuple[str, ...]  # K names
    train_x: Tensor  # (N, C) or (N, C, H, W) float32
    train_y: Tensor  # (N,) int64 in 0..K-1
    test_x: Tensor
    test_y: Tensor
    domains: tuple[str, ...] = ()  # D names; empty where the data have none
    train_domain: Tensor | None = None  # (N,) int64 in 0..D-1, where there are domains
    test_domain: Tensor | None = None

    def __post_init__(self) -> None:
        if self.train_x.shape[1:] != self.test_x.shape[1:] or self.train_x.dim() not in (2, 4):
            raise InputError(
                f"{self.name}: train_x is {tuple(self.train_x.shape)} and test_x "
                f"{tuple(self.test_x.shape)}; both must be (N, C), or (N, C, H, W)"
            )
        parts = (
            ("train", self.train_x, self.train_y, self.train_domain),
            ("test", self.test_x, self.test_y, self.test_domain),
        )
        for part, x, y, domain in parts:
            if len(x) < 2 or x.dtype != torch.float32 or not bool(x.isfinite().all()):
                raise InputError(
                    f"{self.name}: {part}_x must hold two or more samples, finite, in float32"
                )
            _check_ids(f"{self.name}: {part}_y", y, len(x), len(self.classes))
            if self.domains:
                _check_ids(f"{self.name}: {part}_domain", domain, len(x), len(self.domains))
        if len(self.classes) < 2:
            raise InputError(f"{self.name} has {len(self.classes)} class; at least two are needed")
        ids = torch.empty(0) if self.train_domain is None else self.train_domain
        for d, name in enumerate(self.domains):
            if (count := int(ids.eq(d).sum())) < 2:
                raise InputError(
                    f"{self.name}: domain {name!r} has {count} training samples; 2 are needed"
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (C,) or (C, H, W)."""
        return tuple(self.train_x.shape[1:])

    def given(self, part: Literal["train", "test"], what: Given | None) -> Tensor | None:
        """Return the condition that a network gets, (N,): labels, domains, or None."""
        if what is None:
            return None
        ids: Tensor | None = getattr(self, f"{part}_{'y' if what == 'label' else 'domain'}")
        return ids


Source = str | Data | tuple[Any, ...] | list[Any]


def load(
    spec: Source, *, seed: int = 0, domains: tuple[str, ...] = (), every_class: bool = False
) -> Data:
    """Load the data that `spec` names, split and standardised.

    The split keeps each class's share: 30 % of its samples, at least one, are for testing; a
    class with one sample is in the training part only. Every channel (a table's column, an
    image's colour) is standardised by the mean and the population variance of the training part;
    a constant one becomes zero.

    With `domains`, each training sample is moved into one domain, drawn so that domains are of
    equal size, and each test sample is shown in every domain, so that domains are compared on
    the same samples. The domain is known at training and at inference.

    Args:
        spec: digits, iris, wine, breast_cancer, a .npz, .csv or .parquet file, a folder of class
            folders of images, or path/file.py:factory. A factory returns (x, y) or
            (x, y, class names), or a whole `Data` that is taken as it is; each of the three can
            be given itself.
        seed: draws the split, the domains and their noise.
        domains: two or more of clean, contrast, brightness, invert, noise.
        every_class: refuse a class that is too small to be in both parts.

    Raises:
        InputError: samples or labels that cannot be trained on.
        FileError: a file that is missing, empty or cannot be read.
        MissingExtraError: a package for this kind of file is not installed.
        ModelError: a factory that is not there or fails.
    """
    if domains:
        check_domains(domains)
    found = _read(spec)
    if isinstance(found, Data):
        if domains:
            raise InputError(f"{found.name} brings its own split; name no domains with it")
        return found
    draw = np.random.default_rng(seed)
    train, test = _split(found, draw, every_class)
    train_x, test_x, test_y = found.x[train], found.x[test], found.y[test]
    ids: dict[str, Tensor] = {}
    if domains:
        shown_in = np.repeat(np.arange(len(domains)), len(test))
        moved_to = draw.permutation(np.arange(len(train)) % len(domains))
        ids = {
            "train_domain": torch.from_numpy(moved_to),
            "test_domain": torch.from_numpy(shown_in),
        }
        test_x, test_y = np.concatenate([test_x] * len(domains)), np.tile(test_y, len(domains))
        train_x, test_x = (
            shifted(x, d, domains, found.x[train], draw)
            for x, d in ((train_x, moved_to), (test_x, shown_in))
        )
    train_x, test_x = _standardised(train_x, test_x, found.name)
    return Data(
        name=found.name,
        classes=found.classes,
        train_x=torch.from_numpy(train_x),
        train_y=torch.from_numpy(found.y[train]),
        test_x=torch.from_numpy(test_x),
        test_y=torch.from_numpy(test_y),
        domains=domains,
        **ids,
    )


def batches(
    data: Data, batch_size: int = 256, *, given: Given | None = "domain"
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the test part in order, as (x, y), or (x, y, condition) if the norm needs one.

    `given` is the condition, see `Norm.given`; "domain" gives none where there are no domains.
    """
    condition = data.given("test", given)
    columns = (data.test_x, data.test_y, *(() if condition is None else (condition,)))
    yield from zip(*(column.split(batch_size) for column in columns), strict=True)


def _read(spec: Source) -> sources.Samples | Data:
    if not isinstance(spec, str):
        return _handed_over(spec, IN_MEMORY, "the data")
    path = Path(spec)
    if spec in sources.BUNDLED:
        return sources.bundled(spec)
    if sources.is_factory(spec):
        place, _, name = spec.rpartition(":")
        return _handed_over(made(place, name), name, shown(spec))
    if path.is_dir():
        return read_folder(path)
    if path.suffix.lower() in READERS:
        return READERS[path.suffix.lower()](path)
    if path.exists():
        raise InputError(f"{shown(path)} is of no kind that is read; data can be {sources.KINDS}")
    if len(path.parts) > 1:
        raise FileError(f"there is no file or folder {shown(path)}; check the path")
    raise InputError(f"there are no data {spec!r}; data can be {sources.KINDS}")


def _handed_over(value: Any, name: str, where: str) -> sources.Samples | Data:
    if isinstance(value, Data):
        return value
    if isinstance(value, (tuple, list)) and len(value) in (2, 3):
        return sources.samples(name, *value, where=where)
    raise InputError(
        f"{where}: {type(value).__name__} was given; (x, y), (x, y, class names) or a Data "
        "is needed"
    )


def _split(
    found: sources.Samples, draw: np.random.Generator, every_class: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw the indices of the training and the test part, each in the order of the source."""
    sizes = np.bincount(found.y, minlength=len(found.classes)).tolist()
    for name, size in zip(found.classes, sizes, strict=True):
        count = f"{size} sample{'' if size == 1 else 's'}"
        if size == len(found.y):
            raise InputError(
                f"{found.name} holds {count} of one class, {name!r}; at least two classes are "
                "needed"
            )
        if size < 2 and every_class:
            raise InputError(
                f"{found.name}: class {name!r} has {count}; at least 2 are needed, one to train "
                "and one to test"
            )
    # one sort: looking for each class anew would take time with the square of their number
    order = np.argsort(found.y, kind="stable")
    testing = np.zeros(len(found.y), dtype=bool)
    for size, end in zip(sizes, accumulate(sizes), strict=True):
        members = draw.permutation(order[end - size : end])
        testing[members[: round(TEST_SHARE * size)]] = True  # 0 of 1, 1 of 2
    return np.flatnonzero(~testing), np.flatnonzero(testing)


def _standardised(
    train_x: NDArray[Any], test_x: NDArray[Any], name: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Standardise both parts by the channels' mean and variance in the training part."""
    total = Moments.empty(1, train_x.shape[1])
    for rows in sources.blocks(train_x):
        total += moments(torch.from_numpy(train_x[rows].astype(np.float64)))
    mean, std = total.mean[0].numpy(), total.var(correction=0)[0].sqrt().numpy()
    for channel in np.flatnonzero(~np.isfinite(std)):
        raise InputError(
            f"{name}: the values of column {channel + 1} are too large to take their variance; "
            "rescale that column"
        )
    std = np.where(std > CONSTANT * np.abs(mean), std, 1.0)
    shape = (1, -1, *[1] * (train_x.ndim - 2))

    def scaled(x: NDArray[Any]) -> NDArray[np.float32]:
        y = np.empty(x.shape, dtype=np.float32)
        for rows in sources.blocks(x):
            block = (x[rows].astype(np.float64) - mean.reshape(shape)) / std.reshape(shape)
            if np.abs(block).max() > np.finfo(np.float32).max:
                raise InputError(f"{name}: a test value lies too far out for float32; remove it")
            y[rows] = block
        return y

    return scaled(train_x), scaled(test_x)


def _check_ids(what: str, ids: Tensor | None, samples: int, kinds: int) -> None:
    if ids is None or ids.dtype != torch.int64 or ids.shape != (samples,):
        raise InputError(f"{what} must be int64, one for each of {samples} samples")
    for wrong in ids[(ids < 0) | (ids >= kinds)].tolist():
        raise InputError(f"{what} holds {wrong}, which is out of range; 0 to {kinds - 1} exist")
