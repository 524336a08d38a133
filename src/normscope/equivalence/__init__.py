"""Two forms of one network side by side, and the passport that a checkpoint carries."""

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
