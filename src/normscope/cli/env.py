"""normscope env."""

import json
import sys

import typer

from normscope.cli.app import Printed


def env(
    show: Printed,
    warm: bool = False,
) -> None:
    """Print versions and settings, for the report of a problem.

    Args:
        warm: Also compile the CPU kernels now; later calls find them on disk.
    """
    from normscope.bench import allocator
    from normscope.bench import warm as build_ahead
    from normscope.environment import versions
    from normscope.kernels.cpu import build

    facts = versions()
    if warm:
        facts["warm"] = f"{build_ahead():.1f} s"
    facts["cpu kernels"] = build.explanation()
    facts["allocator"] = allocator.explanation()
    if show.as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        for name, value in facts.items():
            typer.echo(f"{name:14} {value}")
