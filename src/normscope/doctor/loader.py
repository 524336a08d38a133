"""A user's batches: any structure, as often as they are needed, part of them held out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from normscope.errors import InputError, ModelError, NormscopeError
from normscope.layers import condition
from normscope.probe import culprit
from normscope.probe.load import reason

Forward = Callable[[nn.Module, Any], Any]
Part = Literal["all", "first", "held_out"]
HELD_OUT = 0.3  # share of the samples that judge a repair and take no part in it


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch, moved to the model's device.

    Attributes:
        index: 0 for the first.
        given: as the loader gave it.
        size: N; the length of the first tensor in it.
        labels: (N,) int64 where the second entry of a tuple is one whole number per sample.
        condition: (N,) int64, the third entry of a tuple where it is one.
    """

    index: int
    given: Any
    size: int
    labels: Tensor | None
    condition: Tensor | None


class Loader:
    """Batches that can be read again; an iterator, which cannot, is kept in memory.

    A batch is x, (x, ...), (x, labels), (x, labels, condition) or a mapping of arguments.
    Anything else needs `forward`.

    Args:
        batches: any iterable.
        forward: forward(model, batch) runs the model; None: the first entry of a tuple, or the
            mapping as keyword arguments.
        device: where the model is.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        forward: Forward | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._source = batches
        self._kept: list[Any] | None = None
        self.forward = forward
        self._device = device

    def read(self, part: Part = "all") -> Iterator[Batch]:
        """The batches, or of every batch the samples that are (not) held out.

        Raises:
            InputError: the loader raises, or gives no sample.
        """
        start = seen = 0
        for index, given in enumerate(self._entries()):
            batch = self.batch(index, given)
            if part != "all" and batch.size:
                keep = _held_out(start, batch.size) == (part == "held_out")
                batch = self.batch(index, rows(given, keep, batch.size))
            start += _size(given)
            if batch.size:
                seen += batch.size
                yield batch
        if seen == 0:
            what = "no sample" if part == "all" else f"too few samples ({start})"
            raise InputError(f"the loader gave {what}; batches with samples are needed")

    def run(self, model: nn.Module, batch: Batch) -> Any:
        """The model's output.

        Raises:
            ModelError: the forward fails.
        """
        try:
            with condition(batch.condition) if batch.condition is not None else nullcontext():
                if self.forward is not None:
                    return self.forward(model, batch.given)
                if isinstance(batch.given, Mapping):
                    return model(**batch.given)
                is_tuple = isinstance(batch.given, (tuple, list))
                return model(batch.given[0] if is_tuple else batch.given)
        except NormscopeError:
            raise
        except Exception as problem:
            raise ModelError(
                f"{culprit(model, problem)} failed on batch {batch.index}: {reason(problem)}; "
                "if the batch has another structure, say how to run it: "
                "forward=lambda model, batch: ..."
            ) from problem

    def _entries(self) -> Iterator[Any]:
        if self._kept is not None:
            yield from self._kept
            return
        given_so_far = 0
        kept: list[Any] = []
        try:
            iterator = iter(self._source)
            once = iterator is self._source
            for given in iterator:
                if once:
                    kept.append(given)
                yield given
                given_so_far += 1
        except NormscopeError:
            raise
        except Exception as problem:
            raise InputError(
                f"the loader failed after {given_so_far} batches: {reason(problem)}; "
                "nothing was changed"
            ) from problem
        if once:
            self._kept = kept

    def batch(self, index: int, given: Any) -> Batch:
        """What the loader gave, on the model's device and understood."""
        given = tree_map(lambda v: v.to(self._device) if isinstance(v, Tensor) else v, given)
        if isinstance(given, (tuple, list)) and len(given) and not isinstance(given[0], Tensor):
            given = (torch.as_tensor(given[0], device=self._device), *given[1:])
        size = _size(given)
        labels = ids = None
        if isinstance(given, (tuple, list)):
            labels, ids = (_ids(given[i], size) if len(given) > i else None for i in (1, 2))
        if isinstance(given, Mapping):
            labels = _ids(given.get("labels"), size)
        first = next((v for v in tree_leaves(given) if isinstance(v, Tensor)), None)
        if first is None:
            raise InputError(f"batch {index} is {type(given).__name__} without a tensor in it")
        if first.is_floating_point() and not bool(first.isfinite().all()):
            raise InputError(f"the inputs of batch {index} hold NaN or infinity; clean them first")
        return Batch(index, given, size, labels, ids)


def device_of(model: nn.Module) -> torch.device | None:
    """Where the model's first tensor is."""
    return next((t.device for t in [*model.parameters(), *model.buffers()]), None)


def _held_out(start: int, size: int) -> Tensor:
    """Which of the samples numbered from `start` are held out: the same ones on every reading."""
    number = torch.arange(start, start + size)
    mixed = (number * 2654435761 + 12345) % 2**32  # Knuth's multiplicative hash: in no rhythm
    return mixed < HELD_OUT * 2**32


def rows(given: Any, keep: Tensor, size: int) -> Any:
    """A batch with the samples that `keep` (N,) bool marks."""

    def kept(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and len(value) == size:
            return value[keep.to(value.device)]
        return value

    if isinstance(given, (tuple, list)):
        given = [v if isinstance(v, Tensor) else torch.as_tensor(v) for v in given]
    return tree_map(kept, given)


def _size(given: Any) -> int:
    first = next((v for v in tree_leaves(given) if isinstance(v, Tensor)), None)
    if first is None:
        given = given[0] if isinstance(given, (tuple, list)) and given else given
        return len(given) if hasattr(given, "__len__") else 0
    return len(first) if first.dim() else 0


def _ids(values: Any, size: int) -> Tensor | None:
    if values is None:
        return None
    ids = values if isinstance(values, Tensor) else torch.as_tensor(values)
    whole = not ids.dtype.is_floating_point and not ids.dtype.is_complex
    if not whole or ids.shape != (size,) or ids.dtype == torch.bool or (size and ids.min() < 0):
        return None
    return ids.long()
