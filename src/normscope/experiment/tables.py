"""Samples from tables: a .csv read row by row, a .parquet column by column."""

import csv
import math
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from normscope.errors import FileError, InputError, MissingExtraError
from normscope.experiment.sources import Samples, check_size, existing_file, samples
from normscope.files import shown
from normscope.probe.load import reason

LABEL_NAMES = ("label", "y", "target", "class")


def read_csv(path: Path) -> Samples:
    """Read numbers and one label per line, separated by comma, semicolon or tab.

    A first line without any number is the header, and so is one that names the label column
    beside counted columns (0, 1, 2, ...). The label is the column `label`, `y`, `target` or
    `class`, otherwise the last one. Lines without content are passed over.

    Raises:
        FileError: missing, empty, not UTF-8 text.
        InputError: text, a gap or NaN in a feature (line and column are named), lines of
            different length, columns without a name.
    """
    where = shown(existing_file(path))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            start = file.read(2**16).strip()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=start.partition("\n")[0].count))
            rows = ([cell.strip() for cell in row] for row in reader)
            lines = ((f"{where}, line {reader.line_num}", row) for row in rows if any(row))
            return _read_lines(lines, path.stem, where)
    except UnicodeDecodeError as problem:
        raise FileError(f"{where} is not text; a UTF-8 .csv is needed") from problem
    except csv.Error as problem:
        raise FileError(f"{where} is not a .csv file: {problem}") from problem
    except OSError as problem:
        raise FileError(f"{where} cannot be read: {problem.strerror}") from problem


def _read_lines(lines: Iterator[tuple[str, list[str]]], name: str, where: str) -> Samples:
    first = next(lines, None)
    if first is None:
        raise FileError(f"{where} is empty; a file with samples and labels is needed")
    names = [f"{i + 1}" for i in range(len(first[1]))]
    if _is_header(first[1]):
        names = first[1]
    else:
        lines = chain([first], lines)
    label = _label_column(names, where)
    features = names[:label] + names[label + 1 :]
    values, labels = array("d"), []
    for place, row in lines:
        if len(row) != len(names):
            raise InputError(f"{place}: {len(row)} columns, but the first line has {len(names)}")
        labels.append(row.pop(label))
        if not labels[-1]:
            raise InputError(f"{place}: no label; give every sample its class")
        for column, cell in zip(features, row, strict=True):
            number = _number(cell)
            if number is None or not math.isfinite(number):
                held = f"{cell[:40]!r} is not a finite number" if cell else "the value is missing"
                raise InputError(f"{place}, column {column!r}: {held}; fill or remove it first")
            values.append(number)
        check_size(len(values), where)
    x = np.frombuffer(values, dtype=np.float64).reshape(len(labels), len(features))
    return samples(name, x, np.array(labels, dtype=np.str_), where=where)


def _is_header(cells: Sequence[str]) -> bool:
    numbers = [cell for cell in cells if _number(cell) is not None]
    first = int(numbers[0]) if numbers and numbers[0].isdecimal() else 0
    counted = numbers == [str(first + i) for i in range(len(numbers))]
    return not numbers or (counted and any(cell.lower() in LABEL_NAMES for cell in cells))


def _label_column(names: Sequence[str], where: str) -> int:
    """Find the label's column: the first of LABEL_NAMES that there is, or the last."""
    if len(names) < 2:
        raise InputError(f"{where} has one column; features and a label are needed")
    if "" in names:
        raise InputError(
            f"{where}: column {names.index('') + 1} has no name (an index that was saved "
            "along?); name it or remove it"
        )
    lower = [name.lower() for name in names]
    return next((lower.index(name) for name in LABEL_NAMES if name in lower), len(names) - 1)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def read_parquet(path: Path) -> Samples:
    """Read a Parquet table of numbers; the label's column as in `read_csv`, no index.

    Raises:
        MissingExtraError: pyarrow is not installed.
        FileError: missing, empty, not Parquet.
        InputError: text or a gap in a feature (row and column are named).
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as problem:
        raise MissingExtraError(
            "reading .parquet needs pyarrow: pip install 'normscope[tables]'"
        ) from problem
    where = shown(existing_file(path))
    try:
        with pq.ParquetFile(path) as file:
            check_size(file.metadata.num_rows * file.metadata.num_columns, where)
            table = file.read()
    except InputError:
        raise
    except Exception as problem:  # a damaged file fails in pyarrow in a dozen ways
        raise FileError(f"{where} is not a whole .parquet file: {reason(problem)}") from problem
    names = [name for name in table.column_names if not name.startswith("__index_level_")]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where} has two columns {name!r}; rename one")
        if table[name].null_count:
            row = table[name].is_null().index(value=True).as_py() + 1
            place = f"{where}, column {name!r}, row {row}"
            raise InputError(f"{place}: the value is missing; fill or remove it first")
    label = names.pop(_label_column(names, where))
    x = np.empty((table.num_rows, len(names)))
    for i, name in enumerate(names):
        kind = table[name].type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or kind == pa.bool_()):
            raise InputError(
                f"{where}, column {name!r} holds {kind}; every feature must be a number"
            )
        x[:, i] = table[name].to_numpy()
    return samples(path.stem, x, np.array(table[label].to_pylist(), dtype=object), where=where)
