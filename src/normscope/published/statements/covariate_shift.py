"""Batch norm reduces the change of layers' inputs during training."""

import torch
from torch import Tensor, nn

from normscope.moments import drift
from normscope.published.digits import Digits, accuracy, fit, mlp, seeded
from normscope.published.statement import Outcome, Statement, Summary, graded
from normscope.records import StatementVerdict

DEPTH, WIDTH, EPOCHS, LR = 4, 64, 10, 0.02


def run(data: Digits, seed: int) -> Outcome:
    """Measure how far the distribution that enters each ReLU moves from one epoch to the next."""
    numbers, curves = {}, {}
    for name, norm in (("with", nn.BatchNorm1d), ("without", None)):
        seeded(seed)
        net = mlp(data.train_x[0].numel(), DEPTH, WIDTH, norm)
        before = _entering(net, data)
        moved: list[tuple[float, float]] = []
        for epoch in range(EPOCHS):
            fit(net, data, seed + 1000 * epoch, epochs=1, lr=LR)
            now = _entering(net, data)
            far = [
                drift(*new, *old).clamp(max=10).mean() for new, old in zip(now, before, strict=True)
            ]
            moved.append((epoch + 1.0, float(torch.stack(far).mean())))
            before = now
        curves[name] = moved
        numbers[f"drift_{name}"] = sum(v for _, v in moved) / EPOCHS
        numbers[f"accuracy_{name}"] = accuracy(net, data.test_x, data.test_y)
    numbers["ratio"] = numbers["drift_with"] / numbers["drift_without"]
    return Outcome(numbers, curves)


@torch.no_grad()
def _entering(net: nn.Sequential, data: Digits) -> list[tuple[Tensor, Tensor]]:
    """Return mean and variance per channel of every ReLU's input, as in training."""
    found = []
    x = data.train_x
    for layer in net:
        if isinstance(layer, nn.ReLU):
            found.append((x.double().mean(0), x.double().var(0)))
        if isinstance(layer, nn.BatchNorm1d):
            batch = torch.nn.functional.batch_norm
            x = batch(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
        else:
            x = layer(x)
    return found


def judge(found: Summary) -> StatementVerdict:
    """Judge: the drift is at most 0.8 of that without norm; direction: smaller."""
    return graded(found.mean("ratio") <= 0.8, found.mean("ratio") < 1)


STATEMENT = Statement(
    "covariate_shift",
    "Ioffe & Szegedy 2015, Batch normalization: accelerating deep network training",
    "1502.03167",
    5,
    run,
    judge,
    percent=("accuracy_with", "accuracy_without"),
)
