"""normscope repair."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from normscope.cli.app import (
    LOCALE,
    Html,
    Json,
    LangOption,
    known_language,
    names,
    present,
    progress_bar,
    tell,
)
from normscope.cli.inputs import Checkup
from normscope.cli.options import with_options
from normscope.errors import InputError
from normscope.records import CHECKUP


@with_options(Checkup)
def repair(
    given: Checkup,
    out: Annotated[Path, typer.Option(help="Write the repaired weights here, as safetensors.")],
    remedy: Annotated[
        str,
        typer.Option(
            help="Try these remedies, with commas, instead of those that fit the findings."
        ),
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Keep what does not help, or what no data can judge.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    html: Html = None,
    as_json: Json = False,
    lang: LangOption = LOCALE,
) -> None:
    """Try the remedies that fit, let held-out samples decide, and write a new checkpoint."""
    language = known_language(lang)
    given.check()
    if given.weights is not None and out.resolve() == given.weights.resolve():
        raise InputError(f"--out is the checkpoint itself ({given.weights}); name another file")
    if not given.has_data and not force:
        raise InputError(
            "nothing can judge a repair without data; give --data or --loader, or --force "
            "remedies that need none"
        )
    from normscope import doctor
    from normscope.doctor.checkpoint import merged, skeleton
    from normscope.probe.load import read_weights, write_weights

    state = data = None
    if given.model is None:
        assert given.weights is not None, "checked before"
        state = read_weights(given.weights, given.key)
        network, name = skeleton(state, **given.of_training()), str(given.weights)
    else:
        network, name, data = given.loaded(given.batch_size)
    arguments = given.arguments(network, data)
    held_out: Any = None  # else part of the batches
    if data is not None and data.test is not None:
        held_out = given.reader(network)(data.test)
    with progress_bar(as_json, given.expected(data)) as show:
        found = doctor.diagnose(
            network,
            model_name=name,
            data_name=data.name if data else "",
            on_progress=show,
            **arguments,
        )
        done = doctor.repair(
            network,
            found,
            held_out=held_out,
            remedies=names(remedy),
            force=force,
            dry_run=dry_run,
            on_progress=show,
            **arguments,
        )
    record = done.record
    from normscope.report.diagnosis import document

    parts = {part.kind: json.loads(part.to_json()) for part in (found, record)}
    both = {"kind": CHECKUP, **parts}
    present(both, document(found, record), language, as_json=as_json, html=html)
    if record.kept and not dry_run:
        if state is None:
            done.save(out)
        else:
            notes = {"normscope.repair": record.to_json()}
            write_weights(out, merged(state, network), notes)
        tell(language, "cli.weights", path=out)
        for remedy_kept in ("split", "own_weight"):  # the file fits no model as it was
            if remedy_kept in record.kept:
                tell(language, f"doctor.repair.{remedy_kept}")
    else:
        tell(language, "doctor.nothing_written")
    if not record.complete:
        tell(language, "doctor.repair.stopped")
        raise typer.Exit(130)
    if found.fails("error") and not record.kept:
        raise typer.Exit(1)
