"""What the classes of a pass are: those of samples, those of positions, or none."""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from normscope.errors import InputError
from normscope.lens.state import InspectionState
from normscope.probe.batches import Loader
from normscope.probe.grammar import Batch, tensors
from normscope.records import LabelKind

TERCILES: Literal["terciles"] = "terciles"  # labels= that makes three classes of one number
IGNORED = 255  # in a mask, as values below zero: a position of no class
MOST = 254  # the class of a position; what holds more is no mask


class Classes:
    """Reads the classes of every batch; what they are is decided by the first."""

    def __init__(self, state: InspectionState, *, asked: bool) -> None:
        """Read into a state; `asked`: the user said where labels are, so there must be some."""
        self._state, self._asked = state, asked

    def of(self, batch: Batch) -> Tensor:
        """Return (N,) int64, or (N, *S) of positions, below 0 where one has no class.

        Raises:
            InputError: other labels than those of the first batch, out of range, or no classes
                though they were asked for.
        """
        state = self._state
        if state.cuts is not None:
            state.kind = "classes"
            return torch.bucketize(_number(batch), torch.tensor(state.cuts), right=True)
        kind: LabelKind = state.kind or self._kind(batch)
        state.kind = kind
        if kind == "none":
            return torch.zeros(batch.size, dtype=torch.int64)
        ids = READ[kind](batch)
        if ids is None:
            raise InputError(
                f"the labels of batch {batch.index} are {_shape(batch) or 'none'}, those of the "
                f"batches before were {_KINDS[kind]}; labels=lambda batch: None inspects without"
            )
        known = math.inf if state.classes is None else len(state.classes)
        if ids.numel() and int(ids.max()) >= known:
            raise InputError(
                f"batch {batch.index} has label {int(ids.max())}; with {known} class names labels "
                f"must lie in 0..{known - 1}"
            )
        return ids.cpu().contiguous()

    def _kind(self, batch: Batch) -> LabelKind:
        """Decide by the first batch."""
        for kind, read in READ.items():
            if read(batch) is not None:
                return kind
        if self._asked and batch.labels is not None:
            raise InputError(
                f"the labels of batch {batch.index} are {_shape(batch)}; classes are one whole "
                f"number per sample, ({batch.size},), 0, 1, 2, ..., one-hot rows, or masks of "
                f"0..{MOST}; labels='{TERCILES}' makes three of one number per sample"
            )
        self._state.targets = _shape(batch)
        return "none"


_KINDS: dict[LabelKind, str] = {"classes": "one class per sample", "positions": "masks"}


def tercile_cuts(loader: Loader) -> tuple[float, float]:
    """Read all targets; return what divides them into three groups of one size.

    Raises:
        InputError: not one number for each sample.
    """
    values = torch.cat([_number(batch) for batch in loader.read()]).numpy()
    low, high = np.quantile(values, [1 / 3, 2 / 3]).tolist()
    return low, high


def tercile_names(cuts: tuple[float, float]) -> tuple[str, ...]:
    """Name the groups by their bounds."""
    low, high = (f"{cut:.3g}" for cut in cuts)
    return f"y < {low}", f"{low} ≤ y < {high}", f"y ≥ {high}"


def _number(batch: Batch) -> Tensor:
    given = batch.labels
    if given is None or given.numel() != batch.size or given.is_complex():
        raise InputError(
            f"labels='{TERCILES}' needs one number per sample; the targets of batch {batch.index} "
            f"are {_shape(batch) or 'none that are numbers'}; labels= may also be a function "
            "labels(batch) that returns classes"
        )
    return given.flatten().double().cpu()


def _shape(batch: Batch) -> str:
    """Say what came as labels; empty where nothing came."""
    given = batch.labels
    return "" if given is None else f"{str(given.dtype)[6:]} {tuple(given.shape)}"


def _of_positions(batch: Batch) -> Tensor | None:
    """Return masks (N, *S) that fit the inputs, from (N, *S), (N, 1, *S) or one-hot (N, K, *S)."""
    labels = batch.labels
    if labels is None or labels.dim() < 2 or len(labels) != batch.size or labels.is_complex():
        return None
    given = (batch.args, batch.kwargs) if batch.args or batch.kwargs else batch.given
    inputs = [t for t in tensors(given) if t.data_ptr() != labels.data_ptr()]
    inputs = [t for t in inputs if t.dim() > 1 and len(t) == batch.size]
    ids = labels
    if labels.dim() > 3 and any(_fits(t, labels.shape[2:]) for t in inputs):
        one_hot = bool(((labels == 0) | (labels == 1)).all() & (labels.sum(1) == 1).all())
        if labels.shape[1] > 1 and not one_hot:
            return None
        ids = labels[:, 0] if labels.shape[1] == 1 else labels.argmax(1)
    elif not any(_fits(t, labels.shape[1:]) for t in inputs):
        return None
    whole = ids.long()
    if ids.is_floating_point() and not bool((ids == whole).all()):
        return None
    whole = whole.masked_fill((whole < 0) | (whole == IGNORED), -1)
    return whole.cpu() if whole.numel() and int(whole.max()) <= MOST else None


def _fits(x: Tensor, shape: torch.Size) -> bool:
    """Return whether positions of this shape may be those of an input: (N, C, *S) or (N, *S, C).

    The two may differ in scale. Of sequences, (N, L) of whole numbers counts too.
    """
    if len(shape) == 1 and x.dim() == 2:
        return not x.is_floating_point() and x.shape[1:] == shape
    if x.dim() != len(shape) + 2:
        return False
    sides = (x.shape[2:], x.shape[1:-1])
    if len(shape) == 1:
        return any(side == shape for side in sides)
    return any(
        all(n * shape[0] == side[0] * m for n, m in zip(side, shape, strict=True)) for side in sides
    )


READ: dict[LabelKind, Callable[[Batch], Tensor | None]] = {
    "classes": lambda batch: batch.classes,
    "positions": _of_positions,
}


def at_positions(masks: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Return (N, P), the class nearest to every position of a layer; None where they do not fit.

    Args:
        masks: (N, *S).
        shape: of the layer's positions; tokens of one axis are those of a grid, row by row.
    """
    sides = masks.shape[1:]
    if len(shape) == 1 and len(sides) == 2:
        rows = max(1, round(math.sqrt(shape[0] * sides[0] / sides[1])))
        count, shape = shape[0], (rows, shape[0] // rows)
        if rows * sides[1] != shape[1] * sides[0] or math.prod(shape) != count:
            return None
    exact = len(sides) > 1 or not shape or sides[0] % shape[0] == 0
    if len(shape) != len(sides) or math.prod(shape) <= 1 or not exact:
        return None
    for axis, (of, count) in enumerate(zip(sides, shape, strict=True), 1):
        places = ((torch.arange(count) + 0.5) * (of / count)).long()
        masks = masks.index_select(axis, places)
    return masks.flatten(1)
