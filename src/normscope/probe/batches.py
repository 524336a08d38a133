"""Read a user's batches as often as needed, each time the same, part of them held out."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain, islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from normscope.errors import InputError, ModelError, NormscopeError
from normscope.layers import condition
from normscope.probe import grammar
from normscope.probe.frozen import check_runnable
from normscope.probe.grammar import GRAMMAR, Batch, Labels, tensors, walk
from normscope.probe.layers import culprit
from normscope.probe.load import FAILURES, reason
from normscope.probe.random import RandomState

Forward = Callable[[nn.Module, Any], Any]
Part = Literal["all", "first", "held_out"]

LIMIT = 1000  # batches that are read of a loader without a length
HALF = (torch.float16, torch.bfloat16)
ONE = (
    "the loader gave one batch, which cannot be divided into two parts; give two batches or more, "
    "or held_out= with what judges a repair (the same batch, where there is no other)"
)
GOLDEN = 0.6180339887498949  # multiples of it fill (0, 1) evenly and in no rhythm


class Loader:
    """Batches that can be read again, each time the same; the caller's random state stays.

    A DataLoader that shuffles gives the same order at every reading. An iterator, which can be
    read once, is kept in memory. What is held out are whole batches, about 30 % of them, the
    same ones at every reading; a single batch is split by samples.

    Args:
        batches: any iterable.
        model: gives the device, the dtype of half precision, and the names of its inputs.
        forward: forward(model, batch), for batches of another structure.
        labels: a key or position in the batch, or labels(batch), where they are.
        limit: read so many batches at most; None: all, or LIMIT where there is no length.
        keep: whether an iterator's batches are kept to be read again.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        model: nn.Module,
        *,
        forward: Forward | None = None,
        labels: Labels | None = None,
        limit: int | None = None,
        keep: bool = True,
    ) -> None:
        check_runnable(model)
        kind = type(batches)
        iterable: Any = torch.utils.data.IterableDataset
        if issubclass(kind, torch.utils.data.Dataset) and not issubclass(kind, iterable):
            raise InputError(
                f"the batches are a {kind.__name__}, a data set of single samples; "
                "wrap it: torch.utils.data.DataLoader(dataset, batch_size=64)"
            )
        if isinstance(batches, (nn.Module, str, Mapping)):
            raise InputError(_no_batches(batches))
        if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
            raise InputError(
                f"the batches are a {kind.__name__}, which cannot be iterated over; "
                "give a DataLoader, a list of batches or an iterator"
            )
        if limit is not None and limit < 1:
            raise InputError(f"the limit is {limit} batches; it must be 1 or more")
        self.forward = forward
        self._source, self._labels, self._limit, self._keep = batches, labels, limit, keep
        self._kept: list[Any] = []  # of an iterator
        self._live: Iterator[Any] | None = None  # the iterator itself, once it was begun
        self._device, self._dtype = place_of(model)
        self._signature = grammar.signature_of(model)
        self._start = RandomState.now(batches)
        self._told = self._divided = False
        self._batches: Sequence[Batch] | None = None

    @classmethod
    def reading(
        cls, batches: "Iterable[Any] | Loader", model: nn.Module, **options: Any
    ) -> "Loader":
        """Return `batches` where they are a reader already, else one made with the options."""
        return batches if isinstance(batches, Loader) else cls(batches, model, **options)

    def of(self, batches: Sequence[Batch]) -> "Loader":
        """Return a reader of these batches alone, with the same forward and labels."""
        other = copy.copy(self)
        other._batches = batches
        return other

    def read(self, part: Part = "all") -> Iterator[Batch]:
        """Yield every batch, or those that are (not) held out.

        Raises:
            InputError: the loader raises, or gives no sample.
        """
        if self._batches is not None:
            yield from self._batches
            return
        samples = 0
        entries = enumerate(self._entries())
        # whether there is one batch only is known from the second
        ahead = [] if part == "all" else list(islice(entries, 2))
        single = len(ahead) == 1
        for index, given in chain(ahead, entries):
            if part != "all" and not single and held_out(index) != (part == "held_out"):
                continue
            try:
                batch = self.understood(index, given)
            except NormscopeError:
                raise
            except FAILURES as problem:  # objects of somebody else's that fail when looked at
                raise InputError(f"batch {index} cannot be read: {reason(problem)}") from problem
            if single:
                self._divided, batch = True, self._half_of(batch, part)
            samples += batch.size
            if batch.size:
                yield batch
        if samples == 0:
            what = "" if part == "all" else ", too few to hold some of them out"
            raise InputError(f"the loader gave no samples{what}; at least one batch is needed")

    def run(self, model: nn.Module, batch: Batch) -> Any:
        """Run the model on a batch; return its output.

        Raises:
            ModelError: the forward fails.
        """
        try:
            with condition(batch.condition) if batch.condition is not None else nullcontext():
                if self.forward is not None:
                    return self.forward(model, batch.given)
                return model(*batch.args, **batch.kwargs)
        except NormscopeError:
            raise
        except Exception as problem:
            raise ModelError(
                f"{culprit(model, problem)} failed on batch {batch.index}, given {batch.shapes}: "
                f"{reason(problem)}; {ONE if self._divided else GRAMMAR}"
            ) from problem

    def rows(self, batch: Batch, which: Tensor) -> Batch | None:
        """Return the samples `which`, numbers or a mask; None where something cannot be divided."""
        if which.dtype == torch.bool:
            which = which.nonzero().flatten()

        def some(value: Any) -> Any:
            if isinstance(value, (Tensor, np.ndarray)):
                if value.ndim == 0 or len(value) != batch.size:
                    return value
                if isinstance(value, np.ndarray):
                    return value[which.numpy()]
                if value.layout in (torch.strided, torch.sparse_coo):
                    return value.index_select(0, which.to(value.device))
                raise _Whole
            if isinstance(value, list) and len(value) == batch.size:
                return [value[i] for i in which.tolist()]
            if value is None or isinstance(value, (str, bytes, bool, int, float)):
                return value
            raise _Whole

        return self._rebuilt(batch, len(which), lambda part: walk(part, some, batch.size))

    def together(self, batches: Sequence[Batch], order: Tensor) -> Batch | None:
        """Join all batches into one, its samples in this order; None where that is not possible."""
        sizes = [batch.size for batch in batches]

        def joined(*values: Any) -> Any:
            first = values[0]
            if isinstance(first, (Tensor, np.ndarray)):
                tensors_ = [torch.as_tensor(v) for v in values]
                if any(t.dim() == 0 or len(t) != n for t, n in zip(tensors_, sizes, strict=True)):
                    return first
                return torch.cat(tensors_)[order.to(tensors_[0].device)]
            if isinstance(first, list):
                flat = [item for value in values for item in value]
                return [flat[i] for i in order.tolist()]
            if first is None or isinstance(first, (str, bytes, bool, int, float)):
                return first
            raise _Whole

        def merged(name: str) -> Any:
            return _walk_together([getattr(batch, name) for batch in batches], joined, sizes)

        try:
            inputs = ("args", "kwargs") if self.forward is None else ("given",)
            names = ("labels", "condition", *inputs)
            return replace(batches[0], size=len(order), **{name: merged(name) for name in names})
        except (_Whole, KeyError, ValueError, RuntimeError, TypeError):
            return None

    def understood(self, index: int, given: Any) -> Batch:
        """Read a batch onto the model's device: what the model takes, labels and condition.

        Raises:
            InputError: it is empty, or its inputs hold NaN or infinity.
        """
        if self.forward is None and (given is None or isinstance(given, (str, bytes, int, float))):
            raise InputError(f"batch {index} is {given!r}; {GRAMMAR}")
        if any(tensor.is_meta for tensor in tensors(given)):
            raise InputError(f"batch {index} holds a meta tensor, which has no values")
        given = walk(given, lambda value: self._moved(value, cast=False))
        inputs, labels, ids = given, None, None
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if self.forward is None or self._labels is None:
            inputs, labels, ids = grammar.parts(index, given)
        if self._labels is not None:
            labels = grammar.named(self._labels, given, index)
            if ids is labels:  # the third entry holds the labels, not the domain
                ids = None
            if inputs is labels and isinstance(given, (tuple, list)) and len(given) > 1:
                inputs = given[1]
        if self.forward is None:
            inputs = walk(grammar.formed(inputs), lambda value: self._moved(value, cast=True))
            args, kwargs = grammar.arguments(self._signature, inputs, given, labels)
            for tensor in tensors((args, kwargs)):
                if tensor.is_floating_point() and not grammar.finite(tensor):
                    raise InputError(
                        f"the inputs of batch {index} hold NaN or infinity; clean them first"
                    )
        values = grammar.as_numbers(labels)
        whole = given if self.forward is not None else (args, kwargs)
        size = grammar.size(whole, labels if values is None else values, given)
        if values is not None:
            values = values.to(self._device)
        condition = grammar.whole_numbers(grammar.as_numbers(ids), size)
        if condition is not None:
            condition = condition.to(self._device)
        return Batch(index, given, size, args, kwargs, values, condition)

    def _entries(self) -> Iterator[Any]:
        """Yield what the source gives, under random numbers of its own; errors in one sentence."""
        stream = copy.copy(self._start)
        # a plain list draws no random numbers, so there are none to keep apart
        drawing = nullcontext if type(self._source) in (list, tuple) else stream.own
        limit = self._limit if self._limit is not None or self._sized() else LIMIT
        iterator, read = self._live, 0
        while limit is None or read < limit:
            if self._live is not None and read < len(self._kept):
                given = self._kept[read]
            else:
                try:
                    with drawing():
                        iterator = iter(self._source) if iterator is None else iterator
                        given = next(iterator, _END)
                except NormscopeError:
                    raise
                except FAILURES as problem:
                    raise InputError(
                        f"the loader failed after {read} batches: {reason(problem)}; "
                        "nothing was changed"
                    ) from problem
                if iterator is self._source and self._keep:
                    self._live = iterator
                    if given is not _END:
                        self._kept.append(given)
            if given is _END:
                return
            yield given
            read += 1
        if self._limit is None and not self._told:
            self._told = True
            warnings.warn(
                f"the loader states no length: its first {read:,} batches were read; "
                "batch_limit= (--batches on the command line) sets another number",
                stacklevel=4,
            )

    def _sized(self) -> bool:
        try:
            len(self._source)  # type: ignore[arg-type]
        except FAILURES:  # a DataLoader over an iterable data set has a length that raises
            return False
        return True

    def _half_of(self, batch: Batch, part: Part) -> Batch:
        """Return every third sample of a single batch, or the others."""
        third = torch.arange(batch.size) % 3 == 1
        half = self.rows(batch, third == (part == "held_out"))
        if half is None:
            raise InputError(ONE)
        return half

    def _rebuilt(self, batch: Batch, size: int, of: Callable[[Any], Any]) -> Batch | None:
        try:
            labels = of([batch.labels, batch.condition])
            args, kwargs = of(batch.args), of(batch.kwargs)
        except _Whole:
            return None
        try:
            given = of(batch.given)
        except _Whole:
            if self.forward is not None:
                return None
            given = None  # beside what the model takes lies something that cannot be divided
        return Batch(batch.index, given, size, args, kwargs, *labels)

    def _moved(self, value: Any, *, cast: bool) -> Any:
        if isinstance(value, np.ndarray) and cast and value.dtype.kind in "biuf":
            value = torch.as_tensor(value)
            if value.is_floating_point():
                value = value.to(self._dtype or torch.get_default_dtype())
        if isinstance(value, Tensor):
            to_half = cast and value.is_floating_point() and self._dtype in HALF
            return value.to(self._device, self._dtype if to_half else None)
        if self._device is not None and self._device.type != "cpu" and hasattr(value, "to"):
            return value.to(self._device)
        return value


