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
from normscope.lens.channel_map import CallSlice, slices
from normscope.lens.collapse import collapse, find_head
from normscope.lens.layer_record import layer_record, stages_of
from normscope.lens.measures import ImageScatter
from normscope.lens.per_sample import per_sample_slice
from normscope.lens.state import InspectionState
from normscope.lens.statistics import (
    Images,
    TrackedLayer,
    bytes_needed,
    nested_channels,
    sample_size,
)
from normscope.lens.sweep import BINS, POSITIONS, Sweep
from normscope.lens.work import work
from normscope.probe import Call, Norm
from normscope.records import Batches, Inspection

LIMIT = 4 << 30  # bytes that a pass may take above the forward, unless it is told another number
HISTOGRAMS = 64 << 20  # bytes that the histograms of all layers may take
FEWEST = 4  # channels of a layer that have a histogram at least


def inspect(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    classes: Sequence[str] | None = None,
    model_name: str = "",
    data_name: str = "",
    on_progress: Callable[[int], None] | None = None,
    memory_limit: int = LIMIT,
) -> Inspection:
    """Measure what every normalisation layer of `model` did to every class, in one pass.

    The layer's input x, its own output y and the output of the activation that follows are
    measured on the tensors that pass; z = (x - running_mean) / sqrt(running_var + eps) is that
    map of what was measured of x. eta2 and J must be equal at the first three whatever the
    weights, so their largest difference tests both the layer and the lens. LayerNorm, RMSNorm,
    GroupNorm and InstanceNorm have one map per sample: there the record says by how much eta2 and
    J change. See `per_sample`, and for conditional layers `channel_map.slices`.

    eta2, class moments and firing are per value that the layer normalises, histograms at 64 evenly
    spaced ones of each image at most; J, D, CDNV, nearest-mean accuracy and conditioning per
    image, on the mean over positions. The model runs in eval mode without gradients and comes
    back as it was, also after an exception. Memory depends on layers, channels and classes, not on
    the number of images; `memory_needed` says how much.

    Args:
        model: any model; what wraps it (DDP, torch.compile) is left out.
        batches: yields (x, y) or (x, y, condition): x a tensor (N, ...), or a tuple or dict of
            what the model takes; y and condition (N,) integers; see `batches.checked`. With a
            condition the model runs inside `normscope.condition`.
        classes: K names; None: as many classes as the labels say, named by their numbers.
        model_name: shown in the record.
        data_name: shown in the record.
        on_progress: called after every batch with the number of images so far.
        memory_limit: bytes that the statistics may take.

    Raises:
        InputError: no labels, labels out of range, one class only, NaN inputs, no batch, a loader
            that fails.
        ModelError: no layer to follow, a forward that fails, an activation that is not finite,
            too many classes and channels for memory.
    """
    state = InspectionState(model_name, data_name, None if classes is None else tuple(classes))
    accumulate(model, batches, into=state, on_progress=on_progress, memory_limit=memory_limit)
    return inspection(state, release=True)


def accumulate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    into: InspectionState | None = None,
    on_progress: Callable[[int], None] | None = None,
    memory_limit: int = LIMIT,
) -> InspectionState:
    """The pass of `inspect`, as a state to save, continue, merge and look into later.

        state = accumulate(model, first_half)
        state.merge(accumulate(model, second_half))
        inspection(state)

    Ctrl-C takes effect after the batch that is passing, so `into` then holds whole batches.

    Args:
        model: as `inspect`.
        batches: as `inspect`; batches that `into` has seen already are passed over.
        into: what was seen before, which is added to; it also holds what there is when this is
            interrupted. None: nothing yet.
        on_progress: as `inspect`.
        memory_limit: as `inspect`.

    Raises:
        InputError: as `inspect`, except that one class is enough.
        ModelError: as `inspect`.
    """
    model = probe.bare(model)
    norms = _norms(model)
    state = InspectionState() if into is None else into
    state.check_whole()
    names = tuple(norm.name for norm in norms)
    if state.norms and state.norms != names:
        raise InputError("this pass was begun with another model; its layers differ")
    state.norms = names
    with probe.untouched(model), _whole_batches() as stop:
        lens = _Lens(state, norms, memory_limit)
        try:
            with probe.observe(model, norms, lens, preceded=lens.preceded):
                for batch in _read(model, batches, state):
                    state.incomplete = True
                    lens.begin(batch)
                    _run(model, batch)
                    lens.end()
                    state.incomplete = False
                    if on_progress is not None:
                        on_progress(int(state.counts.sum()))
                    stop()
        finally:
            lens.trim()
    for norm in norms:
        if norm.skipped is not None:
            state.skipped[norm.name] = norm.skipped
    last = next(reversed(state.layers.values()), None)
    if last is not None:
        state.head = find_head(model, len(state.counts), len(last.map.gamma))
    return state


