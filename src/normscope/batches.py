"""Batches as people's loaders give them, checked and brought to one form."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normscope.errors import InputError, NormscopeError
from normscope.probe.load import reason

LABELS = ("labels", "label", "targets", "target", "y")  # keys of a batch that is a dict
HASHED = 4096  # values of a sample's tensor that its hash is made of
CONDITIONS = ("condition", "conditions", "domain", "domains")


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples with their labels, and conditions where the loader gives them.

    Attributes:
        index: 0 for the first batch.
        x: what the model takes: a tensor (N, ...); a tuple, its positional arguments; or a dict,
            its keyword arguments.
        labels: (N,) int64.
        condition: (N,) int64, or None.
        priority: (N,) int64, a hash of each sample.
    """

    index: int
    x: Any
    labels: Tensor
    condition: Tensor | None
    priority: Tensor

    def call(self, model: nn.Module) -> Any:
        """What the model makes of the inputs, given as one, as positions, or by name."""
        if isinstance(self.x, dict):
            return model(**self.x)
        return model(*self.x) if isinstance(self.x, tuple) else model(self.x)

    @property
    def shapes(self) -> str:
        """Shape and dtype of every tensor in the inputs, for a message."""
        return ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in _tensors(self.x))


def checked(
    batches: Iterable[Any],
    classes: int | None,
    device: torch.device | None,
    dtype: torch.dtype | None = None,
) -> Iterator[Batch]:
    """The batches one by one on `device`.

    A batch is (inputs, labels) or (inputs, labels, condition), the inputs one tensor, a tuple of
    what the model takes by position, or a dict of what it takes by name. A batch that is itself a
    dict holds its labels under one of LABELS and its condition under one of CONDITIONS.

    Args:
        batches: any iterable; it is read once.
        classes: how many there are; None: as many as the labels say.
        device: where the model is; None leaves the batches where they are.
        dtype: of a model in half precision; floating point inputs are brought to it.

    Raises:
        InputError: no labels, labels of another shape or kind or out of range, NaN in the
            inputs, no batch at all, a loader that fails.
    """
    seen = 0
    for index, batch in enumerate(_read(batches)):
        x, *rest = _parts(batch)
        if not rest or rest[0] is None or len(rest) > 2:
            raise InputError(
                f"batch {index} holds no labels; every batch must be (inputs, labels) or (inputs, "
                f"labels, condition), or a dict with one of {', '.join(LABELS)}"
            )
        x = _formed(x)
        size = _size(x, index)
        if size == 0:
            continue
        for tensor in _tensors(x):
            if tensor.is_floating_point() and not _finite(tensor):
                raise InputError(
                    f"the inputs of batch {index} hold NaN or infinity; clean them first"
                )
        ids = [_ids(what, v, index, size) for what, v in zip(_WHAT, rest, strict=False)]
        if classes is not None and int(ids[0].max()) >= classes:
            raise InputError(
                f"batch {index} has label {int(ids[0].max())}; with {classes} class names "
                f"labels must lie in 0..{classes - 1}"
            )
        seen += size
        yield Batch(
            index,
            _moved(x, device, dtype),
            ids[0].to(device),
            ids[1].to(device) if len(ids) > 1 else None,
            _priority(x, size).to(device),
        )
    if seen == 0:
        raise InputError("the loader gave no images; at least one batch is needed")


_WHAT = ("labels", "conditions")


def _read(batches: Iterable[Any]) -> Iterator[Any]:
    """The loader's batches; what it raises becomes one sentence."""
    read = 0
    try:
        for batch in batches:
            yield batch
            read += 1
    except NormscopeError:
        raise
    except Exception as problem:
        raise InputError(f"the loader failed after {read} batches: {reason(problem)}") from problem


def _parts(batch: Any) -> list[Any]:
    """Inputs, labels and, where given, the condition."""
    if isinstance(batch, (tuple, list)):
        return list(batch)
    if not isinstance(batch, Mapping):
        return [batch]
    inputs = dict(batch)
    found = [
        next((inputs.pop(key) for key in keys if key in inputs), None)
        for keys in (LABELS, CONDITIONS)
    ]
    return [inputs, *(found if found[1] is not None else found[:1])]


def _formed(x: Any) -> Any:
    """A tensor, a tuple of arguments, or a dict of arguments; arrays and numbers are tensors."""
    if isinstance(x, Mapping):
        return dict(x)
    if isinstance(x, (tuple, list)) and any(isinstance(v, (Tensor, Mapping)) for v in x):
        return tuple(x)
    return torch.as_tensor(x)


def _tensors(x: Any) -> Iterator[Tensor]:
    """Every tensor in the inputs, also in nested ones."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (tuple, list, Mapping)):
        for value in x.values() if isinstance(x, Mapping) else x:
            yield from _tensors(value)


def _finite(tensor: Tensor) -> bool:
    """Whether all values are finite; their sum says so at once, unless it overflows."""
    return bool(tensor.sum().isfinite()) or bool(torch.isfinite(tensor).all())


def _size(x: Any, index: int) -> int:
    """How many samples: the length of the first tensor."""
    first = next((t for t in _tensors(x) if t.dim()), None)
    if first is None:
        raise InputError(
            f"the inputs of batch {index} hold no tensor with samples; "
            "give a tensor, a tuple or a dict of tensors"
        )
    return len(first)


def _moved(x: Any, device: torch.device | None, dtype: torch.dtype | None) -> Any:
    if isinstance(x, Tensor):
        return x.to(device, dtype if x.is_floating_point() else None)
    if isinstance(x, Mapping):
        return {key: _moved(value, device, dtype) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)(_moved(value, device, dtype) for value in x)
    return x


def _ids(what: str, values: Any, index: int, size: int) -> Tensor:
    ids = torch.as_tensor(values)
    if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.shape != (size,):
        raise InputError(
            f"the {what} of batch {index} are {ids.dtype} {tuple(ids.shape)}; "
            f"they must be one whole number per image, ({size},)"
        )
    ids = ids.long()
    if int(ids.min()) < 0:
        raise InputError(f"batch {index} has {what} below zero; they must be 0, 1, 2, ...")
    return ids


def _priority(x: Any, size: int) -> Tensor:
    """A hash of HASHED evenly spaced values of each tensor that a sample brings."""
    digests = [hashlib.blake2b(digest_size=8) for _ in range(size)]
    for tensor in _tensors(x):
        if tensor.dim() and len(tensor) == size:
            plain = tensor.detach().cpu().reshape(size, -1)
            plain = plain[:, :: max(1, plain.shape[1] // HASHED)].contiguous()
            for digest, row in zip(digests, plain.view(torch.uint8).numpy(), strict=True):
                digest.update(row)
    return torch.tensor([int.from_bytes(d.digest(), "big", signed=True) for d in digests])
