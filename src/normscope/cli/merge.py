"""normscope merge."""

from pathlib import Path
from typing import Annotated

import typer

from normscope.cli.app import LOCALE, LangOption, known_language, numbers, tell
from normscope.cli.inputs import Key
from normscope.errors import InputError
from normscope.files import shown


def merge(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Of one network: safetensors or weights-only files.")
    ],
    counts: Annotated[
        str, typer.Option(help="Samples behind each, with commas, as 800,200; at least 2 each.")
    ],
    out: Annotated[Path, typer.Option(help="Write the merged weights here, as safetensors.")],
    key: Key = None,
    lang: LangOption = LOCALE,
) -> None:
    """Merge checkpoints of one network: weights averaged, statistics by the total variance."""
    language = known_language(lang)
    many = numbers("--counts", counts)
    if len(checkpoints) < 2:
        raise InputError("one checkpoint alone has nothing to be merged with; name two or more")
    if len(many) != len(checkpoints):
        raise InputError(
            f"--counts has {len(many)} numbers for {len(checkpoints)} checkpoints; one each is "
            "needed, as --counts 800,200"
        )
    if any(out.resolve() == path.resolve() for path in checkpoints):
        raise InputError(f"--out is one of the checkpoints ({shown(out)}); name another file")
    import json

    from normscope.doctor import merge_statistics
    from normscope.probe.load import read_weights, write_weights

    merged = merge_statistics([read_weights(path, key) for path in checkpoints], many)
    notes = {"checkpoints": [path.name for path in checkpoints], "counts": many}
    write_weights(out, merged, {"normscope.merge": json.dumps(notes)})
    tell(language, "cli.weights", path=out)