def memory_needed(model: nn.Module, classes: int) -> int:
    """Bytes that a pass over so many classes takes at most, above those of the plain forward."""
    channels = _channels(_norms(probe.bare(model)))
    kept = _histograms(channels, classes)
    return bytes_needed(list(channels.values()), classes, list(kept.values()))


def inspection(state: InspectionState, *, release: bool = False) -> Inspection:
    """Every measure of what was accumulated.

    Args:
        state: of whole batches.
        release: free each layer's statistics once it is measured; the state is then empty.

    Raises:
        InputError: images of one class only, or a pass that was left half-way.
    """
    state.check_whole()
    if int((state.counts > 0).sum()) < 2:
        label = int(state.counts.argmax()) if len(state.counts) else 0
        raise InputError(f"all images have label {label}; at least two classes are needed")
    names = state.classes or tuple(str(k) for k in range(len(state.counts)))
    called = {*state.layers, *state.skipped}
    uncalled = {name: "lens.skip.not_called" for name in state.norms if name not in called}
    # conditions aside: what the head reads is one map
    whole = [name for name in state.layers if "[condition" not in name]
    found: dict[str, Any] = {}
    if whole:
        *_, stage = stages_of(state.layers[whole[-1]]).values()
        scatter = ImageScatter.of(stage)
        found["collapse"] = collapse(whole[-1], scatter, stage.sample, state.head)
        found["separation"] = tuple(measures.class_separation(scatter).tolist())
        del stage, scatter
    layers = []
    for name in tuple(state.layers):
        layers.append(layer_record(name, state.layers[name]))
        if release:
            del state.layers[name]
    differences = [layer.invariance for layer in layers if not math.isnan(layer.invariance)]
    return Inspection(
        model=state.model,
        data=state.data,
        classes=names,
        counts=tuple(state.counts.tolist()),
        layers=tuple(layers),
        invariance=max(differences, default=math.nan),
        batches=_batches(state),
        work=tuple(work(layers)),
        skipped=uncalled | state.skipped,
        **found,
    )


def _batches(state: InspectionState) -> Batches:
    composition, images = state.composition, int(state.counts.sum())
    r = measures.excess(state.counts, composition.equal, composition.pairs)
    return Batches(
        count=composition.batches,
        size=images / max(1, composition.batches),
        excess=r,
        predicted=measures.predicted_signal(r, images, composition.batches),
    )


