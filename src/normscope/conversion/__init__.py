"""Whole models from one member of the batch-norm family to another, and back."""

from normscope.conversion.kinds import KINDS, Kind
from normscope.conversion.transaction import Change, Conversion, Left, convert
from normscope.conversion.verification import Comparison, Verification

__all__ = [
    "KINDS",
    "Change",
    "Comparison",
    "Conversion",
    "Kind",
    "Left",
    "Verification",
    "convert",
]
