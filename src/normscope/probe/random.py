"""Random numbers of torch, Python, NumPy and of loaders: kept, begun anew, given back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class RandomState:
    """The random numbers of torch, Python, NumPy and of a DataLoader's own generators."""

    def __init__(self, states: tuple[Any, ...], generators: list[torch.Generator]) -> None:
        self._states, self._generators = states, generators

    @classmethod
    def now(cls, batches: Any) -> "RandomState":
        """Record the generators as they are, with those that `batches` holds."""
        holders = (batches, *(getattr(batches, n, None) for n in ("sampler", "batch_sampler")))
        found = [getattr(holder, "generator", None) for holder in holders]
        generators = [g for g in found if isinstance(g, torch.Generator)]
        return cls(_states(generators), generators)

    @contextmanager
    def own(self) -> Iterator[None]:
        """Continue this stream inside; outside, everything is as it was."""
        outside = _states(self._generators)
        _set_states(self._states, self._generators)
        try:
            yield
        finally:
            self._states = _states(self._generators)
            _set_states(outside, self._generators)


def _states(generators: list[torch.Generator]) -> tuple[Any, ...]:
    own = [generator.get_state() for generator in generators]
    return torch.get_rng_state(), random.getstate(), np.random.get_state(), own  # noqa: NPY002


def _set_states(states: tuple[Any, ...], generators: list[torch.Generator]) -> None:
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])  # noqa: NPY002
    for generator, state in zip(generators, states[3], strict=True):
        generator.set_state(state)


def seed_all(number: int) -> None:
    """Begin torch's, Python's and NumPy's random numbers anew; inside `kept_generators` only."""
    # torch.manual_seed also notes the call stack for every device that has not been used yet
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002


@contextmanager
def kept_generators(seed: int | None = None) -> Iterator[None]:
    """Hand Python's, NumPy's and torch's random generators back as they were.

    Args:
        seed: where all of them begin inside; None: where they are.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    outside = _states([])
    with torch.random.fork_rng(gpus):
        try:
            if seed is not None:
                seed_all(seed)
            yield
        finally:
            _set_states(outside, [])
