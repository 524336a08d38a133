"""What the processes of a distributed run, its ranks, tell each other."""

from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gathered(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Return the values of all ranks of a group, in their order; None: of all processes."""
    values: list[Any] = [value] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values
