"""Whole models from one member of the batch-norm family to another, and back."""

from normscope.conversion.conventions import (
    Imported,
    from_flax,
    from_inplace_abn,
    from_keras,
)
from normscope.conversion.kinds import KINDS, Kind
from normscope.conversion.transaction import Conversion, convert
from normscope.conversion.verification import Verification

__all__ = [
    "KINDS",
    "Conversion",
    "Imported",
    "Kind",
    "Verification",
    "convert",
    "from_flax",
    "from_inplace_abn",
    "from_keras",
]
