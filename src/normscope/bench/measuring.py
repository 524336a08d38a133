"""Medians taken in turns, the copy limit of the same run, and the peak of what is allocated."""

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from random import Random
from statistics import quantiles
from time import perf_counter

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from normscope.bench.peers import Peer
from normscope.records.bench import Spread, Timing

FORWARD, BACKWARD = 2, 3  # times the bytes of x: read and write; x and dy read, dx written
SECONDS = 0.4  # small things are repeated until so much time is spent
MOST = 10  # but at most so many times more often than asked for
SLOW, FEW = 1.0, 5  # what takes so many seconds is repeated only so many times


def in_turns(
    peers: Mapping[str, Peer], x: Tensor, repeats: int
) -> tuple[Spread, dict[str, tuple[Spread, Spread, Spread]]]:
    """Time a copy of x, and forward, backward and both of each peer, in turn in each round.

    So a busy moment of the machine hits all alike; in another order each round, since what ran
    before leaves its data in the caches and its threads awake. Two rounds before are not counted.
    """
    source, target = x.detach(), torch.empty_like(x)
    taken = {name: _step(peer) for name, peer in peers.items()}
    taken = {name: _step(peer) for name, peer in peers.items()}
    target.copy_(source)
    round_ = sum(a + b for a, b in taken.values())
    times = max(repeats, min(MOST * repeats, int(SECONDS / max(round_, 1e-9))))
    slow = {name for name, step in taken.items() if sum(step) > SLOW}
    copies: list[float] = []
    steps: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    order, shuffle = list(peers), Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        for i in range(times):
            shuffle(order)
            start = perf_counter()
            target.copy_(source)
            copies.append(perf_counter() - start)
            for name in order:
                if name not in slow or i < min(FEW, repeats):
                    steps[name].append(_step(peers[name]))
    finally:
        gc.enable()
    found = {}
    for name, pairs in steps.items():
        parts = ([a for a, _ in pairs], [b for _, b in pairs], [a + b for a, b in pairs])
        forward, backward, total = map(spread, parts)
        found[name] = forward, backward, total
    return spread(copies), found


def _step(peer: Peer) -> tuple[float, float]:
    start = perf_counter()
    found = peer.forward()
    middle = perf_counter()
    peer.backward(found)
    return middle - start, perf_counter() - middle


def spread(seconds: list[float]) -> Spread:
    """Return the median and quartiles in milliseconds."""
    values = [1e3 * s for s in seconds]
    if len(values) == 1:
        values *= 2
    low, median, high = quantiles(values, n=4, method="inclusive")
    return Spread(median=median, low=low, high=high, repeats=len(seconds))


def timing(
    peer: str,
    times: tuple[Spread, Spread, Spread],
    copy: Spread,
    baseline: Spread,
    size: int,
    memory: float | None,
) -> Timing:
    """Summarise the times.

    Args:
        peer: its name.
        times: forward, backward, both.
        copy: of x: one read and one write.
        baseline: both, of torch's plain layer.
        size: of x in bytes.
        memory: peak in MB.
    """
    forward, backward, total = times
    return Timing(
        peer=peer,
        forward=forward,
        backward=backward,
        total=total,
        speed=baseline.median / total.median,
        gb_per_s=(FORWARD + BACKWARD) * size / (1e6 * total.median),
        share=copy_share(FORWARD + BACKWARD, copy, total),
        share_forward=copy_share(FORWARD, copy, forward),
        share_backward=copy_share(BACKWARD, copy, backward),
        memory=memory,
    )


def copy_share(moves: int, copy: Spread, own: Spread) -> float:
    """Time in which a copy, which moves the bytes of x twice, moves so many / own time."""
    return copy.median * moves / 2 / own.median


def peak_memory(peer: Peer) -> float | None:
    """Return the peak that one step allocates through torch, MB; None: another allocator."""
    if not peer.in_torch:
        return None
    peer.backward(peer.forward())
    with (
        _silent(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen,
    ):
        peer.backward(peer.forward())
    assert seen.profiler is not None, "the profile has ended"
    events = seen.profiler.kineto_results.events()
    moves = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = lowest = peak = 0
    for _, size in moves:
        held += size
        lowest = min(lowest, held)  # gradients of the step before go first
        peak = max(peak, held - lowest)
    return peak / 1e6


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the profiler's own lines out of stderr."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
