"""The remedy for data in use that are not those of training."""

from normscope.doctor.adapt import adapt
from normscope.doctor.remedies.base import RepairContext, Unfit

PRIOR = 16  # samples that the source statistics count for


def adapt_statistics(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Mix the statistics with those of live data that are not held out; use no labels."""
    if context.live is None:
        raise Unfit("it needs data as in use (live)")
    some = list(context.live.read("first"))
    done = adapt(context.model, context.live.of(some), prior=PRIOR)
    return tuple(state.name for state in context.states(())) if done.samples else ()
