"""normscope env."""

import json
import sys
from typing import Annotated

import typer

from normscope.cli.app import Json


def env(
    warm: Annotated[
        bool, typer.Option("--warm", help="Compile the CPU kernels ahead; kept on disk.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Versions and settings that matter for a report of a problem."""
    from normscope.train.fit import environment

    facts = environment()
    if warm:
        from normscope.bench import warm as compile_ahead

        facts["warm"] = f"{compile_ahead():.1f} s"
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        for name, value in facts.items():
            typer.echo(f"{name:14} {value}")
