"""Several processes, or ranks, that train one network; in one process these functions do nothing.

`torchrun` starts them. All ranks do the same, step by step, each with its share of a batch; rank 0
alone touches the run folder.
"""

import gc
import inspect
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# first imported when a process group is there, its default arguments would hold that group, whose
# threads would outlive the interpreter and abort the process
import torch.distributed.nn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from normscope.errors import InputError, NormscopeError
from normscope.layers.statistics import RunningStatistics
from normscope.moments import Moments
from normscope.probe.ranks import gathered

T = TypeVar("T")
STARTED_BY = ("RANK", "WORLD_SIZE", "MASTER_ADDR")  # what torchrun sets
_asked_to_stop = False


def size() -> int:
    """Count the ranks that train together; 1 outside `world`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return dist.get_rank() if size() > 1 else 0


@contextmanager
def world() -> Iterator[int]:
    """Join the ranks that torchrun started, for the time of a `with`; yields this one's number.

    Alone, or where a process group is there already, nothing is joined. Tensors on the CPU travel
    by gloo, those on a GPU by NCCL. Ctrl-C on any rank stops all of them at the same step. Raises
    InputError where the ranks cannot meet.
    """
    global _asked_to_stop
    alone = not all(name in os.environ for name in STARTED_BY) or os.environ["WORLD_SIZE"] == "1"
    if alone or size() > 1:
        yield rank()
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (ValueError, RuntimeError) as problem:
        raise InputError(
            f"the ranks cannot meet: {' '.join(str(problem).split())}; start them with torchrun, "
            f"or unset {', '.join(STARTED_BY)} to train in one process"
        ) from problem
    _asked_to_stop = False
    before = signal.signal(signal.SIGINT, _stop_later)
    try:
        yield rank()
    finally:
        signal.signal(signal.SIGINT, before)
        gc.collect()  # DistributedDataParallel, in reference cycles, holds the group
        dist.destroy_process_group()


def asked_to_stop() -> bool:
    """Return whether Ctrl-C came to this rank."""
    return _asked_to_stop


def share(rows: Tensor) -> Tensor:
    """Take this rank's part of a batch's rows, in order; nearly equal parts, some empty if few."""
    return rows.tensor_split(size())[rank()]


def average(value: float) -> float:
    """Average a number over all ranks, the same on each; KeyboardInterrupt after Ctrl-C."""
    if size() == 1:
        return value
    both = torch.tensor([value, float(_asked_to_stop)], dtype=torch.float64)
    dist.all_reduce(both)
    if both[1]:
        raise KeyboardInterrupt
    return both[0].item() / size()


def anywhere(present: Tensor) -> Tensor:
    """Return where a bool tensor is True on any rank."""
    if size() == 1:
        return present
    found = present.to(torch.int64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.bool()


def pooled(moments: Moments) -> Moments:
    """Merge the moments of all ranks' shares."""
    return moments if size() == 1 else moments.all_reduce()


def check_synchronises(model: nn.Module) -> list[RunningStatistics]:
    """Return the normalisation layers; InputError where ranks cannot share one's statistics."""
    layers = [m for m in model.modules() if isinstance(m, RunningStatistics)]
    for layer in layers:
        if not hasattr(layer, "process_group") or getattr(layer, "ghost_size", None):
            raise InputError(
                f"{type(layer).__name__} keeps its statistics within one process; leave this "
                "norm out, or train in one process, without torchrun"
            )
    return layers


def parallel(model: nn.Module, *, partly_used: bool = False) -> nn.Module:
    """Wrap a model for training: gradients are averaged over ranks, batches normalised together.

    Alone, it is the model itself. Its own names, parameters and buffers stay as they are.
    `partly_used` says that a batch may leave parameters out.
    """
    if size() == 1:
        return model
    for layer in check_synchronises(model):
        layer.process_group = "world"  # type: ignore[assignment]
    # buffers need no broadcast: every rank computes them from the whole batch
    known = inspect.signature(DistributedDataParallel).parameters  # renamed in torch 2.13
    sync = next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in known)
    options: dict[str, Any] = {sync: False, "find_unused_parameters": partly_used}
    return DistributedDataParallel(model, **options)


@contextmanager
def together() -> Iterator[None]:
    """Raise the error of a rank that fails in this `with` on all ranks, so that none waits for it.

    For what a rank does by itself; a rank that waits for others inside would wait for ever.
    """
    own: NormscopeError | None = None
    try:
        yield
    except NormscopeError as problem:
        own = problem
    for teller, failure in enumerate(_gathered(own)):
        if failure is not None:
            failure.told = teller != rank()
            raise failure


def first(do: Callable[[], T]) -> T:
    """Return what `do` returns on rank 0, on every rank; elsewhere it is not called."""
    if size() == 1:
        return do()
    result: list[Any] = [None]
    with together():
        if rank() == 0:
            result[0] = do()
    dist.broadcast_object_list(result)
    value: T = result[0]
    return value


def check_same(value: object, what: str) -> None:
    """Raise InputError on every rank where they hold different values."""
    with together():
        for other, held in enumerate(_gathered(value)):
            if held != value:
                raise InputError(
                    f"rank {rank()} has other {what} than rank {other}; start every rank with "
                    "the same command on the same files"
                )


def _gathered(value: T) -> list[T]:
    return [value] if size() == 1 else gathered(value)


def _stop_later(number: int, frame: FrameType | None) -> None:
    # one rank that raised here, in mid-step, would leave the others waiting
    global _asked_to_stop
    _asked_to_stop = True