class _Whole(Exception):
    """Something in a batch can be neither divided nor joined."""


_END = object()


def _no_batches(given: object) -> str:
    """Say in a sentence that something holds no batches, and what to give instead."""
    kind = type(given).__name__
    if isinstance(given, nn.Module):
        return f"the batches are a model ({kind}); the model comes first, the batches second"
    if isinstance(given, Mapping):
        keys = ", ".join(repr(key) for key in list(given)[:5])
        return f"the batches are a {kind} with the keys {keys}; give what is under one of them"
    return (
        f"the batches are the text {given!r}; give a DataLoader, a list of batches or an iterator"
    )


def held_out(index: int) -> bool:
    """Return whether the batch of this number is held out: 30 % of them, the second among them."""
    return 0.5 <= index * GOLDEN % 1 < 0.8


def _walk_together(values: list[Any], leaf: Callable[..., Any], sizes: list[int]) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _walk_together([v[key] for v in values], leaf, sizes) for key in first}
    pairs = list(zip(values, sizes, strict=True))
    if isinstance(first, list) and all(grammar.by_sample(v, n) for v, n in pairs):
        return leaf(*values)
    if isinstance(first, (tuple, list)):
        if any(len(value) != len(first) for value in values):
            raise _Whole
        items = [_walk_together(list(group), leaf, sizes) for group in zip(*values, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return leaf(*values)


def place_of(model: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
    """Return the device of the model's first tensor, and the dtype of its first floating one."""
    found = [*model.parameters(), *model.buffers()]
    floats = next((t.dtype for t in found if t.is_floating_point()), None)
    return next((t.device for t in found), None), floats
