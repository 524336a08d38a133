"""Samples before any split: bundled sets, arrays, NumPy archives; what they may hold."""

import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from normscope.errors import FileError, InputError
from normscope.files import shown
from normscope.probe.load import reason

BUNDLED = ("digits", "iris", "wine", "breast_cancer")
KINDS = (
    f"{', '.join(BUNDLED)}, a .npz, .csv or .parquet file, a folder of class folders of images, "
    "or path/file.py:factory"
)
MAX_VALUES = 2**29  # numbers in x: 2 GiB as float32, what a laptop still holds
BLOCK_VALUES = 2**22  # numbers worked on at once, so that copies stay small
BOMB_RATIO, BOMB_BYTES = 200, 2**26  # an archive that unpacks to more is refused


class Samples(NamedTuple):
    """All samples of a source before any split."""

    name: str  # of the source in tables and pages
    x: NDArray[Any]  # (N, C) or (N, C, H, W), real numbers of any dtype, all finite
    y: NDArray[np.int64]  # (N,), class numbers 0..K-1
    classes: tuple[str, ...]  # K names


def samples(
    name: str, x: Any, labels: Any, classes: Sequence[str] | None = None, *, where: str
) -> Samples:
    """Check anything that looks like an array and its labels.

    Args:
        name: the source's name.
        x: (N, C), (N, H, W) or (N, C, H, W); an array, a tensor or nested lists.
        labels: (N,) integers, whole floats or names; with `classes` integers in 0..K-1.
        classes: K names; None: the sorted distinct labels are the classes.
        where: how an error calls the source.

    Raises:
        InputError: not numbers, not finite, a wrong shape, labels that are no classes.
    """
    x = _checked_x(_array(x), where)
    y = _array(labels)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or len(y) != len(x):
        raise InputError(
            f"{where}: labels are {y.shape} for {len(x)} samples; one class per sample is needed, "
            "as numbers or names"
        )
    numbers, names = class_numbers(y, where)
    if classes is None:
        return Samples(name, x, numbers, names)
    if y.dtype.kind not in "iuf":
        raise InputError(f"{where}: with class names given, labels must be the numbers of classes")
    for row in np.flatnonzero((y < 0) | (y >= len(classes))):
        raise InputError(
            f"{where}: label {y[row]} of sample {row + 1} is out of range; "
            f"{len(classes)} classes have the numbers 0 to {len(classes) - 1}"
        )
    return Samples(name, x, y.astype(np.int64), tuple(map(str, classes)))


