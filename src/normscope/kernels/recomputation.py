"""What norm layers put out is not kept for backward, but mapped again from what they took in.

A convolution keeps its input, which is what the norm layer before it put out; that layer keeps
its own input anyway, and from it the map gives the output again in one reading and one writing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

Map = Callable[..., Tensor]


class Output:
    """What a norm layer put out, as the map that gave it."""

    def __init__(self, y: Tensor, map_: Map, given: tuple[Any, ...]) -> None:
        self.map = map_
        self.given = _detached(given)
        self.versions = self._versions()
        self.version = y._version
        # as long as somebody refers to it weakly, its address is not given to another one
        self.storage = StorageWeakRef(y.untyped_storage())

    def _versions(self) -> list[int]:
        return [t._version for t in _tensors(self.given) if not t.is_inference()]

    def again(self) -> Tensor:
        """Compute the same values again."""
        if self._versions() != self.versions:
            raise RuntimeError(
                "the input, weight or bias of a norm layer was changed in place between forward "
                "and backward; recompute() needs them as they were"
            )
        with torch.no_grad():
            return self.map(*self.given)


def _detached(given: Any) -> Any:
    """Nested records with their tensors out of the graph."""
    if isinstance(given, tuple):
        kept = [_detached(g) for g in given]
        return type(given)(*kept) if hasattr(given, "_fields") else tuple(kept)
    return given.detach() if isinstance(given, Tensor) else given


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, tuple):
        for part in given:
            yield from _tensors(part)


class _Part:
    """A view of an output, or the whole of it, in the place of a tensor that is kept."""

    def __init__(self, output: Output, t: Tensor) -> None:
        self.output, self.form = output, (t.shape, t.stride(), t.storage_offset())

    def again(self) -> Tensor:
        return self.output.again().as_strided(*self.form)


class Outputs:
    """The outputs of one `recompute`; each lives as long as the graph that made it."""

    def __init__(self) -> None:
        self._by_storage: WeakValueDictionary[int, Output] = WeakValueDictionary()

    def add(self, y: Tensor, map_: Map, *given: Any) -> None:
        """Remember how y was made."""
        output = Output(y, map_, given)
        self._by_storage[output.storage.cdata] = output
        node: Any = y.grad_fn
        node.metadata["output"] = output

    def pack(self, t: Tensor) -> "Tensor | _Part":
        """Return what is saved in the place of t."""
        output = None
        if t.layout == torch.strided and len(self._by_storage):
            output = self._by_storage.get(t.untyped_storage()._cdata)
        if output is None or t._version != output.version:  # changed in place: another value
            return t
        return _Part(output, t)


def _unpack(kept: "Tensor | _Part") -> Tensor:
    return kept.again() if isinstance(kept, _Part) else kept


active: ContextVar[Outputs | None] = ContextVar("active", default=None)


@contextmanager
def recompute() -> Iterator[None]:
    """Inside, layers after a norm layer keep nothing for backward that it can compute again.

    It goes around the forward::

        with normscope.recompute():
            loss = criterion(model(x), target)
        loss.backward()

    Of a norm layer with its activation (act="relu" and others) and the layer after it, the input
    of the first is kept and the input of the second is not: one tensor instead of two. Gradients
    are the same to the bit; the price is one more map per layer. Kept as usual are outputs with a
    residual, which would need another tensor, what is changed in place afterwards, and all under
    torch.compile, which decides itself. Second derivatives are right. Replaces outer
    `saved_tensors_hooks`.

    Raises:
        RuntimeError: in backward, where the input or the affine of a layer was changed in place
            since the forward.

    Source: the trade of Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", for
    the cheap operation alone.

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(normscope.BatchNorm1d(4, act="relu"), torch.nn.Linear(4, 2))
    >>> with normscope.recompute():
    ...     loss = net(torch.randn(8, 4)).sum()
    >>> loss.backward()
    """
    outputs = Outputs()
    token = active.set(outputs)
    try:
        with saved_tensors_hooks(outputs.pack, _unpack):
            yield
    finally:
        active.reset(token)
