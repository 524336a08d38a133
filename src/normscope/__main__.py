"""The command `normscope`, also as `python -m normscope`: a process from its first moment on."""

import os
import signal
import sys
import threading
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)


def run() -> None:
    """Be the process of the command line, which can be stopped while it loads and as it ends."""
    for number in STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop_loading)
    sys.meta_path.insert(0, _Torch())
    try:
        from normscope.cli import main

        if signal.getsignal(signal.SIGINT) is _stop_loading:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    finally:
        for number in STOPS:  # nothing is left to be stopped; the exit code stands
            signal.signal(number, signal.SIG_IGN)
        # Python remembers an interruption inside of exec(), as imports use it, and would end as
        # if killed by it although it was dealt with; the next exec() forgets it
        exec("")


class _Torch:
    """Finds torch as the import system does, and lets it be stopped at once while it loads.

    An exception in the middle of it ends in its C++ code, which then aborts.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of torch; None of all others."""
        if name != "torch" or threading.current_thread() is not threading.main_thread():
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def stoppable(module: ModuleType) -> None:
                before = {number: signal.signal(number, _stop_loading) for number in STOPS}
                try:
                    load(module)
                finally:
                    for number, handler in before.items():
                        signal.signal(number, handler)

            spec.loader.exec_module = stoppable  # type: ignore[method-assign]
        return spec


def _stop_loading(number: int, frame: object) -> None:
    """Leave at once: nothing has begun, and half-loaded modules would end in a traceback."""
    os.write(2, b"normscope: stopped before it began\n")
    os._exit(130)


if __name__ == "__main__":
    run()
