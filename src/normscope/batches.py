"""Batches as people's loaders give them, checked and brought to one form."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normscope.errors import InputError


@dataclass(frozen=True, eq=False)
class Batch:
    """Images with their labels, and conditions where the loader gives them.

    Attributes:
        index: 0 for the first batch.
        x: (N, ...), what the model takes.
        labels: (N,) int64.
        condition: (N,) int64, or None.
        priority: (N,) int64, a hash of each image.
    """

    index: int
    x: Tensor
    labels: Tensor
    condition: Tensor | None
    priority: Tensor


def checked(
    batches: Iterable[Any], classes: int | None, device: torch.device | None
) -> Iterator[Batch]:
    """The batches one by one on `device`.

    Raises:
        InputError: no labels, labels of another shape or kind or out of range, NaN in the
            inputs, no batch at all.
    """
    seen = 0
    for index, batch in enumerate(batches):
        x, *rest = batch if isinstance(batch, (tuple, list)) else (batch,)
        if not rest or rest[0] is None or len(rest) > 2:
            raise InputError(
                f"batch {index} holds no labels; every batch must be (inputs, labels) "
                "or (inputs, labels, condition)"
            )
        x = torch.as_tensor(x)
        if len(x) == 0:
            continue
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise InputError(f"the inputs of batch {index} hold NaN or infinity; clean them first")
        ids = [_ids(what, v, index, len(x)) for what, v in zip(_WHAT, rest, strict=False)]
        if classes is not None and int(ids[0].max()) >= classes:
            raise InputError(
                f"batch {index} has label {int(ids[0].max())}; with {classes} class names "
                f"labels must lie in 0..{classes - 1}"
            )
        seen += len(x)
        yield Batch(
            index,
            x.to(device),
            ids[0].to(device),
            ids[1].to(device) if len(ids) > 1 else None,
            _priority(x).to(device),
        )
    if seen == 0:
        raise InputError("the loader gave no images; at least one batch is needed")


_WHAT = ("labels", "conditions")


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


def _priority(x: Tensor) -> Tensor:
    rows = x.detach().cpu().contiguous().reshape(len(x), -1).view(torch.uint8).numpy()
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests])
