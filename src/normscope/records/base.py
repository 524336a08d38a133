"""Base of all records: JSON, rows of a table, and how they are displayed.

How a record looks is decided in `normscope.report`, which stands above records: only the methods
of `Record` that show something import `normscope.report.presentation`, when they are called.
"""

import json
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from normscope.errors import InputError, MissingExtraError
from normscope.files import json_text, read_text, write_whole

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

SCHEMA = 1  # raised when a field changes its meaning; from_json refuses what is newer

Numbers = tuple[float, ...]
Table = tuple[Numbers, ...]
# a table of many numbers: float32, or counts; the origin of NDArray[Any] is another in NumPy 2.5
Array = np.ndarray[Any, np.dtype[Any]]
LONGEST = 200  # characters of a value, which may be of any length, in a sentence
LISTED = 4  # entries of a tuple that the repr of a part of a record names


class Part:
    """Base of the parts of a record that hold many numbers: a repr of one line."""

    def __init_subclass__(cls) -> None:
        # dataclass would put in a repr of every number; it keeps one that the class has
        cls.__repr__ = Part.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        names = (f.name for f in fields(self))  # type: ignore[arg-type]  # every part is one
        values = ((name, getattr(self, name)) for name in names)
        return f"{type(self).__name__}({', '.join(f'{n}={_short(v)}' for n, v in values)})"


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base of the records that are saved: JSON with the record's kind and schema number.

    A record shows itself: its repr is the verdict in a few lines, a notebook shows it with
    pictures, `save_html` writes the page, `to_frame` gives its numbers as a table, `plot` its
    pictures as Altair charts.
    """

    kind: ClassVar[str]
    parts: ClassVar[str]  # the field whose entries are the rows of `to_rows`

    def __init_subclass__(cls, *, kind: str, parts: str = "") -> None:
        cls.kind, cls.parts = kind, parts
        # dataclass would put in a repr of every number; it keeps one that the class has
        cls.__repr__ = Record.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        """Show the verdict in at most 12 lines."""
        from normscope.report import presentation

        try:
            return presentation.text(self)
        except Exception as problem:  # a debugger must be able to show any object
            return f"<{self.kind} record that cannot be shown: {type(problem).__name__}: {problem}>"

    def _repr_html_(self) -> str:
        """Show in a notebook: the verdict, one index and the telling pictures."""
        from normscope.report import presentation

        return presentation.fragment(self)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return the numbers as rows of one tidy table, each a dict of plain values.

        Any library of tables takes them; `to_frame` makes a pandas frame.
        """
        return [scalars(part) for part in getattr(self, self.parts)]

    def to_frame(self) -> "pd.DataFrame":
        """Return `to_rows` as a pandas frame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as problem:
            raise MissingExtraError(
                "to_frame() needs pandas: pip install 'normscope[tables]'; to_rows() gives "
                "the same as a list of dicts"
            ) from problem
        return pd.DataFrame(self.to_rows())

    def plot(self, which: int = 0) -> "alt.TopLevelMixin":
        """Return one of the pictures of the page as an Altair chart, to change and to save.

        Args:
            which: its place among those that the record has; the first says most.

        Raises:
            InputError: there is no such picture.
            MissingExtraError: altair is not installed.
        """
        from normscope.report import presentation

        return presentation.chart(self, which)

    def save_html(
        self,
        path: str | os.PathLike[str],
        lang: Literal["en", "zh"] | None = None,
        *,
        sounds: Mapping[str, tuple[Any, int]] | None = None,
    ) -> Path:
        """Write the page of the record, one offline file in both languages; return its path.

        Args:
            path: of the file.
            lang: in which language it opens; None: that of the locale.
            sounds: class -> samples, (N,) int16 or floating point between -1 and 1, and samples
                per second; the page plays them.

        Raises:
            FileError: the file cannot be written.
            InputError: a sound of no class of the record, or what is no sound.
        """
        from normscope.report import presentation

        return write_whole(Path(path), presentation.page(self, lang, sounds))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the record as JSON, from which `load` reads it; return its path.

        Raises:
            FileError: the file cannot be written.
        """
        return write_whole(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            FileError: the file cannot be read.
            InputError: it holds something else.
        """
        return cls.from_json(read_text(Path(path), f"{cls.kind} record"))

    def to_json(self) -> str:
        """Write one JSON document; not-finite numbers are null, so that any parser reads it."""
        head = {"kind": self.kind, "schema": SCHEMA}
        return json_text({**head, **plain(self)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; null in the place of a number is NaN.

        Raises:
            InputError: not JSON, another kind of record, a newer schema, a missing field.
        """
        try:
            value = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as problem:
            why = str(problem)[:LONGEST]
            raise InputError(f"this is no {cls.kind} record: {why}") from problem
        if not isinstance(value, dict) or value.get("kind") != cls.kind:
            raise InputError(f"this is no {cls.kind} record; its kind must be {cls.kind!r}")
        if value.get("schema") != SCHEMA:
            raise InputError(
                f"this {cls.kind} record has schema {repr(value.get('schema'))[:LONGEST]}, "
                f"this normscope reads {SCHEMA}; write it again with the same version"
            )
        try:
            return typing.cast(Self, _build(cls, value))
        except Exception as problem:  # a value of a wrong kind fails in a dozen ways
            why = str(problem)[:LONGEST]
            raise InputError(f"this {cls.kind} record is not whole: {why}") from problem


def scalars(part: Any) -> dict[str, Any]:
    """Return the fields of a part of a record that fit in a cell; a list of names is one text."""
    row: dict[str, Any] = {}
    for f in fields(part):
        value = getattr(part, f.name)
        if isinstance(value, tuple) and all(isinstance(v, (str, int)) for v in value):
            value = ", ".join(map(str, value))
        if isinstance(value, (str, int, float)) or value is None:
            row[f.name] = value
    return row


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"<{' x '.join(map(str, value.shape))} {value.dtype}>"
    if isinstance(value, (tuple, list, dict)) and len(value) > LISTED:
        return f"<{len(value)} {type(next(iter(value))).__name__}>"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_short, value))})"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def plain(value: Any) -> Any:
    """Turn a record into what JSON can hold; not-finite floats become None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        if value.dtype == np.float32:  # the shortest number that reads back as the same
            value = value.astype(str).astype(float)
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _build(kind: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is np.ndarray:
        return _array(value)
    if is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        known = {f.name: f for f in fields(kind)}
        return kind(**{n: _build(hints[n], value[n]) for n in known if n in value})
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _build(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return tuple(_build(arguments[0], item) for item in value)
        return tuple(_build(a, item) for a, item in zip(arguments, value, strict=True))
    if origin is dict:
        return {key: _build(arguments[1], item) for key, item in value.items()}
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{value!r} is none of {', '.join(map(repr, arguments))}")
        return value
    if kind is float and value is None:
        return math.nan
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _array(value: Any) -> Array:
    """Read an array of floats, where None is NaN, or an array of counts with three axes."""
    array = np.array(value, dtype=float)
    if not array.size:
        array = array.reshape(0, 0)
    if array.ndim < 3:
        return array.astype(np.float32)
    return array.astype(np.int32 if array.max(initial=0) < 2**31 else np.int64)
