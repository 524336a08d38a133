"""One pass over a model and its data: every class through every normalisation layer."""

import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import Any

from torch import nn

from normscope import probe
from normscope.errors import InputError, ModelError
from normscope.lens import measures, memory
from normscope.lens.classes import TERCILES, Classes, tercile_cuts, tercile_names
from normscope.lens.collapse import collapse, find_head
from normscope.lens.layer_record import layer_record, stages_of
from normscope.lens.measures import ImageScatter
from normscope.lens.recorder import Recorder
from normscope.lens.state import InspectionState
from normscope.lens.work import work
from normscope.probe import Norm
from normscope.probe.batches import Forward, Loader
from normscope.probe.frozen import refuse_traced
from normscope.probe.grammar import Labels
from normscope.probe.layers import without_norms
from normscope.progress import bar, expected, wanted
from normscope.records import Batches, Inspection

LIMIT = 4 << 30  # bytes that a pass may take above the forward, unless it is told another number


def inspect(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    classes: Sequence[str] | None = None,
    model_name: str = "",
    data_name: str = "",
    forward: Forward | None = None,
    labels: Labels | None = None,
    batch_limit: int | None = None,
    on_progress: Callable[[int], None] | None = None,
    memory_limit: int = LIMIT,
    progress: bool | None = None,
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
        batches: see `probe.grammar` for what a batch may be. Labels are one class per sample, or
            masks, whose positions then have classes; without either all samples are shown
            together. With a condition the model runs inside `normscope.condition`.
        classes: K names; None: as many classes as the labels say, named by their numbers.
        model_name: shown in the record; empty: the model's class.
        data_name: shown in the record; empty: the class of the loader's dataset, or "data".
        forward: forward(model, batch), for batches of another structure.
        labels: a key or position in the batch, or labels(batch), where the classes are;
            "terciles": three groups of one number per sample.
        batch_limit: read so many batches at most; None: all, or 1,000 of a loader without length.
        on_progress: called after every batch with the number of images so far.
        memory_limit: bytes that the statistics may take.
        progress: show a bar; None: in a notebook and on a terminal, without on_progress.

    Raises:
        InputError: no classes where `labels` says that they are, labels out of range, NaN inputs,
            no batch, a loader that fails.
        ModelError: no layer to follow, a forward that fails, an activation that is not finite,
            too many classes and channels for memory.

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    >>> batches = [(torch.randn(32, 4), torch.arange(32) % 2) for _ in range(4)]
    >>> seen = normscope.inspect(net, batches, model_name="net", data_name="noise")
    >>> [layer.name for layer in seen.layers]
    ['1']
    >>> seen.layers[0].invariance < 1e-5  # the layer took no class information away
    True
    """
    state = InspectionState(model_name, data_name, None if classes is None else tuple(classes))
    known, passed = expected(batches, batch_limit), count(1)
    with bar(wanted(progress, on_progress), known) as show:

        def told(images: int) -> None:
            show(next(passed), 0, model_name)
            if on_progress is not None:
                on_progress(images)

        accumulate(
            model, batches, into=state, forward=forward, labels=labels, batch_limit=batch_limit,
            on_progress=told, memory_limit=memory_limit,
        )  # fmt: skip
        return inspection(state, release=True)


def accumulate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    into: InspectionState | None = None,
    forward: Forward | None = None,
    labels: Labels | None = None,
    batch_limit: int | None = None,
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
        forward: as `inspect`.
        labels: as `inspect`.
        batch_limit: as `inspect`.
        on_progress: as `inspect`.
        memory_limit: as `inspect`.

    Raises:
        InputError: as `inspect`.
        ModelError: as `inspect`.
    """
    refuse_traced(model)
    model = probe.bare(model)
    norms = _norms(model)
    state = InspectionState() if into is None else into
    state.check_whole()
    dataset = getattr(batches, "dataset", None)
    state.model = state.model or type(model).__name__
    state.data = state.data or ("data" if dataset is None else type(dataset).__name__)
    names = tuple(norm.name for norm in norms)
    if state.norms and state.norms != names:
        raise InputError("this pass was begun with another model; its layers differ")
    state.norms = names
    thirds = isinstance(labels, str) and labels == TERCILES
    where = None if thirds else labels
    loader = Loader(batches, model, forward=forward, labels=where, limit=batch_limit, keep=thirds)
    if thirds and state.cuts is None:
        if state.images:
            raise InputError("this pass was begun with other labels; give the same labels=")
        state.cuts = tercile_cuts(loader)
    classes = Classes(state, asked=labels is not None)
    with probe.preserved(model), _whole_batches() as stop:
        lens = Recorder(state, norms, memory_limit)
        try:
            with probe.observe(model, norms, lens, preceded=lens.preceded):
                for batch in islice(loader.read(), state.batches, None):
                    ids = classes.of(batch)
                    state.incomplete = True
                    lens.begin(batch, ids)
                    loader.run(model, batch)
                    if lens.misses:  # the first forward shows which activations make inputs
                        lens.again()
                        loader.run(model, batch)
                    lens.end()
                    state.incomplete = False
                    if on_progress is not None:
                        on_progress(state.images)
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
    """Return the most bytes that a pass over so many classes takes above the plain forward."""
    return memory.bytes_needed(memory.layer_channels(_norms(probe.bare(model))), classes)


def inspection(state: InspectionState, *, release: bool = False) -> Inspection:
    """Compute every measure of what was accumulated.

    Args:
        state: of whole batches.
        release: free each layer's statistics once it is measured; the state is then empty.

    Raises:
        InputError: no images, or a pass that was left half-way.
    """
    state.check_whole()
    if not state.images:
        raise InputError("no samples have passed; at least one batch is needed")
    names = state.classes or tuple(str(k) for k in range(len(state.counts)))
    if state.kind == "none":
        names = ("all samples",)
    elif state.cuts is not None and state.classes is None:
        names = tercile_names(state.cuts)
    compared = int((state.counts > 0).sum()) > 1
    called = {*state.layers, *state.skipped}
    uncalled = {name: "lens.skip.not_called" for name in state.norms if name not in called}
    # conditions aside: what the head reads is one map
    whole = [name for name in state.layers if "[condition" not in name]
    found: dict[str, Any] = {}
    if whole and compared:
        *_, stage = stages_of(state.layers[whole[-1]]).values()
        scatter = ImageScatter.of(stage)
        found["collapse"] = collapse(whole[-1], scatter, stage.sample, state.head)
        found["separation"] = tuple(measures.class_separation(scatter).tolist())
        del stage, scatter
    layers = []
    for name in tuple(state.layers):
        layers.append(layer_record(name, state.layers[name], compared=compared))
        if release:
            del state.layers[name]
    differences = [layer.invariance for layer in layers if not math.isnan(layer.invariance)]
    return Inspection(
        model=state.model,
        data=state.data,
        classes=names,
        counts=tuple(state.counts.tolist()),
        labels=state.kind or "none",
        targets=state.targets,
        samples=state.images,
        layers=tuple(layers),
        invariance=max(differences, default=math.nan),
        batches=_batches(state),
        work=tuple(work(layers)) if compared else (),
        skipped=uncalled | state.skipped,
        **found,
    )


def _batches(state: InspectionState) -> Batches:
    r = math.nan
    if state.kind == "classes":
        r = measures.excess(state.counts, state.equal, state.pairs)
    return Batches(
        count=state.batches,
        size=state.images / max(1, state.batches),
        excess=r,
        predicted=measures.predicted_signal(r, state.images, state.batches),
    )


def _norms(model: nn.Module) -> list[Norm]:
    """Find the normalisation layers of a model, of which one at least can be followed."""
    norms = probe.find_norms(model, per_sample=True)
    if not norms:
        raise ModelError(
            f"the model ({type(model).__name__}) has no normalisation layer; the lens needs one, "
            f"such as BatchNorm2d or LayerNorm{without_norms(model)}"
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
