"""Tiles and warps by measurement, where somebody asks for it."""

from collections.abc import Callable
from typing import Any

from triton.testing import do_bench

from normscope.kernels.gpu import cutting

Size = tuple[int, int, int]
CANDIDATES: tuple[Size, ...] = tuple(
    (bytes_, bytes_ // 2, warps) for bytes_ in (2048, 4096, 8192, 16384) for warps in (2, 4, 8)
)


def tune(
    step: Callable[[], Any],
    timer: Callable[[Callable[[], Any]], Any] = do_bench,
    candidates: tuple[Size, ...] = CANDIDATES,
) -> dict[str, dict[Size, float]]:
    """Try tiles and warps for what `step` does, program by program, and keep the fastest.

    They hold for this process, from here on. Results change by rounding: sums are split
    otherwise.

    Args:
        step: a forward, or a forward and a backward, with impl="gpu".
        timer: how long a call takes.
        candidates: bytes, values and warps, as in `cutting.SIZES`.

    Returns:
        The times of each program's candidates, those that were there before among them.
    """
    found: dict[str, dict[Size, float]] = {}
    for program, size in list(cutting.SIZES.items()):
        times: dict[Size, float] = {}
        for candidate in dict.fromkeys((size, *candidates)):
            cutting.SIZES[program] = candidate
            times[candidate] = float(timer(step))
        cutting.SIZES[program] = min(times, key=lambda tried: times[tried])
        found[program] = times
    return found
