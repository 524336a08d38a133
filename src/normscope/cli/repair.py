"""normscope repair."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from normscope.cli.app import (
    LOCALE,
    Console,
    Html,
    Json,
    Key,
    LangOption,
    Model,
    known_language,
    names,
    progress_bar,
    tell,
)
from normscope.cli.patient import (
    BatchSize,
    Momentum,
    check_named,
    in_training,
    in_use,
    model_and_data,
    write_reports,
)
from normscope.errors import InputError
from normscope.files import json_text
from normscope.records import plain


def repair(
    out: Annotated[Path, typer.Option(help="Write the repaired weights here, as safetensors.")],
    model: Model = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="safetensors or a weights-only file; alone, with --force, it serves."),
    ] = None,
    key: Key = None,
    data: Annotated[
        str | None,
        typer.Option(help="As for train: the training part measures, the test part judges."),
    ] = None,
    loader: Annotated[
        str | None,
        typer.Option(help="Batches as in training: path/file.py:factory; 30 % of it judge."),
    ] = None,
    live: Annotated[
        str | None, typer.Option(help="Data as in use, for the remedy adapt; as --data.")
    ] = None,
    batch_size: BatchSize = 64,
    momentum: Momentum = 0.1,
    remedy: Annotated[
        str, typer.Option(help="Names with commas, instead of those that findings name.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Keep what does not help.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report only.")] = False,
    html: Html = None,
    as_json: Json = False,
    lang: LangOption = LOCALE,
) -> None:
    """Try the remedies that fit, let held-out samples decide, and write a new checkpoint."""
    language = known_language(lang)
    check_named(model, weights, data, loader, live)
    if weights is not None and out.resolve() == weights.resolve():
        raise InputError(f"--out is the checkpoint itself ({weights}); name another file")
    if not data and not loader and not force and not (model and Path(model).is_dir()):
        raise InputError(
            "nothing can judge a repair without data; give --data or --loader, or --force "
            "remedies that need none"
        )
    from normscope import doctor
    from normscope.doctor.checkpoint import merged, skeleton
    from normscope.probe.load import read_weights, write_weights

    state = None
    if model is None:
        assert weights is not None, "asked before"
        state = read_weights(weights, key)
        network, source, name = skeleton(state, momentum), None, str(weights)
    else:
        network, source, name = model_and_data(model, weights, data, key)
    batches = in_training(source, loader, batch_size)
    held_out = None
    if source is not None and loader is None:
        from normscope.train.data import batches as test_batches

        held_out = list(test_batches(source, 256))
    data_name = loader or (source.name if source is not None else "")
    used = in_use(live, batch_size)
    with progress_bar(as_json) as show:
        found = doctor.diagnose(
            network,
            batches,
            live=used,
            model_name=name,
            data_name=data_name,
            on_progress=show,
        )
        done = doctor.repair(
            network,
            found,
            batches,
            held_out=held_out,
            live=used,
            remedies=names(remedy),
            force=force,
            dry_run=dry_run,
            on_progress=show,
        )
    record = done.record
    write_reports(found, record, language, html)
    if as_json:
        both = {"kind": "checkup", "diagnosis": plain(found), "repair": plain(record)}
        sys.stdout.write(json_text(both) + "\n")
    else:
        from normscope.report.text import print_diagnosis, print_repair

        print_diagnosis(found, language, Console())
        print_repair(record, language, Console())
    if html is not None:
        tell(language, "cli.page", path=html)
    if record.kept and not dry_run:
        if state is None:
            done.save(out)
        else:
            notes = {"normscope.repair": record.to_json()}
            write_weights(out, merged(state, network), notes)
        tell(language, "cli.weights", path=out)
        if "split" in record.kept:
            tell(language, "doctor.repair.split")
    else:
        tell(language, "doctor.nothing_written")
    if not record.complete:
        tell(language, "doctor.repair.stopped")
        raise typer.Exit(130)
    if found.fails("error") and not record.kept:
        raise typer.Exit(1)
