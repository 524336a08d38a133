"""One pass over a model and its data: every class through every normalisation layer."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normscope import probe
from normscope.batches import Batch, checked
from normscope.errors import InputError, ModelError, NormscopeError
from normscope.layers import condition
from normscope.lens.accumulate import BINS, Stage, Tally
from normscope.lens.channel_map import Part, parts
from normscope.lens.layer_record import layer_record
from normscope.probe import Call, Norm
from normscope.records import Inspection

LIMIT = 2 << 30  # bytes that the histograms of all layers may take


def inspect(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    classes: Sequence[str] | None = None,
    model_name: str = "",
    data_name: str = "",
    on_progress: Callable[[int], None] | None = None,
) -> Inspection:
    """Measure what every normalisation layer of `model` did to every class, in one pass.

    Each stage is measured on the tensors that pass: the layer's input x; z = (x - running_mean) /
    sqrt(running_var + eps), computed here; the layer's own output y; and the output of the
    activation that follows. eta2 and J must be equal at the first three whatever the weights, so
    their largest difference tests both the layer and the lens.

    eta2, class moments, histogram and firing are per value that batch norm sees; J, nearest-mean
    accuracy and conditioning per image, on the mean over positions. The model runs in eval mode
    without gradients and comes back as it was, also after an exception. Memory does not depend
    on the number of images. For conditional layers see `channel_map.parts`.

    Args:
        model: any model; what wraps it (DDP, torch.compile) is left out.
        batches: yields (x, y) or (x, y, condition): x a tensor (N, ...), or a tuple or dict of
            what the model takes; y and condition (N,) integers; see `batches.checked`. With a
            condition the model runs inside `normscope.condition`.
        classes: K names; None: as many classes as the labels say, named by their numbers.
        model_name: shown in the record.
        data_name: shown in the record.
        on_progress: called after every batch with the number of images so far.

    Raises:
        InputError: no labels, labels out of range, one class only, NaN inputs, no batch.
        ModelError: no layer to follow, a forward that fails, an activation that is not finite,
            too many classes and channels for memory.
    """
    model = probe.bare(model)
    norms = probe.find_norms(model)
    _check_any(model, norms)
    known = None if classes is None else len(classes)
    device, dtype = _place(model)
    with probe.untouched(model):
        lens = _Lens(norms, known or 1)
        with probe.observe(model, norms, lens):
            for batch in checked(batches, known, device, dtype):
                lens.begin(batch)
                _run(model, batch)
                if on_progress is not None:
                    on_progress(int(lens.counts.sum()))
    present = int((lens.counts > 0).sum())
    if present < 2:
        raise InputError(
            f"all images have label {int(lens.counts.argmax())}; at least two classes are needed"
        )
    names = classes if classes is not None else [str(k) for k in range(len(lens.counts))]
    layers = tuple(layer_record(part, tally) for part, tally in lens.seen.values())
    differences = [layer.invariance for layer in layers if not math.isnan(layer.invariance)]
    followed = {part.name for part, _ in lens.seen.values()}
    uncalled = {n.name: "lens.skip.not_called" for n in norms if n.name not in followed}
    skipped = uncalled | {n.name: n.skipped for n in norms if n.skipped} | lens.skipped
    return Inspection(
        model=model_name,
        data=data_name,
        classes=tuple(names),
        counts=tuple(lens.counts.tolist()),
        layers=layers,
        invariance=max(differences, default=math.nan),
        skipped=skipped,
    )


class _Lens:
    """The watcher that tallies what passes."""

    def __init__(self, norms: list[Norm], classes: int) -> None:
        self.counts = torch.zeros(0, dtype=torch.int64)
        self.seen: dict[str, tuple[Part, Tally]] = {}
        self.skipped: dict[str, str] = {}
        self._channels = sum(_channels(n.module) for n in norms if n.skipped is None)
        self._make_room(classes)

    def begin(self, batch: Batch) -> None:
        """A batch is about to pass."""
        self._batch = batch
        if int(batch.labels.max()) >= len(self.counts):
            self._make_room(int(batch.labels.max()) + 1)
        self.counts += torch.bincount(batch.labels.cpu(), minlength=len(self.counts))

    def normed(self, call: Call, before: Tensor, after: Tensor) -> None:
        if not self._fits(call, before, after):
            return
        for part in parts(call):
            if part.name not in self.seen:
                self.seen[part.name] = part, Tally(before, len(self.counts))
            _, tally = self.seen[part.name]
            labels, priority = part.of(self._batch.labels), part.of(self._batch.priority)
            x, y = part.of(before), part.of(after)
            stage = tally.add("input", x, labels, priority)
            self._check_finite(call, stage, "its input")
            z = part.used.normalise(x)
            stage = tally.add("normalised", z, labels, priority)
            self._check_finite(call, stage, "its output")
            tally.count_bins(z, labels)
            stage = tally.add("scaled_shifted", y, labels, priority)
            self._check_finite(call, stage, "its output")
            tally.count_firing(y, labels)

    def activated(self, call: Call, activation: str, after: Tensor) -> None:
        if call.name in self.skipped or len(after) != len(self._batch.labels):
            return
        for part in parts(call):
            _, tally = self.seen[part.name]
            labels, priority = part.of(self._batch.labels), part.of(self._batch.priority)
            stage = tally.add("activated", part.of(after), labels, priority)
            self._check_finite(call, stage, f"the {activation} behind it")
            tally.activation = activation

    def _make_room(self, classes: int) -> None:
        size = classes * self._channels * BINS * 8
        if size > LIMIT:
            raise ModelError(
                f"{classes} classes in {self._channels} channels need {size >> 20:,} MiB of "
                f"histograms, the limit is {LIMIT >> 20:,}; inspect fewer classes"
            )
        added = self.counts.new_zeros(classes - len(self.counts))
        self.counts = torch.cat([self.counts, added])
        for _, tally in self.seen.values():
            tally.grow(classes)

    def _fits(self, call: Call, before: Tensor, after: Tensor) -> bool:
        if call.masked:
            self.skipped[call.name] = "lens.skip.masked"
        elif call.condition is None and getattr(call.module, "missing", None) == "infer":
            self.skipped[call.name] = "lens.skip.mixture"
        elif len(before) != len(self._batch.labels):
            self.skipped[call.name] = "lens.skip.other_batch"
        elif before.shape != after.shape or before.shape[1] != _channels(call.module):
            self.skipped[call.name] = "lens.skip.not_per_channel"
        if call.name in self.skipped:
            self.seen.pop(call.name, None)
        return call.name not in self.skipped

    def _check_finite(self, call: Call, stage: Stage, where: str) -> None:
        if not bool(torch.isfinite(stage.moments.m2).all()):
            raise ModelError(
                f"layer {call.name} ({type(call.module).__name__}): {where} holds NaN or infinity "
                f"in batch {self._batch.index}, and no layer before it does; "
                "check the weights and running statistics up to there"
            )


def _check_any(model: nn.Module, norms: list[Norm]) -> None:
    if not norms:
        raise ModelError(
            f"the model ({type(model).__name__}) has no normalisation layer; "
            "the lens needs one with running statistics, such as BatchNorm2d"
        )
    if all(norm.skipped for norm in norms):
        kinds = ", ".join(sorted({type(norm.module).__name__ for norm in norms}))
        raise ModelError(
            f"no normalisation layer of the model keeps running statistics per channel "
            f"(it has {kinds}); the lens needs one that does, such as BatchNorm2d"
        )


def _run(model: nn.Module, batch: Batch) -> None:
    try:
        if batch.condition is None:
            batch.call(model)
        else:
            with condition(batch.condition):
                batch.call(model)
    except NormscopeError:
        raise
    except Exception as problem:
        reason = (str(problem) or "no message").splitlines()[0]
        raise ModelError(
            f"{probe.culprit(model, problem)} failed on batch {batch.index}, inputs "
            f"{batch.shapes}: {type(problem).__name__}: {reason}"
        ) from problem


def _place(model: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
    """Where the model lies, and its dtype where that is a half one."""
    tensors = [*model.parameters(), *model.buffers()]
    kinds = {t.dtype for t in tensors if t.is_floating_point()}
    half = [kind for kind in (torch.float16, torch.bfloat16) if kind in kinds]
    whole_model = half and next(t for t in tensors if t.is_floating_point()).dtype == half[0]
    return next((t.device for t in tensors), None), half[0] if whole_model else None


def _channels(module: nn.Module) -> int:
    running_mean = module.running_mean
    assert isinstance(running_mean, Tensor), "find_norms saw it"
    return running_mean.shape[-1]
