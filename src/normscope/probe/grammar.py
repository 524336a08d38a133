"""One grammar of a batch: what the model takes, the labels, the condition; read as often as needed.

What the loader gives            What the model gets      Labels           Condition
-------------------------------  -----------------------  ---------------  ---------------
x                                model(x)                 none             none
(x, y), [x, y]                   model(x)                 y                none
(x, y, c, ...)                   model(x)                 y                c, if (N,) whole
((a, b), y)                      model(a, b)              y                as above
({"a": a, "b": b}, y)            model(a=a, b=b)          y                as above
{"a": a, ..., "labels": y}       what its forward names   one of LABELS    one of CONDITIONS
a named tuple                    its first other field    field in LABELS  in CONDITIONS
any other object                 model(object)            none             none

With `forward` a batch is never interpreted: forward(model, batch) runs it as it came. `labels`
names the labels: a key, a position, or labels(batch). Strings, None and objects pass through.
"""

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscope.errors import InputError
from normscope.probe.layers import bare
from normscope.probe.load import reason

Labels = str | int | Callable[[Any], Any]

LABELS = ("labels", "label", "targets", "target", "y")
CONDITIONS = ("condition", "conditions", "domain", "domains")
# names of the one input of a model, in a dict whose keys the model's forward does not know
INPUTS = ("x", "input", "inputs", "image", "images", "img", "pixel_values", "data", "features")
WHOLE = (("batch",), ("sample",), ("samples",))  # of a forward that takes the batch as it is
HASHED = 4096  # values of a sample's tensor that its fingerprint is made of
GRAMMAR = (
    "a batch can be x, (x, labels), (x, labels, condition), ((a, b), labels), or a dict with one "
    f"of {', '.join(LABELS)}; for anything else say how to run it: "
    "forward=lambda model, batch: ..."
)


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch on the model's device, understood.

    Attributes:
        index: 0 for the first that the loader gave.
        given: as the loader gave it.
        args, kwargs: what the model takes; empty with `forward`.
        size: number of samples, N.
        labels: as they came, any shape and dtype; None where there are none or no numbers.
        condition: (N,) int64, or None.
    """

    index: int
    given: Any
    size: int
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    labels: Tensor | None = None
    condition: Tensor | None = None

    @property
    def classes(self) -> Tensor | None:
        """Labels as (N,) int64 where they are one class per sample, as `one_class` or yes or no."""
        found = one_class(self.labels, self.size)
        return yes_or_no(self.labels, self.size) if found is None else found

    @property
    def shapes(self) -> str:
        """Shape and dtype of every tensor in the batch, for a message."""
        return ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in tensors(self.given)) or "no tensor"

    def fingerprints(self) -> Tensor:
        """Return (N,) int64, a hash of HASHED evenly spaced values of each tensor of a sample."""
        digests = [hashlib.blake2b(digest_size=8) for _ in range(self.size)]
        for tensor in tensors((self.args, self.kwargs) if self.args or self.kwargs else self.given):
            if tensor.dim() and len(tensor) == self.size:
                plain = tensor.detach().to_dense().cpu().reshape(self.size, -1)
                plain = plain[:, :: max(1, plain.shape[1] // HASHED)]
                # contiguous() keeps the stride of an axis of one value, which may be 0
                plain = plain.clone(memory_format=torch.contiguous_format)
                for digest, row in zip(digests, plain.view(torch.uint8).numpy(), strict=True):
                    digest.update(row)
        return torch.tensor([int.from_bytes(d.digest(), "big", signed=True) for d in digests])


@dataclass(frozen=True)
class Signature:
    """What a forward takes: its names, how many positions, how many must be given."""

    names: tuple[str, ...]
    required: int
    any_position: bool
    any_keyword: bool


def signature_of(model: nn.Module) -> Signature:
    """Read what the forward of a model takes."""
    try:
        parameters = inspect.signature(bare(model).forward).parameters.values()
    except (TypeError, ValueError):
        return Signature((), 0, any_position=True, any_keyword=True)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    only = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return Signature(
        names=(*(p.name for p in named), *only),
        required=sum(p.default is p.empty for p in named),
        any_position=any(p.kind is p.VAR_POSITIONAL for p in parameters),
        any_keyword=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def arguments(
    takes: Signature, inputs: Any, given: Any, labels: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split into positional and keyword arguments of the model."""
    if isinstance(inputs, Mapping):
        named = dict(inputs)
        known = {k: v for k, v in named.items() if takes.any_keyword or k in takes.names}
        if isinstance(given, Mapping):  # labels that the forward asks for by name
            known |= {k: given[k] for k in LABELS if k in takes.names and k in given}
        if known and known.keys() >= set(takes.names[: takes.required]):
            return (), known
        if not isinstance(given, Mapping) or takes.names[:1] in WHOLE:
            return (inputs if not isinstance(given, Mapping) else given,), {}
        values = [v for v in named.values() if isinstance(v, Tensor)]
        wanted = next((named[k] for k in INPUTS if isinstance(named.get(k), Tensor)), None)
        if wanted is not None or len(values) == 1:
            return (values[0] if wanted is None else wanted,), {}
        return (given,), {}
    if isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields"):
        spread = isinstance(inputs, tuple) or takes.required == len(inputs)
        if not spread and isinstance(labels, Tensor) and labels.dim():  # a collated tuple
            spread = all(isinstance(v, Tensor) and len(v) == len(labels) for v in inputs)
        most = math.inf if takes.any_position else len(takes.names)
        if spread and takes.required <= len(inputs) <= most:
            return tuple(inputs), {}
    return (inputs,), {}


