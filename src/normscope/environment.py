"""Versions and settings that decide speed and last digits, and the threads that torch uses."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from normscope import __version__


def versions() -> dict[str, str]:
    """Return versions and settings that decide speed and the last digits."""
    return {
        "normscope": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
    }


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads inside.

    With one thread the numbers are the same on any machine, and no small step waits for another.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
