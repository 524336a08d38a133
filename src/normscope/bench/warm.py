"""Compiling the CPU kernels ahead of their first use."""

from itertools import product
from time import perf_counter
from typing import cast

import torch

from normscope.arguments import Activation
from normscope.layers.batch import BatchNorm2d

DTYPES = (torch.float32, torch.float64)
ACTS = (None, "relu")
SHAPES = ((8, 16, 4, 4), (8, 2, 64, 64))  # whole channels, and channels that threads share


def warm() -> float:
    """Run small layers in every layout, mode and dtype that is common; seconds it took.

    What was compiled before is found on disk, and then this takes a moment.
    """
    start = perf_counter()
    for dtype, act, shape, last in product(DTYPES, ACTS, SHAPES, (False, True)):
        x = torch.zeros(shape, dtype=dtype)
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        layer = BatchNorm2d(shape[1], act=cast(Activation | None, act), dtype=dtype)
        for training in (True, False):
            layer.train(training)
            y = layer(x.requires_grad_())
            y.backward(torch.zeros_like(x))
    return perf_counter() - start
