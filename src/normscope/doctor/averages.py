"""The statistics of averaged weights, for as long as they are validated."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from normscope.doctor.recalibrate import recalibrate


@contextmanager
def recalibrated(model: nn.Module, batches: Iterable[Any], **options: Any) -> Iterator[nn.Module]:
    """Give a model the exact statistics of its weights in the body, and its own back behind it.

    Averaged weights (EMA, SWA, a model soup) make other activations than those whose statistics
    the copy holds. In a loop of one's own, with timm's `ModelEmaV3` or torch's `AveragedModel`::

        with normscope.doctor.recalibrated(ema, train_loader, batch_limit=200) as averaged:
            accuracy = validate(averaged, validation_loader)

    Behind the body the buffers are again what they were, bit for bit, so that averaging goes on
    as without it. To keep the new statistics, call `recalibrate`.

    Args:
        model: holds the weights; wrappers such as `ModelEmaV3` may be given as they are.
        batches: of the training data, as `recalibrate`.
        options: further arguments of `recalibrate`.

    Raises:
        InputError: as `recalibrate`.
        ModelError: as `recalibrate`.

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    >>> batches = [torch.randn(32, 4) + 5 for _ in range(4)]
    >>> with normscope.doctor.recalibrated(net.eval(), batches) as averaged:
    ...     round(float(averaged(torch.cat(batches)).mean().abs()), 3)
    0.0
    >>> float(net[1].running_mean.abs().max())
    0.0
    """
    done = recalibrate(model, batches, **options)
    try:
        yield model
    finally:
        done.undo()
