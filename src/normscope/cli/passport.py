"""normscope passport."""

from typing import Annotated

import typer

from normscope.cli.app import Shown
from normscope.cli.inputs import Inputs
from normscope.errors import InputError
from normscope.files import shown


def passport(
    show: Shown,
    given: Inputs,
    write: bool = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
) -> None:
    """Write a checkpoint's norm settings down in it, or check them.

    Args:
        write: Make the passport of --model and write it to --weights.
        batch_size: Samples per batch of --data; the same as in training is best.
    """
    given.check()
    if given.model is None and given.weights is None:
        raise InputError("name a checkpoint (--weights), a model (--model), or both")
    if write and (given.model is None or given.weights is None):
        raise InputError("--write needs --model, which says eps and momentum, and --weights")
    from normscope import equivalence
    from normscope.probe.load import read_weights
    from normscope.records import Passport, PassportCheck

    network = data = None
    if given.model is not None:
        network, _, data = given.loaded(batch_size)
    own = None
    if given.weights is not None and not write:
        own = equivalence.read_passport(given.weights)
    record: Passport | PassportCheck
    if own is not None:
        if data is not None:
            raise InputError(
                f"{shown(given.weights or '')} has a passport; leave the data out to hold the "
                "model against it, or give --write to make a new one"
            )
        assert given.weights is not None, "it has a passport"
        subject = network if network is not None else read_weights(given.weights, given.key)
        found = equivalence.compare_to_passport(subject, own)
        record = PassportCheck(
            subject=given.model or str(given.weights), passport=own, mismatches=tuple(found)
        )
    elif network is None:
        raise InputError(
            f"{shown(given.weights or '')} has no passport, in it or beside it; name its model "
            "(--model) to make one, and --write it"
        )
    else:
        record = equivalence.passport(
            network, None if data is None else given.reader(network)(data.train)
        )
    show.present(record)
    if write:
        assert given.weights is not None and isinstance(record, Passport)  # noqa: PT018
        path = equivalence.write_passport(given.weights, record)
        show.tell("passport.written", path=path)
    if isinstance(record, PassportCheck) and not record.ok:
        raise typer.Exit(1)
