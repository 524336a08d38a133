"""What all records share: JSON out and in."""

import json
import math
import types
import typing
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from normscope.errors import InputError
from normscope.files import json_text

SCHEMA = 1  # raised when a field changes its meaning; from_json refuses what is newer

Numbers = tuple[float, ...]
Table = tuple[Numbers, ...]
Array = NDArray[Any]  # a table of many numbers: float32, or counts


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base of the records that are saved: JSON with the record's kind and schema number."""

    kind: ClassVar[str]

    def to_json(self) -> str:
        """One JSON document; not-finite numbers are null, so that any parser reads it."""
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
            raise InputError(f"this is no {cls.kind} record: {problem}") from problem
        if not isinstance(value, dict) or value.get("kind") != cls.kind:
            raise InputError(f"this is no {cls.kind} record; its kind must be {cls.kind!r}")
        if value.get("schema") != SCHEMA:
            raise InputError(
                f"this {cls.kind} record has schema {value.get('schema')}, "
                f"this normscope reads {SCHEMA}; write it again with the same version"
            )
        try:
            return typing.cast(Self, _build(cls, value))
        except (KeyError, TypeError, ValueError) as problem:
            raise InputError(f"this {cls.kind} record is not whole: {problem}") from problem


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
    """Read a table of floats, in which None is NaN, or one of counts, which has three axes."""
    array = np.array(value, dtype=float)
    if not array.size:
        array = array.reshape(0, 0)
    if array.ndim < 3:
        return array.astype(np.float32)
    return array.astype(np.int32 if array.max(initial=0) < 2**31 else np.int64)
