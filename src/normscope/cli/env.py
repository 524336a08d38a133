"""normscope env."""

import json
import sys

import typer

from normscope.cli.app import Json


def env(as_json: Json = False) -> None:
    """Versions and settings that matter for a report of a problem."""
    from normscope.train.fit import environment

    facts = environment()
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        for name, value in facts.items():
            typer.echo(f"{name:14} {value}")
