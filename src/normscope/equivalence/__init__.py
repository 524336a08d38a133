"""Two forms of one network side by side, and the passport that a checkpoint carries."""

from normscope.equivalence.side_by_side import assert_parity, parity, summary

__all__ = ["assert_parity", "parity", "summary"]