def walk(value: Any, leaf: Callable[[Any], Any], size: int | None = None) -> Any:
    """Map `leaf` over tuples, lists and dicts, of the same structure.

    With a size, a list of that length whose entries are not batches is a leaf: one per sample.
    """
    if isinstance(value, Mapping) and not hasattr(value, "to"):
        return {key: walk(item, leaf, size) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [walk(item, leaf, size) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        if size is not None and by_sample(value, size):
            return leaf(value)
        return [walk(item, leaf, size) for item in value]
    return leaf(value)


def by_sample(value: Any, size: int) -> bool:
    """Return whether a list has one entry per sample, and is not one of columns of a batch."""
    column = all(isinstance(v, Tensor) and v.dim() > 0 and len(v) == size for v in value)
    return len(value) == size and not column


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(item)


def as_numbers(value: Any) -> Tensor | None:
    """Return a tensor of an array, of numbers in lists or of one number; None of anything else."""
    if isinstance(value, Tensor):
        return value.detach()
    try:
        array = np.asarray(value)
        return torch.as_tensor(array) if array.dtype.kind in "biuf" else None
    except (ValueError, TypeError, RuntimeError):
        return None


def whole_numbers(values: Tensor | None, size: int) -> Tensor | None:
    """Return (N,) int64 of one whole number of at least 0 per sample; (N, 1) counts too."""
    if values is None or values.is_floating_point() or values.is_complex():
        return None
    if values.dim() == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (size,) or (size and int(values.min()) < 0):
        return None
    return values.long()


def one_class(values: Tensor | None, size: int) -> Tensor | None:
    """Return (N,) int64 of whole numbers, or of one-hot rows (N, K)."""
    if values is not None and values.dim() == 2 and values.shape[0] == size > 0:
        rows = values.double()
        ones = (rows == 1).sum(1) == 1
        if values.shape[1] > 1 and bool(ones.all()) and bool(((rows == 0) | (rows == 1)).all()):
            return rows.argmax(1)
    return whole_numbers(values, size)


def yes_or_no(values: Tensor | None, size: int) -> Tensor | None:
    """Return (N,) int64 of one float per sample, all of them 0 or 1, as a BCE loss takes them."""
    if values is None or not values.is_floating_point() or values.numel() != size:
        return None
    return values.reshape(size).long() if bool(((values == 0) | (values == 1)).all()) else None


def parts(index: int, batch: Any) -> tuple[Any, Any, Any]:
    """Split a batch into inputs, labels and condition, each None where it has none."""
    if isinstance(batch, Mapping) or hasattr(batch, "_fields"):
        named = dict(batch) if isinstance(batch, Mapping) else batch._asdict()
        found = [
            next((named.pop(key) for key in keys if key in named), None)
            for keys in (LABELS, CONDITIONS)
        ]
        if isinstance(batch, Mapping):
            return named, found[0], found[1]
        if len(named) < len(batch):
            return next(iter(named.values())), found[0], found[1]
    if isinstance(batch, (tuple, list)) and not of_samples(batch):
        if not len(batch):
            raise InputError(f"batch {index} is empty; {GRAMMAR}")
        return (*batch, None, None)[:3]
    return batch, None, None


def of_samples(value: Any) -> bool:
    """Return whether a list holds one tensor per sample, as detectors take images; not columns."""
    if not isinstance(value, list) or not all(isinstance(v, Tensor) for v in value):
        return False
    floats = all(v.is_floating_point() for v in value)
    alike = len({v.dim() for v in value}) == 1
    return floats and alike and (len(value) > 3 or len({v.shape[:1] for v in value}) > 1)


def named(labels: Labels, given: Any, index: int) -> Any:
    """Return what `labels` says are the labels of a batch."""
    if callable(labels):
        try:
            return labels(given)
        except Exception as problem:
            raise InputError(
                f"labels(batch) failed on batch {index}: {reason(problem)}"
            ) from problem
    try:
        by_name = isinstance(labels, str) and not isinstance(given, Mapping)
        return getattr(given, str(labels)) if by_name else given[labels]
    except (KeyError, IndexError, TypeError, AttributeError) as problem:
        there = ", ".join(map(str, given)) if isinstance(given, Mapping) else "none of that name"
        raise InputError(
            f"batch {index} has no {labels!r} to take labels from; it has {there}"
        ) from problem


def formed(x: Any) -> Any:
    """Turn numbers in lists into a tensor; what else the model takes stays."""
    if isinstance(x, list) and x and not any(isinstance(v, (Tensor, Mapping)) for v in x):
        numbers = as_numbers(x)
        if numbers is not None:
            return numbers.float() if numbers.is_floating_point() else numbers
    return x


def size(inputs: Any, labels: Any, given: Any) -> int:
    """Return the number of labels, where inputs have as many rows or are a list of as many.

    Else the length of a list of samples, or of the first tensor.
    """
    count = len(labels) if isinstance(labels, (Tensor, np.ndarray)) and labels.ndim else None
    if isinstance(labels, (list, tuple)):
        count = len(labels)
    found = list(tensors(inputs))
    if count is not None:
        rows = any(t.dim() and len(t) == count for t in found)
        if rows or inputs is given or any(len(v) == count for v in _lists(inputs)):
            return count
    listed = next((v for v in _lists(inputs) if of_samples(v)), None)
    first = next((t for t in found if t.dim()), labels) if listed is None else listed
    if isinstance(first, list) or (isinstance(first, Tensor) and first.dim()):
        return len(first)
    whole = given[0] if isinstance(given, (tuple, list)) else given
    return len(whole) if isinstance(whole, Sized) else 1


def _lists(value: Any) -> Iterator[list[Any]]:
    """Yield every list in tuples, lists and mappings."""
    if isinstance(value, list):
        yield value
    if isinstance(value, (tuple, list, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _lists(item)


def finite(tensor: Tensor) -> bool:
    """Return whether all values are finite; their sum says so at once, unless it overflows."""
    if tensor.layout is not torch.strided:
        return True
    return bool(tensor.sum().isfinite()) or bool(torch.isfinite(tensor).all())
