"""normscope repair."""

from pathlib import Path
from typing import Annotated, Any

import typer

from normscope.cli.app import Shown, names
from normscope.cli.inputs import Checkup
from normscope.errors import InputError


def repair(
    given: Checkup,
    show: Shown,
    out: Path,
    remedy: Annotated[str, typer.Option(show_default="those that fit what is found")] = "",
    force: bool = False,
    dry_run: bool = False,
) -> None:
    """Try remedies, let held-out data decide, write a new checkpoint.

    Example: normscope repair --model net.py:model --loader net.py:loader --out new.safetensors

    Args:
        out: Write the repaired weights here, as safetensors.
        remedy: Try these remedies, with commas.
        force: Keep a remedy that does not help, or that no data can judge.
        dry_run: Say what would be done; write nothing.
    """
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
    with show.bar(given.expected(data)) as bar:
        found = doctor.diagnose(
            network,
            model_name=name,
            data_name=data.name if data else "",
            on_progress=bar,
            **arguments,
        )
        done = doctor.repair(
            network,
            found,
            held_out=held_out,
            remedies=names(remedy),
            force=force,
            dry_run=dry_run,
            on_progress=bar,
            **arguments,
        )
    record = done.record
    show.present(found, record)
    if record.kept and not dry_run:
        if state is None:
            done.save(out)
        else:
            notes = {"normscope.repair": record.to_json()}
            write_weights(out, merged(state, network), notes)
        show.tell("cli.weights", path=out)
        for remedy_kept in ("split", "own_weight"):  # the file fits no model as it was
            if remedy_kept in record.kept:
                show.tell(f"doctor.repair.{remedy_kept}")
    else:
        show.tell("doctor.nothing_written")
    if not record.complete:
        show.tell("doctor.repair.stopped")
        raise typer.Exit(130)
    if found.fails("error") and not record.kept:
        raise typer.Exit(1)
