"""Remedies for stored statistics."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normscope import probe
from normscope.doctor.adapt import adapt
from normscope.doctor.calls import split
from normscope.doctor.checks.base import broken
from normscope.doctor.recalibrate import chosen
from normscope.doctor.remedies.base import RepairContext, Streams, Unfit
from normscope.doctor.state import LayerState, of_model
from normscope.moments import drift
from normscope.probe.batches import HALF
from normscope.probe.compare import Goal
from normscope.probe.run import NormRun, dropouts
from normscope.probe.stream import population_of

Statistics = tuple[Tensor, Tensor]  # mean and unbiased variance
FAR, LITTLE = 3.0, 0.1  # times the usual drift; a drift that is none, in standard deviations
PRIOR = 16  # samples that the source statistics count for, where data in use differ
SWEEPS = 2  # over the data, until layers agree with what those before them put out


def correct_cold(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Take what is left of the start (0, 1) out of the running statistics; no data.

    mean <- mean / (1 - w),   var <- (var - w) / (1 - w),   w = (1 - momentum)^tracked
    """
    done = []
    for state in context.states(names):
        corrected = state.corrected()
        if corrected is not None:
            write(state, *corrected)
            done.append(state.name)
    if not done:
        raise Unfit("the statistics cannot have started at (0, 1) with this momentum")
    return tuple(done)


