"""The remedy for data in use that are not those of training."""

from normscope.doctor.adapt import adapt
from normscope.doctor.loader import Loader
from normscope.doctor.remedies.base import Patient, Unfit

PRIOR = 16  # samples that the source statistics count for


def adapt_statistics(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """Statistics mixed with those of the live data that are not held out; labels are not used."""
    if patient.live is None:
        raise Unfit("it needs data as in use (live)")
    given = [batch.given for batch in patient.live.read("first")]
    done = adapt(patient.model, Loader(given, patient.live.forward), prior=PRIOR)
    return tuple(state.name for state in patient.states(())) if done.samples else ()
