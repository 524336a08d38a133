"""Two inspections side by side: checkpoints, epochs or domains."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from normscope.errors import InputError
from normscope.moments import drift
from normscope.records import (
    Difference,
    Inspection,
    Layer,
    LayerDifference,
    Numbers,
    StageDifference,
)

Array = NDArray[np.float64]


def compare(first: Inspection, second: Inspection) -> Difference:
    """List what differs between two inspections, for every layer that both have.

    How far a layer's input moved is, per channel, the Wasserstein-2 distance of two Gaussians in
    standard deviations of the first, averaged over the channels that vary:

        sqrt((mean' - mean)^2 + (std' - std)^2) / std

    with the mean and variance over all classes. `statistics` is the same of the running ones.

    Args:
        first: the one to compare with.
        second: of a model whose layers have the same names and channels.

    Raises:
        InputError: other classes, no layer in common, or one of another width.

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    >>> batches = [(torch.randn(32, 4), torch.arange(32) % 2) for _ in range(4)]
    >>> before = normscope.inspect(net, batches)
    >>> with torch.no_grad():
    ...     net[1].weight *= 2
    >>> after = normscope.inspect(net, batches)
    >>> normscope.compare(before, after).layers[0].gamma
    1.0
    """
    if first.classes != second.classes:
        raise InputError(
            f"the first has {len(first.classes)} classes, the second {len(second.classes)}, or "
            "their names differ; compare inspections over the same classes"
        )
    one, two = ({layer.name: layer for layer in i.layers} for i in (first, second))
    if any(not len(layer.firing) for layer in (*first.layers, *second.layers)):
        raise InputError(
            "one of the records was read without its tables by class; "
            "keep the .tables.safetensors file beside it"
        )
    shared = [name for name in one if name in two]
    if not shared:
        raise InputError("no layer is in both inspections; compare one architecture with itself")
    for name in shared:
        if one[name].channels != two[name].channels:
            raise InputError(
                f"layer {name} has {one[name].channels} channels in the first and "
                f"{two[name].channels} in the second; compare one architecture with itself"
            )
    return Difference(
        models=(first.model, second.model),
        data=(first.data, second.data),
        images=(sum(first.counts), sum(second.counts)),
        classes=first.classes,
        layers=tuple(
            _layer(one[name], two[name], np.array(first.counts), np.array(second.counts))
            for name in shared
        ),
        only_first=tuple(name for name in one if name not in two),
        only_second=tuple(name for name in two if name not in one),
    )


def _layer(a: Layer, b: Layer, counts: Array, others: Array) -> LayerDifference:
    change = np.abs(b.firing - a.firing)
    largest = int(np.nan_to_num(change, nan=-1).argmax())
    gamma = np.array([a.gamma, b.gamma])
    stages = {stage.name: stage for stage in b.stages}
    return LayerDifference(
        name=a.name,
        stages=tuple(
            StageDifference(
                name=s.name,
                eta2=(s.eta2_mean, stages[s.name].eta2_mean),
                lda=(s.lda_fraction, stages[s.name].lda_fraction),
                nearest_mean=(s.nearest_mean_accuracy, stages[s.name].nearest_mean_accuracy),
                separation=(s.separation, stages[s.name].separation),
                condition=(s.condition, stages[s.name].condition),
            )
            for s in a.stages
            if s.name in stages
        ),
        moved=_moved(*_pooled(a, counts), *_pooled(b, others)),
        statistics=_moved(
            *(np.array(t) for t in (a.running_mean, a.running_var, b.running_mean, b.running_var))
        ),
        gamma=float(np.sqrt(np.mean((gamma[1] - gamma[0]) ** 2))),
        beta=float(np.sqrt(np.mean((np.array(b.beta) - np.array(a.beta)) ** 2))),
        gates=float(np.mean(gamma[0] * gamma[1] < 0)),
        gate_information=(_mean(a.gate_information), _mean(b.gate_information)),
        firing=float(change.flat[largest]),
        channel=largest % a.channels,
        signal=(a.signal, b.signal),
    )


def _mean(values: Numbers) -> float:
    return float(np.mean(values)) if values else math.nan


def _pooled(layer: Layer, counts: Array) -> tuple[Array, Array]:
    """Return mean and variance per channel over all classes, by the law of total variance."""
    share = (counts / max(1, counts.sum()))[:, None]
    means, variances = np.nan_to_num(layer.class_mean), np.nan_to_num(layer.class_var)
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0)


def _moved(mean: Array, var: Array, other_mean: Array, other_var: Array) -> float:
    live = var > 0
    if not live.any():
        return math.nan
    first, second = (mean[live], var[live]), (other_mean[live], np.maximum(other_var[live], 0))
    return float(drift(*map(torch.as_tensor, (*second, *first))).mean())
