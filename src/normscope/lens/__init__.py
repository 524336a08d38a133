"""One pass over a model and its data: what every normalisation layer did to every class."""

from importlib import import_module
from typing import Any

from normscope.lens.compare import compare as compare
from normscope.lens.monitor import Monitor as Monitor
from normscope.lens.monitor import monitor as monitor
from normscope.lens.one_pass import accumulate as accumulate
from normscope.lens.one_pass import inspect as inspect
from normscope.lens.one_pass import inspection as inspection
from normscope.lens.one_pass import memory_needed as memory_needed
from normscope.lens.state import InspectionState as InspectionState

Accumulation, Watch, watch = InspectionState, Monitor, monitor  # their names before


def __getattr__(name: str) -> Any:
    if name == "callbacks":  # imported when asked for: they are made of what is in here
        return import_module(f"{__name__}.callbacks")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