def class_numbers(labels: NDArray[Any], where: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Give classes the numbers 0..K-1 and names, from integers, whole floats, booleans or names.

    Names that all read as numbers are numbers; numbers sort by value, names by alphabet. Raises
    InputError for a label that is missing, or a number with a fraction.
    """
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind in "OUT":
        labels = np.array([str(label).strip() for label in labels], dtype=np.str_)
        with suppress(ValueError):  # names
            labels = labels.astype(np.float64)
    if labels.dtype.kind not in "biufU":
        raise InputError(f"{where}: labels are {labels.dtype}; whole numbers or names are needed")
    wrong = labels == "" if labels.dtype.kind == "U" else np.zeros(len(labels), bool)
    if labels.dtype.kind == "f":  # NaN differs from itself
        wrong = (labels != np.trunc(labels)) | (np.abs(labels) >= 2**53)
    for row in np.flatnonzero(wrong):
        raise InputError(
            f"{where}: label {str(labels[row])[:40] or 'nothing'} of sample {row + 1} is no class; "
            "every label must be a whole number below 2^53, or a name"
        )
    if labels.dtype.kind == "f":
        labels = labels.astype(np.int64)
    values, numbers = np.unique(labels, return_inverse=True)
    return numbers.astype(np.int64), tuple(map(str, values))


def blocks(x: NDArray[Any]) -> Iterator[slice]:
    """Yield slices of the rows of x that hold about BLOCK_VALUES numbers each."""
    step = max(1, BLOCK_VALUES // max(1, math.prod(x.shape[1:])))
    return (slice(start, start + step) for start in range(0, len(x), step))


def check_size(values: int, where: str) -> None:
    """Refuse what would not fit in memory, before any of it is read."""
    if values > MAX_VALUES:
        raise InputError(
            f"{where}: {values:,} numbers are more than the {MAX_VALUES:,} that are read at once; "
            "take a part of the data, or smaller images"
        )


def existing_file(path: Path) -> Path:
    """Return `path`, if it is a plain file with content; raises FileError otherwise."""
    if not path.is_file():
        raise FileError(f"there is no file {shown(path)} that can be read; check the path")
    if path.stat().st_size == 0:
        raise FileError(f"{shown(path)} is empty; a file with samples and labels is needed")
    return path


def bundled(name: str) -> Samples:
    """Load one of scikit-learn's bundled sets; digits are (N, 1, 8, 8) images."""
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{name}")()
    x = bunch.images if name == "digits" else bunch.data
    return samples(name, x, bunch.target, bunch.target_names, where=name)


def read_npz(path: Path) -> Samples:
    """Read a NumPy archive with `x`, `y` and, if wanted, `classes` (names of the numbers in y).

    Nothing is unpickled, and sizes are checked before anything is unpacked.
    """
    where = shown(existing_file(path))
    try:
        with zipfile.ZipFile(path) as archive:
            held = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if not held.keys() >= {"x", "y"}:
                raise InputError(
                    f"{where} holds {', '.join(map(repr, sorted(held)[:9])) or 'nothing'}; "
                    "arrays x (samples) and y (labels) are needed"
                )
            for key in held.keys() & {"x", "y", "classes"}:
                _check_member(archive, held[key], f"{where}: {key}")
        with np.load(path, allow_pickle=False) as arrays:
            names = arrays["classes"].tolist() if "classes" in held else None
            return samples(path.stem, arrays["x"], arrays["y"], names, where=where)
    except InputError:
        raise
    except Exception as problem:  # a damaged archive or header fails in NumPy in a dozen ways
        raise FileError(f"{where} is not a whole .npz file: {reason(problem)}") from problem


def is_factory(spec: str) -> bool:
    """Return whether `spec` has the form path/file.py:function."""
    return re.search(r"\.py:[A-Za-z_]\w*$", spec) is not None


def _array(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):  # a tensor; NumPy has no bfloat16
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    try:
        return np.asarray(value)
    except ValueError as problem:
        raise InputError(f"rows of different length are no array: {problem}") from problem


def _checked_x(x: NDArray[Any], where: str) -> NDArray[Any]:
    if x.dtype.kind not in "biuf":
        raise InputError(f"{where}: x is {x.dtype}; real numbers are needed")
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim not in (2, 4) or math.prod(x.shape[1:]) == 0:
        raise InputError(f"{where}: x is {x.shape}; it must be (N, C), (N, H, W) or (N, C, H, W)")
    if len(x) == 0:
        raise InputError(f"{where} holds no samples")
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        raise InputError(f"{where}: x is {x.shape}, channels last; store it as (N, C, H, W)")
    check_size(x.size, where)
    for rows in blocks(x):
        for place in np.argwhere(~np.isfinite(x[rows])):
            place[0] += rows.start
            raise InputError(
                f"{where}: x[{', '.join(map(str, place))}] is {x[tuple(place)]} (row "
                f"{place[0] + 1}, column {place[1] + 1}); every feature must be a finite number"
            )
    return x


def _check_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> None:
    """Refuse pickles and zip bombs by the headers of an archive, before unpacking it."""
    if info.file_size > max(BOMB_BYTES, BOMB_RATIO * info.compress_size):
        raise InputError(
            f"{where} unpacks from {info.compress_size:,} to {info.file_size:,} bytes, which looks "
            "like a zip bomb; save it with numpy.savez, uncompressed"
        )
    with archive.open(info) as file:
        first = np.lib.format.read_magic(file) == (1, 0)
        header = f"read_array_header_{1 if first else 2}_0"
        shape, _, dtype = getattr(np.lib.format, header)(file)
    if dtype.hasobject:
        raise InputError(
            f"{where} holds Python objects, which are not read because they can run code; "
            "save plain numbers or strings"
        )
    check_size(math.prod(shape), where)
