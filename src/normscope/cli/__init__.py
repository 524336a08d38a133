"""The command line: each command parses options, calls the library, and shows the record.

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
from typing import Any

import typer

from normscope.cli import (
    bench,
    claims,
    convert,
    diagnose,
    env,
    explain,
    inspect,
    merge,
    parity,
    passport,
    playground,
    repair,
    report,
    start,
    train,
)
from normscope.cli.app import Console, app, tell
from normscope.cli.help import Command, Stopped
from normscope.cli.language import sentence, spoken
from normscope.cli.options import with_options
from normscope.errors import NormscopeError

__all__ = ["app", "main", "start"]

COMMANDS = {  # in the order of the help
    "Understand": (explain.explain, playground.playground, train.train, claims.claims),
    "Look at a model, and repair it": (inspect.inspect, diagnose.diagnose, repair.repair),
    "Other forms and files": (convert.convert, parity.parity, passport.passport, merge.merge),
    "Records and this machine": (report.report, bench.bench, env.env),
}
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(cls=Command, rich_help_panel=panel)(with_options(command))

# the same in every version of Typer, where its module has moved
WrongUsage: Any = typer.BadParameter.__mro__[1]


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2."""
    try:
        try:
            with _stoppable(), warnings.catch_warnings():
                warnings.showwarning = lambda message, *_, **__: _tell(str(message))
                code = app(prog_name="normscope", standalone_mode=False)
        finally:
            sys.stdout.flush()  # here it can still be said that there is no room
    except NormscopeError as problem:
        if not problem.told:
            _tell(str(problem))
        sys.exit(2)
    except WrongUsage as problem:
        command = "normscope" if problem.ctx is None else problem.ctx.command_path
        hint = f"{command} -h shows what there is"
        said = " ".join(problem.format_message().split()).replace("Value error, ", "")
        _tell(said.removesuffix("."), hint)
        sys.exit(2)
    except (KeyboardInterrupt, Stopped):
        tell(spoken(), "cli.interrupted")
        sys.exit(130)
    except OSError as problem:
        if problem.filename is not None or problem.errno not in (errno.ENOSPC, errno.EIO):
            raise
        sys.stdout = None  # what is left in it would fail again
        sys.stderr.write(f"normscope: the output cannot be written: {problem.strerror}\n")
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _tell(*sentences: str) -> None:
    lang = spoken()
    said = ("；" if lang == "zh" else "; ").join(sentence(text, lang) for text in sentences)
    Console(stderr=True, highlight=False).print(f"normscope: {said}", markup=False, soft_wrap=True)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, at once or after the current step.

    A background job of a script ignores SIGINT. Here SIGINT is blocked instead, so that code which
    delays Ctrl-C until a step is done delays SIGTERM too.
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
