"""The command line: parse, call, render, exit code. Every command is a library call, in a file.

Exit codes: 0 fine, 1 findings or a failed verification, 2 wrong use, 130 interrupted.
"""

import sys

from rich.console import Console

from normscope.cli import bench, convert, diagnose, env, explain, inspect, repair, report, train
from normscope.cli.app import app
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
        app()
    except NormscopeError as problem:
        if not problem.told:
            Console(stderr=True, highlight=False).print(
                f"normscope: {problem}", markup=False, soft_wrap=True
            )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
