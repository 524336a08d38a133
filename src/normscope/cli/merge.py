"""normscope merge."""

from pathlib import Path
from typing import Annotated

import typer

from normscope.cli.app import Spoken, numbers
from normscope.cli.inputs import Key
from normscope.errors import InputError
from normscope.files import shown


def merge(
    show: Spoken,
    checkpoints: Annotated[list[Path], typer.Argument()],
    counts: str,
    out: Path,
    key: Key = None,
) -> None:
    """Merge checkpoints: average weights, pool statistics.

    Args:
        checkpoints: Checkpoints of one network: safetensors or weights-only files.
        counts: How many samples each checkpoint was trained on, as 800,200.
        out: Write the merged weights here, as safetensors.
    """
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
    show.tell("cli.weights", path=out)
