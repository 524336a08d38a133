"""The command line: parse, call, render, exit code. Every command is a library call, in a file.

Exit codes: 0 fine, 1 findings or a failed verification, 2 wrong use, 130 interrupted.
"""

import errno
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from normscope.cli import (
    bench,
    convert,
    diagnose,
    env,
    explain,
    inspect,
    playground,
    repair,
    report,
    start,
    train,
)
from normscope.cli.app import Console, app
from normscope.errors import NormscopeError

__all__ = ["app", "main", "start"]

COMMANDS = (
    explain.explain,
    playground.playground,
    train.train,
    inspect.inspect,
    diagnose.diagnose,
    repair.repair,
    convert.convert,
    report.report,
    bench.bench,
    env.env,
)
for command in COMMANDS:  # in the order of the help
    # whole, where a terminal's width would else cut it
    app.command(short_help=(command.__doc__ or "").partition("\n\n")[0])(command)


def main() -> None:
    """Run the command line; an error that a user can mend is one sentence and exit code 2."""
    try:
        try:
            with _stoppable(), warnings.catch_warnings():
                warnings.showwarning = lambda message, *_, **__: _tell(str(message))
                app(prog_name="normscope")
        finally:
            sys.stdout.flush()  # here it can still be said that there is no room
    except NormscopeError as problem:
        if not problem.told:
            _tell(str(problem))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as problem:
        if problem.filename is not None or problem.errno not in (errno.ENOSPC, errno.EIO):
            raise
        sys.stdout = None  # what is left in it would fail again
        sys.stderr.write(f"normscope: the output cannot be written: {problem.strerror}\n")
        sys.exit(2)


def _tell(text: str) -> None:
    Console(stderr=True, highlight=False).print(f"normscope: {text}", markup=False, soft_wrap=True)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, at once or after the step at hand.

    A script's background job ignores SIGINT. It is blocked there instead, so that what holds
    Ctrl-C back until a step is done holds back SIGTERM too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            handler(number, frame)
        else:
            raise KeyboardInterrupt

    interrupt, terminate = signal.getsignal(signal.SIGINT), signal.signal(signal.SIGTERM, stop)
    ignored = interrupt is signal.SIG_IGN and hasattr(signal, "pthread_sigmask")
    if ignored:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # which also drops one that was blocked
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGTERM, terminate or signal.SIG_DFL)
