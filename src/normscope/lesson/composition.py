"""How much class signal remains in a batch, by its composition of classes."""

import math

import numpy as np

from normscope.lesson.example import Example
from normscope.records import Composition

R = (0.0, 0.25, 0.5, 0.75, 1.0)
M = (2, 8, 32, 128)
LEAST_SIGNAL = 1e-3  # eta squared below which a simulation of this size would measure noise


def composition(example: Example) -> tuple[Composition, ...]:
    """Simulate batches whose members share the class more often than chance, by r.

    Each batch has an anchor class, every class equally often; each member takes it with
    probability sqrt(r), so two members do with r, and is drawn from all classes otherwise.
    Measured is the covariance of a value with its class's deviation after subtracting the batch
    mean, over that before.
    """
    k = example.num_classes
    values = example.joint().view(k, -1).numpy()
    deviation = values.mean(1)
    if (deviation**2).mean() <= LEAST_SIGNAL * values.var():
        return ()
    rng = np.random.default_rng(0)
    found = []
    for r in R:
        for m in M:
            batches = k * math.ceil(max(4096, 2**18 // m) / k)
            anchor = np.arange(batches)[:, None] % k
            label = rng.integers(k, size=(batches, m))
            label = np.where(rng.random((batches, m)) < math.sqrt(r), anchor, label)
            batch = values[label, rng.integers(values.shape[1], size=(batches, m))]
            centred = batch - batch.mean(1, keepdims=True)
            signal = deviation[label]
            measured = float((centred * signal).mean() / (batch * signal).mean())
            predicted = (1 - r) * (1 - 1 / m)
            found.append(Composition(r=r, m=m, predicted=predicted, measured=measured))
    return tuple(found)
