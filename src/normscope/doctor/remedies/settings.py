"""Remedies for how layers are set."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from normscope.conversion import convert
from normscope.doctor.checks.buffers import USUAL_EPS
from normscope.doctor.checks.structure import biased_before
from normscope.doctor.evidence import GROUPS
from normscope.doctor.held_out import gain
from normscope.doctor.remedies import statistics
from normscope.doctor.remedies.base import RepairContext, Unfit
from normscope.errors import NormscopeError
from normscope.probe.compare import SURE
from normscope.probe.run import dropouts

WEIGHTS = (0.05, 0.1, 0.2, 0.5, 1.0)


def eval_mode(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Put every module into eval(), part by part: an overridden train() is not asked."""
    for module in context.model.modules():
        module.training = False
    return names


def momentum(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Set momentum to 1 - momentum (0.1 where that is none); the statistics stay."""
    for state in context.states(names):
        layer: Any = state.module
        other = round(1 - layer.momentum, 9)
        layer.momentum = other if 0 < other < 1 else 0.1
    return names


def momentum_and_statistics(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Do as `momentum`, with the statistics measured as in training, which it kept out."""
    measure = statistics.as_in_training if dropouts(context.model) else statistics.by_batch
    measure(context, ())
    return momentum(context, names)


def choose_eps(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Choose the eps among the usual ones under which the model does best."""
    layers: list[Any] = [state.module for state in context.states(names)]
    was = [layer.eps for layer in layers]

    def use(eps: float) -> None:
        for layer in layers:
            layer.eps = eps

    best = _best(context, USUAL_EPS, use)
    for layer, old in zip(layers, was, strict=True):
        layer.eps = old if best is None else best
    if best is None:
        usual = ", ".join(f"{e:g}" for e in USUAL_EPS)
        raise Unfit(f"no other eps of {usual} does better by labels, a loss or a metric")
    return names


def weigh_samples(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Give each sample's own statistics a weight in eval(): 1 where training had one per batch."""
    layers = convert(context.model, "evalnorm", own_weight=0.0, partial=True).changed
    found: list[Any] = [context.model.get_submodule(change.name) for change in layers]

    def use(weight: float) -> None:
        for layer in found:
            layer.own_weight = weight

    best = _best(context, WEIGHTS, use)
    if best is None:
        raise Unfit("no weight of a sample's own statistics does better")
    use(best)
    return tuple(change.name for change in layers)


def _best(
    context: RepairContext, values: Sequence[float], use: Callable[[float], None]
) -> float | None:
    """Find the value with which the model does best beyond chance; None: as it is."""
    judge = context.chooser()
    best, now = None, judge.evaluate(context.model)
    for value in values:
        use(value)
        other = judge.evaluate(context.model)
        sure = gain(now, other)
        if sure > SURE or (math.isnan(sure) and other.score.gap < 0.9 * now.score.gap):
            best, now = value, other
    return best


def freeze(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Put frozen batch norm in the place of layers that are frozen by half."""
    for state in context.states(names):
        layer: Any = state.module
        if hasattr(layer, "track_running_stats"):
            layer.track_running_stats = True
    try:
        convert(context.model, "frozen", only=names, partial=True)
    except NormscopeError as problem:
        raise Unfit(str(problem)) from problem
    return names


def freeze_anew(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Do as `freeze`, with the statistics of the data."""
    statistics.by_batch(context, ())
    return freeze(context, names)


def fold_bias(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Store running_mean - bias, and no bias: the same function in both modes."""
    done = []
    with torch.no_grad():
        for _, linear, name, norm in biased_before(context.model):
            assert linear.bias is not None, "that is what they were found for"
            if norm.running_mean is not None:
                norm.running_mean -= linear.bias.to(norm.running_mean.dtype)
            linear.bias = None
            done.append(name)
    if not done:
        raise Unfit("no linear map with a bias stands directly before a batch norm")
    return tuple(done)


def domains(context: RepairContext, names: tuple[str, ...]) -> tuple[str, ...]:
    """Keep one set of statistics per domain; the scale and shift stay shared."""
    loader = context.data()
    ids = [b.condition for b in loader.read(context.part) if b.condition is not None]
    if not ids:
        raise Unfit("it needs the domain of each sample, as the third entry of a batch")
    number = int(max(int(i.max()) for i in ids)) + 1
    if number > GROUPS:
        raise Unfit(f"domains are numbered up to {number - 1}; number them from 0 to {GROUPS - 1}")
    try:
        done = convert(
            context.model, "conditional", num_conditions=number, affine="shared",
            missing="pooled", partial=True,
        )  # fmt: skip
    except NormscopeError as problem:
        raise Unfit(str(problem)) from problem
    context.forget()  # groups are measured together, each for itself
    try:
        statistics.sequential(context, ())
    finally:
        context.forget()
    return tuple(change.name for change in done.changed)
