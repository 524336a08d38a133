"""normscope env."""

import json
import sys
from typing import Annotated

import typer

from normscope.cli.app import Json


def env(
    warm: Annotated[
        bool, typer.Option("--warm", help="Build the CPU kernels ahead; kept on disk.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Versions and settings that matter for a report of a problem."""
    from normscope.bench import allocator
    from normscope.bench import warm as build_ahead
    from normscope.experiment.fit import environment
    from normscope.kernels.cpu import build

    facts = environment()
    if warm:
        facts["warm"] = f"{build_ahead():.1f} s"
    facts["cpu kernels"] = build.explanation()
    facts["allocator"] = allocator.explanation()
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        for name, value in facts.items():
            typer.echo(f"{name:14} {value}")
