"""One pass over a model and its data: every class through every normalisation layer."""

import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from normscope import probe
from normscope.batches import Batch, checked
from normscope.errors import InputError, ModelError, NormscopeError
from normscope.layers import condition
from normscope.lens import measures
from normscope.lens.accumulation import Accumulation, Followed
from normscope.lens.channel_map import Part, parts
from normscope.lens.collapse import collapse, find_head
from normscope.lens.layer_record import layer_record, stages_of
from normscope.lens.sweep import BINS, Sweep
from normscope.lens.tally import Tally, sample_size
from normscope.lens.work import work
from normscope.probe import Call, Norm
from normscope.records import Batches, Collapse, Inspection

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

    The layer's input x, its own output y and the output of the activation that follows are
    measured on the tensors that pass; z = (x - running_mean) / sqrt(running_var + eps) is that
    map of what was measured of x. eta2 and J must be equal at the first three whatever the
    weights, so their largest difference tests both the layer and the lens.

    eta2, class moments and firing are per value that batch norm sees, histograms at 64 evenly
    spaced ones of each image at most; J, D, CDNV, nearest-mean accuracy and conditioning per
    image, on the mean over positions. The model runs in eval mode without gradients and comes
    back as it was, also after an exception. Memory does not depend on the number of images. For
    conditional layers see `channel_map.parts`.

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
        InputError: no labels, labels out of range, one class only, NaN inputs, no batch, a loader
            that fails.
        ModelError: no layer to follow, a forward that fails, an activation that is not finite,
            too many classes and channels for memory.
    """
    into = Accumulation(model_name, data_name, None if classes is None else tuple(classes))
    return inspection(accumulate(model, batches, into=into, on_progress=on_progress))


def accumulate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    into: Accumulation | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Accumulation:
    """The pass of `inspect`, as something to save, continue, merge and look into later.

        seen = accumulate(model, first_half)
        seen.merge(accumulate(model, second_half))
        inspection(seen)

    Ctrl-C takes effect after the batch that is passing, so `into` then holds whole batches.

    Args:
        model: as `inspect`.
        batches: as `inspect`; batches that `into` has seen already are passed over.
        into: what was seen before, which is added to; it also holds what there is when this is
            interrupted. None: nothing yet.
        on_progress: as `inspect`.

    Raises:
        InputError: as `inspect`, except that one class is enough.
        ModelError: as `inspect`.
    """
    model = probe.bare(model)
    norms = probe.find_norms(model)
    _check_any(model, norms)
    seen = Accumulation() if into is None else into
    seen.check_whole()
    names = tuple(norm.name for norm in norms)
    if seen.norms and seen.norms != names:
        raise InputError("this pass was begun with another model; its layers differ")
    seen.norms = names
    known = None if seen.classes is None else len(seen.classes)
    device, dtype = _place(model)
    done = seen.mates.batches
    with probe.untouched(model), _whole_batches() as stop:
        lens = _Lens(seen, norms, known or 1)
        with probe.observe(model, norms, lens):
            for batch in checked(islice(batches, done, None), known, device, dtype):
                seen.torn = True
                lens.begin(batch)
                _run(model, batch)
                lens.end()
                seen.torn = False
                if on_progress is not None:
                    on_progress(int(seen.counts.sum()))
                stop()
    for norm in norms:
        if norm.skipped is not None:
            seen.skipped[norm.name] = norm.skipped
    last = next(reversed(seen.followed.values()), None)
    if last is not None:
        seen.head = find_head(model, len(seen.counts), len(last.shown.mean))
    return seen


def inspection(seen: Accumulation) -> Inspection:
    """Every measure of what was accumulated.

    Raises:
        InputError: images of one class only, or a pass that was left half-way.
    """
    seen.check_whole()
    if int((seen.counts > 0).sum()) < 2:
        label = int(seen.counts.argmax()) if len(seen.counts) else 0
        raise InputError(f"all images have label {label}; at least two classes are needed")
    names = seen.classes or tuple(str(k) for k in range(len(seen.counts)))
    layers = tuple(layer_record(name, layer) for name, layer in seen.followed.items())
    differences = [layer.invariance for layer in layers if not math.isnan(layer.invariance)]
    called = {*seen.followed, *seen.skipped}
    uncalled = {name: "lens.skip.not_called" for name in seen.norms if name not in called}
    return Inspection(
        model=seen.model,
        data=seen.data,
        classes=names,
        counts=tuple(seen.counts.tolist()),
        layers=layers,
        invariance=max(differences, default=math.nan),
        batches=_batches(seen),
        work=tuple(work(layers)),
        collapse=_collapse(seen),
        skipped=uncalled | seen.skipped,
    )


def _batches(seen: Accumulation) -> Batches:
    mates, images = seen.mates, int(seen.counts.sum())
    r = measures.excess(seen.counts, mates.equal, mates.pairs)
    return Batches(
        count=mates.batches,
        size=images / max(1, mates.batches),
        excess=r,
        predicted=measures.predicted_signal(r, images, mates.batches),
    )


def _collapse(seen: Accumulation) -> Collapse | None:
    """On the last layer that is one map."""
    whole = [name for name, layer in seen.followed.items() if "[condition" not in name]
    if not whole:
        return None
    *_, stage = stages_of(seen.followed[whole[-1]]).values()
    return collapse(whole[-1], stage.scatter, stage.sample, seen.head)


# which images of a batch go to which tally, with their labels, priorities and conditions
_Rows = tuple[Tensor | None, Tally, Tensor, Tensor, Tensor | None]


class _Lens:
    """The watcher that tallies what passes."""

    def __init__(self, seen: Accumulation, norms: list[Norm], classes: int) -> None:
        self._seen = seen
        channels = [_channels(n.module) for n in norms if n.skipped is None]
        self._channels, self._sample = sum(channels), sample_size(channels)
        self._parts: dict[str, list[_Rows]] = {}
        self._make_room(classes)

    def begin(self, batch: Batch) -> None:
        """A batch is about to pass."""
        self._batch = batch
        self._labels, self._priority = batch.labels.cpu(), batch.priority.cpu()
        self._condition = None if batch.condition is None else batch.condition.cpu()
        self._make_room(int(self._labels.max()) + 1)
        self._parts.clear()

    def end(self) -> None:
        """It has passed."""
        self._seen.counts += torch.bincount(self._labels, minlength=len(self._seen.counts))
        self._seen.mates.add(self._labels)
        self._parts.clear()

    def normed(self, call: Call, before: Tensor, after: Tensor) -> None:
        if not self._fits(call, before, after):
            return
        x = Sweep.of(before, take=True)
        self._check_finite(call, x, "its input")
        held: list[_Rows] = []
        for part in parts(call):
            tally = self._followed(part, before).tally
            rows = None if part.rows is None else part.rows.cpu()
            own = (self._labels, self._priority, self._condition)
            labels, priority, given = (t if t is None or rows is None else t[rows] for t in own)
            assert labels is not None, "every batch has labels"
            assert priority is not None, "and a priority per image"
            mean, rstd = part.used.mean.cpu(), part.used.rstd.cpu()
            part_x = x.of_rows(rows)
            z = part_x.normalised(mean, rstd)
            self._check_finite(call, z, "its output")
            tally.add("input", part_x, labels, priority, given)
            if part.mixed:
                tally.add("normalised", z, labels, priority, given)
            assert part_x.taken is not None, "asked for"
            tally.count_bins(part_x.taken, mean, rstd, labels)
            if part.rows is None and not part.mixed:
                tally.add_centred(part_x, labels)
            held.append((rows, tally, labels, priority, given))
        y = Sweep.of(after)  # last, so that the activation finds it in the cache
        for rows, tally, labels, priority, given in held:
            part_y = y.of_rows(rows)
            self._check_finite(call, part_y, "its output")
            tally.add("scaled_shifted", part_y, labels, priority, given)
            tally.count_firing(part_y, labels)
        self._parts[call.name] = held

    def activated(self, call: Call, activation: str, after: Tensor) -> None:
        held = self._parts.get(call.name, [])
        if not held or len(after) != len(self._labels) or after.dim() < 2:
            return
        seen = Sweep.of(after)
        self._check_finite(call, seen, f"the {activation} behind it")
        for rows, tally, labels, priority, given in held:
            if seen.mean.shape[1] == tally.fired.shape[1]:
                tally.add("activated", seen.of_rows(rows), labels, priority, given)
                tally.activation = activation

    def _followed(self, part: Part, before: Tensor) -> Followed:
        found = self._seen.followed.get(part.name)
        if found is None:
            found = Followed(
                part.norm,
                part.shown.cpu(),
                part.mixed,
                part.gated,
                Tally(before, len(self._seen.counts), self._sample),
            )
            self._seen.followed[part.name] = found
        return found

    def _make_room(self, classes: int) -> None:
        size = classes * self._channels * BINS * 4
        if classes > len(self._seen.counts) and size > LIMIT:
            raise ModelError(
                f"{classes} classes in {self._channels} channels need {size >> 20:,} MiB of "
                f"histograms, the limit is {LIMIT >> 20:,}; inspect fewer classes"
            )
        self._seen.make_room(classes)

    def _fits(self, call: Call, before: Tensor, after: Tensor) -> bool:
        skipped = self._seen.skipped
        why: str | None = None
        if call.masked:
            why = "lens.skip.masked"
        elif call.condition is None and getattr(call.module, "missing", None) == "infer":
            why = "lens.skip.mixture"
        elif len(before) != len(self._labels):
            why = "lens.skip.other_batch"
        elif before.shape != after.shape or before.shape[1] != _channels(call.module):
            why = "lens.skip.not_per_channel"
        if why is not None:
            self._seen.skip(call.name, why)
        return call.name not in skipped

    def _check_finite(self, call: Call, seen: Sweep, where: str) -> None:
        if not math.isfinite(float(seen.m2.sum())):
            raise ModelError(
                f"layer {call.name} ({type(call.module).__name__}): {where} holds NaN or infinity "
                f"in batch {self._batch.index}, and no layer before it does; "
                "check the weights and running statistics up to there"
            )


@contextmanager
def _whole_batches() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the function it gives is called, between two batches.

    A second one takes effect at once, as does one in a thread, or where the program has its own
    way with it.
    """
    usual = signal.default_int_handler
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not usual:
        yield lambda: None
        return
    asked: list[int] = []

    def remember(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    def stop() -> None:
        if asked:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, remember)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, usual)
        if asked:
            stop()


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