def by_batch(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Store statistics of the data, layers before normalising by the batch, as in training."""
    return _written(context, names, _population(context.measured()))


def as_in_training(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Do as `by_batch`, with dropout on: what a long running average would hold."""
    if not dropouts(context.model):
        raise Unfit("the model has no dropout; the statistics are those measured without")
    return _written(context, names, _population(context.measured(dropout=True)))


def averaged(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Store means over batches of the batches' statistics: what training normalised with."""
    calls = context.measured()
    if any(len(streams) > 1 for streams in calls.values()):
        raise Unfit("a layer runs more than once in a forward")
    return _written(context, names, {n: streams[0].per_batch() for n, streams in calls.items()})


def sequential(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Store statistics of the data, layers before normalising with their new ones, as in use.

    From `by_batch` in SWEEPS passes: each layer is measured behind the last ones.
    """
    layers, _ = chosen(context.model, ())
    found = _population(context.measured())
    wanted = set(names) & set(layers) or set(layers)
    for _ in range(SWEEPS):
        run = NormRun(layers, stored={n: s for n, s in found.items() if n in wanted})
        with probe.preserved(context.model), run.active():
            for batch in context.data().read(context.part):
                run.run(context.data(), context.model, batch)
        found |= {n: s for n, s in _population(run.streams).items() if n in wanted}
    return _written(context, names, found)


def outliers(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Do as `sequential`, on the layers that are off far more than most; the others stay.

    Where one part of a model has the statistics of other data, the rest is right as it is.
    """
    found = _population(context.measured())
    away = {
        s.name: float(drift(s.mean, s.var, *(v.cpu() for v in found[s.name])).pow(2).nanmean())
        for s in context.states(())
        if s.name in found and found[s.name][0].shape == s.mean.shape
    }
    usual = sorted([*away.values(), 0.0])[(len(away) + 1) // 2]
    far = tuple(name for name, size in away.items() if size > FAR**2 * max(usual, LITTLE**2))
    if not far or 2 * len(far) > len(away):
        raise Unfit("no few layers are off far more than most")
    return sequential(context, far)


def everywhere(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Do as `sequential`, on all layers: those behind a faulty one learned from its output."""
    if not names:
        raise Unfit("all layers are concerned already")
    return sequential(context, ())


def copy_buffers(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Copy the statistics of the reference model, layer by layer."""
    if context.reference is None:
        raise Unfit("it needs the model that this one follows (reference)")
    followed = {s.name: s for s in of_model(context.reference)}
    found = {n: (s.mean, s.var) for n, s in followed.items()}
    return _written(context, names, found)


def adapt_statistics(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Mix the statistics with those of live data that are not held out; use no labels."""
    if context.live is None:
        raise Unfit("it needs data as in use (live)")
    some = list(context.live.read("first"))
    done = adapt(context.model, context.live.of(some), prior=PRIOR)
    return tuple(state.name for state in context.states(())) if done.samples else ()


def split_calls(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Keep a set of statistics for every call of a layer that runs several times in a forward."""
    loader, model = context.data(), context.model
    wanted = {s.name for s in context.states(names)}
    streams = {n: c for n, c in context.measured().items() if n in wanted and len(c) > 1}
    if not streams:
        raise Unfit("no layer runs more than once in a forward")
    calls = {name: len(found) for name, found in streams.items()}
    batch = next(loader.read(context.part))

    def values() -> Tensor:
        with probe.preserved(model):
            return NormRun({}, measured=set()).answer(loader, model, batch, Goal()).values

    before = values()
    split(model, calls)
    if not torch.equal(before, values()):
        raise Unfit("the copies do not compute what the layer did; the model calls it elsewhere")
    done = tuple(f"{name}.calls.{i}" for name, number in calls.items() for i in range(number))
    totals = [stream.total() for name in calls for stream in streams[name]]
    states = {s.name: s for s in context.states(done)}
    for name, total in zip(done, totals, strict=True):
        write(states[name], total.mean, total.var(correction=1))
    return done


def repair_channels(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Store statistics of the data for those channels only whose stored ones are not finite."""

    def pick(state: LayerState, new: Statistics) -> Statistics:
        bad = broken(state)
        return torch.where(bad, new[0], state.mean), torch.where(bad, new[1], state.var)

    sick = tuple(s.name for s in context.states(names) if bool(broken(s).any()))
    return _written(context, sick, _population(context.measured()), pick)


def widen(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Keep these layers in float32, scale and shift too: torch's kernels take one dtype for all."""
    for state in context.states(names):
        assert state.module is not None, "of a model"
        for table in (state.module._buffers, state.module._parameters):
            for key, value in table.items():
                if value is not None and value.dtype in HALF:
                    wide: Any = value.detach().float()
                    if isinstance(value, nn.Parameter):
                        wide = nn.Parameter(wide, value.requires_grad)
                    table[key] = wide
    return names


def write(state: LayerState, mean: Tensor, var: Tensor) -> None:
    """Write new statistics, in place."""
    assert state.module is not None, "of a model"
    with torch.no_grad():
        for name, value in (("running_mean", mean), ("running_var", var)):
            buffer = state.module._buffers[name]
            assert buffer is not None, "a layer with statistics"
            buffer.copy_(value)


def _population(streams: Streams) -> dict[str, Statistics]:
    return {name: population_of(calls) for name, calls in streams.items()}


def _written(
    context: RepairContext,
    names: tuple[str, ...],
    found: Mapping[str, Statistics],
    pick: Callable[[LayerState, Statistics], Statistics] = lambda state, new: new,
) -> tuple[str, ...]:
    """Write new statistics, where they are known, into these layers; into all without names."""
    done = []
    for state in context.states(()):
        if state.name not in found or (names and state.name not in names):
            continue
        mean, var = (value.cpu() for value in found[state.name])
        if mean.shape != state.mean.shape:
            continue
        if not bool(mean.isfinite().all()):
            raise Unfit(f"the input of {state.name} is not finite")
        known = var.isfinite()  # of one value there is none
        new = torch.where(known, mean, state.mean), torch.where(known, var, state.var)
        write(state, *pick(state, new))
        done.append(state.name)
    if not done:
        _, left = chosen(context.model)
        why = next(
            (why for name, why in left.items() if not names or name in names),
            "no forward runs them",
        )
        raise Unfit(f"these layers cannot be measured: {why}")
    return tuple(done)
