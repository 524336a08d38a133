"""Two forms of one network side by side, and the passport that a checkpoint carries."""

from importlib import import_module
from typing import Any

from normscope.equivalence.carriers import KEY as KEY
from normscope.equivalence.carriers import passport_in as passport_in
from normscope.equivalence.carriers import read_passport as read_passport
from normscope.equivalence.carriers import write_passport as write_passport
from normscope.equivalence.passports import apply_passport as apply_passport
from normscope.equivalence.passports import compare_to_passport as compare_to_passport
from normscope.equivalence.passports import passport as passport
from normscope.equivalence.side_by_side import assert_parity as assert_parity
from normscope.equivalence.side_by_side import parity as parity
from normscope.equivalence.side_by_side import summary as summary


def __getattr__(name: str) -> Any:
    if name == "callbacks":  # imported when asked for: they are made of what is in here
        return import_module(f"{__name__}.callbacks")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
