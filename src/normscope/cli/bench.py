"""normscope bench."""

from typing import Annotated

import typer

from normscope.cli.app import Shown, names


def bench(
    show: Shown,
    quick: bool = False,
    only: Annotated[str, typer.Option(show_default="all")] = "",
    repeats: Annotated[
        int | None, typer.Option(min=1, show_default="20, or 5 with --quick")
    ] = None,
) -> None:
    """Measure speed, memory and accuracy of the kernels.

    Args:
        quick: Measure fewer settings, fewer times: about a minute.
        only: Only these parts, with commas: models, shapes, formats, dtypes, threads,
            groups, sweep, inference, network, accuracy.
        repeats: Measure each case at least so often; the median is shown.
    """
    from normscope.bench import measure

    with show.bar() as progress:
        record = measure(names(only), quick=quick, repeats=repeats, on_progress=progress)
    show.present(record)
    if not record.complete:
        show.tell("cli.bench.stopped")
        raise typer.Exit(130)
