"""The command line: parse, call, render, exit code. Every command is a library call, in a file.

Exit codes: 0 fine, 1 findings or a failed verification, 2 wrong use, 130 interrupted.
"""

import errno
import sys

from normscope.cli import bench, convert, diagnose, env, explain, inspect, repair, report, train
from normscope.cli.app import Console, app
from normscope.errors import NormscopeError

__all__ = ["app", "main"]

COMMANDS = (
    explain.explain,
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
    app.command()(command)


def main() -> None:
    """Run the command line; an error that a user can mend is one sentence and exit code 2."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here it can still be said that there is no room
    except NormscopeError as problem:
        if not problem.told:
            Console(stderr=True, highlight=False).print(
                f"normscope: {problem}", markup=False, soft_wrap=True
            )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as problem:
        if problem.filename is not None or problem.errno not in (errno.ENOSPC, errno.EIO):
            raise
        sys.stdout = None  # what is left in it would fail again
        sys.stderr.write(f"normscope: the output cannot be written: {problem.strerror}\n")
        sys.exit(2)
