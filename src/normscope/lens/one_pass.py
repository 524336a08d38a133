"""One pass over a model and its data: every class through every normalisation layer."""

import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn

from normscope import probe
from normscope.batches import Batch, checked
from normscope.errors import InputError, ModelError, NormscopeError
from normscope.layers import condition
from normscope.lens import measures, memory
from normscope.lens.collapse import collapse, find_head
from normscope.lens.layer_record import layer_record, stages_of
from normscope.lens.measures import ImageScatter
from normscope.lens.recorder import Recorder
from normscope.lens.state import InspectionState
from normscope.lens.work import work
from normscope.probe import Norm
from normscope.records import Batches, Inspection

LIMIT = 4 << 30  # bytes that a pass may take above the forward, unless it is told another number


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
    """Run the pass of `inspect` and return a state to save, continue, merge and look into later.

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
        lens = Recorder(state, norms, memory_limit)
        try:
            with probe.observe(model, norms, lens, preceded=lens.preceded):
                for batch in _read(model, batches, state):
                    state.incomplete = True
                    lens.begin(batch)
                    _run(model, batch)
                    if lens.misses:  # the first forward shows which activations make inputs
                        lens.again()
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
    return memory.bytes_needed(memory.layer_channels(_norms(probe.bare(model))), classes)


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


def _norms(model: nn.Module) -> list[Norm]:
    """Find the normalisation layers of a model, of which one at least can be followed."""
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
    """Read the batches that the state has not seen, on the model's device."""
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
