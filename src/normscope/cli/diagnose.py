"""normscope diagnose."""

from pathlib import Path
from typing import Annotated

import typer

from normscope.cli.app import OUTPUT, Shown, names
from normscope.cli.inputs import Checkup
from normscope.files import write_whole
from normscope.records import Severity


def diagnose(
    given: Checkup,
    show: Shown,
    select: Annotated[str, typer.Option(show_default="all")] = "",
    fail_on: Severity = "error",
    sarif: Annotated[Path | None, typer.Option(rich_help_panel=OUTPUT)] = None,
    junit: Annotated[Path | None, typer.Option(rich_help_panel=OUTPUT)] = None,
) -> None:
    """Find why a model is worse in eval(), and what to do.

    Example: normscope diagnose --model net.py:model --loader net.py:loader

    Args:
        select: Run only checks whose codes begin so, as NS00,NS014.
        fail_on: The mildest finding that ends with exit code 1, for use in CI.
        sarif: Also write the findings as SARIF 2.1.0, for code scanning.
        junit: Also write the findings as JUnit XML, for CI.
    """
    given.check()
    from normscope.doctor import diagnose as look
    from normscope.probe.load import read_weights

    network = data = None
    if given.model is None:
        assert given.weights is not None, "checked before"
        content, name = read_weights(given.weights, given.key), str(given.weights)
    else:
        network, name, data = given.loaded(given.batch_size)
    with show.bar(given.expected(data)) as bar:
        record = look(
            content if network is None else network,
            select=names(select),
            model_name=name,
            data_name=data.name if data else "",
            passport=given.passport(),
            on_progress=bar,
            **given.arguments(network, data),
        )
    if sarif is not None or junit is not None:
        from normscope.report import machine

        if sarif is not None:
            write_whole(sarif, machine.sarif(record, show.lang))
        if junit is not None:
            write_whole(junit, machine.junit(record, show.lang))
    show.present(record)
    if record.fails(fail_on):
        raise typer.Exit(1)
