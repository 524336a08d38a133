"""Which learning rates train: short runs over a grid, judged by one criterion for all norms."""

import math
from collections.abc import Callable
from dataclasses import replace

from normscope.records import RunConfig, Sweep
from normscope.train.data import Data
from normscope.train.loop import Trainer
from normscope.train.nets import NORMS, ModelConfig

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
EPOCHS = 5  # of each short run, or more where that is fewer steps than
STEPS = 60
SHARE = 0.9  # a rate trains if it reaches this share of the best accuracy of the sweep


def short_epochs(config: RunConfig, data: Data) -> int:
    """Count the epochs that each rate is tried for, at most as many as a whole training has."""
    steps = max(1, len(data.train_x) // config.batch_size)
    return min(config.epochs, max(EPOCHS, math.ceil(STEPS / steps)))


def sweep(
    config: RunConfig,
    data: Data,
    norm: str,
    after_step: Callable[[], None],
    after_rate: Callable[[int], None],
) -> Sweep:
    """Measure test accuracy of the first seed's network after a short training at each rate.

    NaN where the loss became infinite. Lowest and highest are left open; `judged` fills them.

    Args:
        config: the run.
        data: what to train on.
        norm: a key of NORMS.
        after_step: called after every step.
        after_rate: called with how many rates are done.
    """
    epochs = short_epochs(config, data)
    model = ModelConfig.of(config.net, norm, data)
    rates = tuple(sorted(config.sweep))
    sizes = {"epochs": epochs, "batch_size": config.batch_size}
    accuracy = []
    for done, lr in enumerate(rates, start=1):
        trainer = Trainer(data, model, config.seed, lr=lr, **sizes)
        losses = (trainer.train_epoch(e, lambda _: after_step()) for e in range(1, epochs + 1))
        diverged = any(math.isnan(loss) for loss in losses)  # no epoch is trained after it
        accuracy.append(math.nan if diverged else trainer.score().accuracy)
        after_rate(done)
    return Sweep(norm=norm, lr=rates, accuracy=tuple(accuracy), lowest=None, highest=None)


def judged(sweeps: tuple[Sweep, ...]) -> tuple[Sweep, ...]:
    """Fill in the lowest and the highest rate that trains.

    A rate trains if it reaches 0.9 of the best accuracy over all norms and rates; norms that are
    given the labels do not set that mark, unless there are no others. Rates in between may fail.
    """
    honest = [s for s in sweeps if not NORMS[s.norm].leaks] or sweeps
    reached = [a for s in honest for a in s.accuracy if not math.isnan(a)]
    mark = SHARE * max(reached, default=math.inf)
    result = []
    for s in sweeps:
        trains = [lr for lr, a in zip(s.lr, s.accuracy, strict=True) if a >= mark]
        lowest, highest = (min(trains), max(trains)) if trains else (None, None)
        result.append(replace(s, lowest=lowest, highest=highest))
    return tuple(result)
