"""Building the CPU kernels ahead of their first use."""

from time import perf_counter

from normscope.kernels.cpu import build


def warm() -> float:
    """Build the CPU kernels where that was never done, and load them; seconds it took."""
    start = perf_counter()
    build.loaded()
    return perf_counter() - start
