"""Two forms of one network side by side, and the passport that a checkpoint carries."""

from importlib import import_module
from typing import Any

from normscope.equivalence.carriers import KEY, passport_in, read_passport, write_passport
from normscope.equivalence.passports import apply_passport, compare_to_passport, passport
from normscope.equivalence.side_by_side import assert_parity, parity, summary

__all__ = [
    "KEY",
    "apply_passport",
    "assert_parity",
    "compare_to_passport",
    "parity",
    "passport",
    "passport_in",
    "read_passport",
    "summary",
    "write_passport",
]


def __getattr__(name: str) -> Any:
    if name == "callbacks":  # imported when asked for: they are made of what is in here
        return import_module(f"{__name__}.callbacks")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