class _Lens:
    """The watcher that counts what passes."""

    def __init__(self, state: InspectionState, norms: list[Norm], limit: int) -> None:
        self._state, self._limit = state, limit
        known = {_layer_of(n): len(layer.map.gamma) for n, layer in state.layers.items()}
        self._channels = _channels(norms) | known
        self._sample = sample_size(list(self._channels.values()))
        self._per_sample: dict[str, CallSlice | None] = {}
        # of the layers that ran in this forward: which images went where
        self._running: dict[str, list[tuple[TrackedLayer, Tensor | None, Images]]] = {}
        self._pre: tuple[str, str, Tensor] | None = None  # call, activation, what that was given
        self._histograms: dict[str, int] = {}
        self._make_room(1 if state.classes is None else len(state.classes))

    def begin(self, batch: Batch) -> None:
        """A batch is about to pass."""
        self._index = batch.index
        condition = None if batch.condition is None else batch.condition.cpu()
        self._images = Images(batch.labels.cpu(), batch.priority.cpu(), condition)
        self._make_room(int(self._images.labels.max()) + 1)
        self._running.clear()

    def end(self) -> None:
        """It has passed."""
        labels = self._images.labels
        self._state.counts += torch.bincount(labels, minlength=len(self._state.counts))
        self._state.composition.add(labels)
        self._running.clear()

    def preceded(self, call: Call, activation: str, before: Tensor) -> None:
        """The input of a layer that is about to run was made of `before` by an activation."""
        self._pre = (call.name, activation, before)

    def normed(self, call: Call, before: Tensor, after: Tensor) -> None:
        """A layer ran."""
        found = self._slices(call, before, after)
        made, self._pre = self._pre, None
        if not found:
            return
        axis = found[0].axis
        x = Sweep.of(before, take=True, axis=axis)
        self._check_finite(call, x, "its input")
        pre = None
        if made is not None and made[0] == call.name and made[2].shape == before.shape:
            pre = Sweep.of(made[2], axis=axis)
        running = []
        for part in found:
            images = self._images.select(part.rows)
            layer = self._tracked(part, call, before)
            part_x = x.of_rows(part.rows)
            layer.stage("input").add(part_x, images, layer.scale)
            if part.maps != "per_sample":
                mean, rstd = part.used.mean.cpu(), part.used.rstd.cpu()
                z = part_x.normalised(mean, rstd)
                self._check_finite(call, z, "its output")
                if part.maps == "per_condition":
                    layer.stage("normalised").add(z, images, layer.scale)
                assert part_x.taken is not None, "asked for"
                layer.count_bins(part_x.taken, mean, rstd, images.labels)
            if part.rows is None and part.maps == "one":
                layer.add_centred(part_x, images.labels)
            if pre is not None and made is not None:
                layer.input_activation = made[1]
                layer.stage("pre_activation").add(pre.of_rows(part.rows), images, layer.scale)
            running.append((layer, part.rows, images))
        # last, so that the activation finds it in the cache
        y = Sweep.of(after, take=found[0].maps == "per_sample", axis=axis)
        for layer, rows, images in running:
            part_y = y.of_rows(rows)
            self._check_finite(call, part_y, "its output")
            layer.stage("scaled_shifted").add(part_y, images, layer.scale)
            layer.count_active(part_y, images.labels)
            if part_y.taken is not None:
                own = layer.map
                layer.count_bins(part_y.taken, own.beta, own.inverse_gamma, images.labels)
        self._running[call.name] = running

    def activated(self, call: Call, activation: str, after: Tensor) -> None:
        """The activation of its output ran."""
        running = self._running.get(call.name, [])
        if not running or len(after) != len(self._images.labels) or after.dim() < 2:
            return
        known = self._per_sample.get(call.name)
        axis = 1 if known is None else known.axis
        if axis >= after.dim() or after.shape[axis] != len(running[0][0].map.gamma):
            return
        seen = Sweep.of(after, axis=axis)
        self._check_finite(call, seen, f"the {activation} behind it")
        for layer, rows, images in running:
            layer.stage("activated").add(seen.of_rows(rows), images, layer.scale)
            layer.activation = activation

    def trim(self) -> None:
        """Drop the room that was made for more classes than came."""
        seen = self._state.counts.nonzero()
        least = 0 if self._state.classes is None else len(self._state.classes)
        self._state.resize(max(least, int(seen[-1]) + 1 if len(seen) else 0))

    def _slices(self, call: Call, before: Tensor, after: Tensor) -> list[CallSlice]:
        """What of a call is reported together; nothing where it cannot be followed."""
        if not self._fits(call, before):
            return []
        if not self._is_per_sample(call):
            if before.shape == after.shape and before.shape[1] == self._channels[call.layer]:
                return list(slices(call))
            self._state.skip(call.name, "lens.skip.not_per_channel")
            return []
        if call.name not in self._per_sample:
            self._per_sample[call.name] = per_sample_slice(call, before, after)
        part = self._per_sample[call.name]
        if part is None:
            self._state.skip(call.name, "lens.skip.unknown_map")
            return []
        return [part]

    def _fits(self, call: Call, before: Tensor) -> bool:
        why: str | None = None
        if call.masked:
            why = "lens.skip.masked"
        elif call.condition is None and getattr(call.module, "missing", None) == "infer":
            why = "lens.skip.mixture"
        elif before.dim() < 2 or len(before) != len(self._images.labels):
            why = "lens.skip.other_batch"
        if why is not None:
            self._state.skip(call.name, why)
        return call.name not in self._state.skipped

    def _is_per_sample(self, call: Call) -> bool:
        return not isinstance(getattr(call.module, "running_mean", None), Tensor)

    def _tracked(self, part: CallSlice, call: Call, before: Tensor) -> TrackedLayer:
        found = self._state.layers.get(part.name)
        if found is None:
            classes, channels = len(self._state.counts), before.shape[part.axis]
            positions = before[0].numel() // channels
            if self._channels[call.layer] != channels:  # without a weight only the input tells
                self._channels[call.layer] = channels
                self._histograms = _histograms(self._channels, classes)
            kept = nested_channels(channels, self._histograms[call.layer])
            found = TrackedLayer(
                type(call.module).__name__,
                part.maps,
                part.shown.cpu(),
                part.one_threshold,
                positions,
                min(POSITIONS, positions),
                max(torch.finfo(before.dtype).eps, 1e-12),
                self._sample,
                kept,
                torch.zeros(classes, len(kept), BINS, dtype=torch.int32),
                torch.zeros(classes, len(kept), dtype=torch.float64),
                torch.zeros(classes, channels, dtype=torch.int32),
                torch.zeros(channels, dtype=torch.float64),
            )
            self._state.layers[part.name] = found
        return found

    def _make_room(self, classes: int) -> None:
        """Room for so many classes, with some to spare where their number is not known."""
        room = len(self._state.counts)
        if classes <= room and self._histograms:
            return
        if classes > room > 1 and self._state.classes is None:
            classes = max(classes, room + room // 4)
        classes = max(classes, room)
        self._histograms = _histograms(self._channels, classes)
        needed = bytes_needed(
            list(self._channels.values()), classes, list(self._histograms.values())
        )
        if needed > self._limit:
            raise ModelError(
                f"{classes:,} classes in {sum(self._channels.values()):,} channels of "
                f"{len(self._channels)} layers need {needed >> 20:,} MiB, the limit is "
                f"{self._limit >> 20:,} MiB; inspect fewer classes, or raise memory_limit"
            )
        most = {name: self._histograms[_layer_of(name)] for name in self._state.layers}
        self._state.resize(classes, most)

    def _check_finite(self, call: Call, seen: Sweep, where: str) -> None:
        if not math.isfinite(float(seen.m2.sum())):
            raise ModelError(
                f"layer {call.name} ({type(call.module).__name__}): {where} holds NaN or infinity "
                f"in batch {self._index}, and no layer before it does; "
                "check the weights and running statistics up to there"
            )


def _norms(model: nn.Module) -> list[Norm]:
    """The normalisation layers of a model; those that can be followed have no reason not to."""
    norms = probe.find_norms(model, per_sample=True)
    if not norms:
        raise ModelError(
            f"the model ({type(model).__name__}) has no normalisation layer; "
            "the lens needs one, such as BatchNorm2d or LayerNorm"
        )
    if all(norm.skipped for norm in norms):
        kinds = ", ".join(sorted({type(norm.module).__name__ for norm in norms}))
        raise ModelError(
            f"no normalisation layer of the model can be followed (it has {kinds}); the lens needs "
            "running statistics per channel, or statistics of each sample"
        )
    return norms


def _channels(norms: list[Norm]) -> dict[str, int]:
    """Channels of each layer that is followed, by name; 0 where only its input tells."""
    found = {}
    for norm in norms:
        if norm.skipped is None:
            tables = (getattr(norm.module, name, None) for name in ("running_mean", "weight"))
            table = next((t for t in tables if isinstance(t, Tensor)), None)
            known = getattr(norm.module, "num_features", getattr(norm.module, "num_channels", 0))
            found[norm.name] = int(known) if table is None else table.shape[-1]
    return found


def _histograms(channels: dict[str, int], classes: int) -> dict[str, int]:
    """How many channels of each layer have a histogram: all where they fit into HISTOGRAMS.

    Of more, the same share of every layer; `nested_channels` says which.
    """
    share = HISTOGRAMS / max(1, sum(channels.values()) * classes * BINS * 4)
    if share >= 1:
        return channels
    return {name: min(c, max(FEWEST, int(c * share))) for name, c in channels.items()}


def _layer_of(name: str) -> str:
    """The layer of a call or of one condition of it."""
    return name.partition("[condition")[0].partition("#")[0]


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


def _read(model: nn.Module, batches: Iterable[Any], state: InspectionState) -> Iterator[Batch]:
    """The batches that the state has not seen, on the model's device."""
    classes = None if state.classes is None else len(state.classes)
    device, dtype = _place(model)
    return checked(islice(batches, state.composition.batches, None), classes, device, dtype)


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
