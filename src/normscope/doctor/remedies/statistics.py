"""Remedies for stored statistics."""

from collections.abc import Mapping

import torch
from torch import Tensor

from normscope import probe
from normscope.doctor.calls import split
from normscope.doctor.checks.base import broken
from normscope.doctor.outputs import scores_of
from normscope.doctor.passage import dropouts, tensors_of
from normscope.doctor.recalibrate import Propagate, chosen, measured
from normscope.doctor.remedies.base import Patient, Unfit
from normscope.doctor.state import LayerState
from normscope.doctor.tally import merged


def correct_cold(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """Take what is left of the start (0, 1) out of the running statistics; no data.

    mean <- mean / (1 - w),   var <- (var - w) / (1 - w),   w = (1 - momentum)^tracked
    """
    done = []
    for state in patient.states(names):
        corrected = state.corrected()
        if corrected is not None:
            write(state, *corrected)
            done.append(state.name)
    if not done:
        raise Unfit("the statistics cannot have started at (0, 1) with this momentum")
    return tuple(done)


def by_batch(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """Statistics of the data, layers before normalising by the batch, as in training."""
    return _again(patient, names, "batch")


def as_in_training(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """As `by_batch`, with dropout on: what a long running average would hold."""
    if not dropouts(patient.model):
        raise Unfit("the model has no dropout; the statistics are those measured without")
    return _again(patient, names, "batch", dropout=True)


def sequential(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """Statistics of the data, layers before normalising with their new ones, as in use."""
    return _again(patient, names, "sequential")


def everywhere(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """As `sequential`, of all layers: those behind a sick one learned from what it put out."""
    return _again(patient, (), "sequential")


def split_calls(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """A set of statistics for every call of a layer that runs several times in a forward."""
    loader, model = patient.data(), patient.model
    layers = {s.name: s.module for s in patient.states(names) if s.module is not None}
    tallies, _ = measured(model, loader, layers, "batch", patient.part)
    calls = {name: len(found) for name, found in tallies.items() if len(found) > 1}
    if not calls:
        raise Unfit("no layer runs more than once in a forward")
    batch = next(loader.read(patient.part))
    with probe.untouched(model):
        before = scores_of(loader.run(model, batch), batch.size)
    split(model, calls)
    with probe.untouched(model):
        after = scores_of(loader.run(model, batch), batch.size)
    if not torch.equal(before, after):
        raise Unfit("the copies do not compute what the layer did; the model calls it elsewhere")
    done = tuple(f"{name}.calls.{i}" for name, number in calls.items() for i in range(number))
    totals = [tally.total() for name in calls for tally in tallies[name]]
    states = {s.name: s for s in patient.states(done)}
    for name, total in zip(done, totals, strict=True):
        write(states[name], total.mean, total.var(correction=1))
    return done


def mend_channels(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """Statistics of the data, of those channels only whose stored ones are not finite."""
    states = {s.name: s for s in patient.states(names) if bool(broken(s).any())}
    found = _measured(patient, tuple(states), "batch")
    for name, (mean, var) in found.items():
        bad = broken(states[name])
        write(
            states[name],
            torch.where(bad, mean, states[name].mean),
            torch.where(bad, var, states[name].var),
        )
    return tuple(found)


def widen(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """Running statistics in float32."""
    for state in patient.states(names):
        assert state.module is not None, "of a model"
        for key in ("running_mean", "running_var"):
            buffer = state.module._buffers[key]
            if buffer is not None and buffer.dtype in (torch.float16, torch.bfloat16):
                state.module._buffers[key] = buffer.float()
    return names


def write(state: LayerState, mean: Tensor, var: Tensor) -> None:
    """New statistics, in place."""
    assert state.module is not None, "of a model"
    old_mean, old_var = tensors_of(state.module)
    with torch.no_grad():
        old_mean.copy_(mean)
        old_var.copy_(var)


def _again(
    patient: Patient, names: tuple[str, ...], propagate: Propagate, *, dropout: bool = False
) -> tuple[str, ...]:
    found = _measured(patient, names, propagate, dropout=dropout)
    states = {s.name: s for s in patient.states(tuple(found))}
    for name, (mean, var) in found.items():
        write(states[name], mean, var)
    return tuple(found)


def _measured(
    patient: Patient, names: tuple[str, ...], propagate: Propagate, *, dropout: bool = False
) -> Mapping[str, tuple[Tensor, Tensor]]:
    loader = patient.data()
    layers, _ = chosen(patient.model, ())
    if names:
        layers = {name: layer for name, layer in layers.items() if name in names}
    tallies, order = measured(
        patient.model, loader, layers, propagate, patient.part, dropout=dropout
    )
    states = {s.name: s for s in patient.states(tuple(order))}
    found = {}
    for name in order:
        total = merged([tally.total() for tally in tallies[name]])
        mean, var = total.mean.cpu(), total.var(correction=1).cpu()
        known = var.isfinite()
        if not bool(mean.isfinite().all()):
            raise Unfit(f"the input of {name} is not finite")
        state = states[name]
        found[name] = (
            torch.where(known, mean, state.mean), torch.where(known, var, state.var)
        )  # fmt: skip
    if not found:
        raise Unfit("no forward runs these layers")
    return found
