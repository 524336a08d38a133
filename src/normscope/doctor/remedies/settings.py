"""Remedies for how layers are set."""

from typing import Any

import torch

from normscope.conversion import convert
from normscope.doctor.checks.structure import biased_before
from normscope.doctor.passage import dropouts
from normscope.doctor.remedies import statistics
from normscope.doctor.remedies.base import Patient, Unfit
from normscope.errors import NormscopeError

EPS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # what libraries ship; torch 1e-5, Keras 1e-3, ViTs 1e-6


def eval_mode(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """Every module into eval(), part by part: an overridden train() is not asked."""
    for module in patient.model.modules():
        module.training = False
    return names


def momentum(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """1 - momentum (0.1 where that is none); the statistics stay."""
    for state in patient.states(names):
        layer: Any = state.module
        other = round(1 - layer.momentum, 9)
        layer.momentum = other if 0 < other < 1 else 0.1
    return names


def momentum_and_statistics(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """As `momentum`, and the statistics measured as in training, which the momentum kept out."""
    measure = statistics.as_in_training if dropouts(patient.model) else statistics.by_batch
    measure(patient, ())
    return momentum(patient, names)


def choose_eps(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """The eps among the usual ones under which the labels come out best."""
    if patient.score is None:
        raise Unfit("it needs data with labels")
    layers: list[Any] = [state.module for state in patient.states(names)]
    was = layers[0].eps
    best, least = was, patient.score().loss
    if least != least:
        raise Unfit("it needs data with labels")
    for eps in EPS:
        for layer in layers:
            layer.eps = eps
        loss = patient.score().loss
        if loss < least * 0.99:
            best, least = eps, loss
    for layer in layers:
        layer.eps = best
    if best == was:
        raise Unfit(f"no other eps of {', '.join(f'{e:g}' for e in EPS)} does better")
    return names


def freeze(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """Frozen batch norm in the place of layers that are frozen by half."""
    for state in patient.states(names):
        layer: Any = state.module
        if hasattr(layer, "track_running_stats"):
            layer.track_running_stats = True
    try:
        convert(patient.model, "frozen", only=names, partial=True)
    except NormscopeError as problem:
        raise Unfit(str(problem)) from problem
    return names


def freeze_anew(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """As `freeze`, with the statistics of the data."""
    statistics.by_batch(patient, ())
    return freeze(patient, names)


def fold_bias(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """running_mean - bias, and no bias: the same function in both modes."""
    done = []
    with torch.no_grad():
        for _, linear, name, norm in biased_before(patient.model):
            assert linear.bias is not None, "that is what they were found for"
            if norm.running_mean is not None:
                norm.running_mean -= linear.bias.to(norm.running_mean.dtype)
            linear.bias = None
            done.append(name)
    if not done:
        raise Unfit("no linear map with a bias stands directly before a batch norm")
    return tuple(done)


def domains(patient: Patient, names: tuple[str, ...]) -> tuple[str, ...]:
    """One set of statistics per domain; the scale and shift stay shared."""
    loader = patient.data()
    ids = [b.condition for b in loader.read(patient.part) if b.condition is not None]
    if not ids:
        raise Unfit("it needs the domain of each sample, as the third entry of a batch")
    number = int(max(int(i.max()) for i in ids)) + 1
    try:
        done = convert(
            patient.model, "conditional", num_conditions=number, affine="shared",
            missing="pooled", partial=True,
        )  # fmt: skip
    except NormscopeError as problem:
        raise Unfit(str(problem)) from problem
    # every domain in a pass of its own kind: groups are measured together, each for itself
    statistics.everywhere(patient, ())
    return tuple(change.name for change in done.changed)
