"""Exact population statistics for a model's batch norms, whole or not at all."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normscope import probe
from normscope.doctor.state import without_statistics
from normscope.errors import InputError, ModelError, few
from normscope.layers import (
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
    ModeNorm1d,
    ModeNorm2d,
    ModeNorm3d,
)
from normscope.layers.statistics import Snapshot, snapshot
from normscope.moments import Moments, drift
from normscope.probe.batches import Forward, Loader, Part
from normscope.probe.frozen import check_runnable
from normscope.probe.grammar import Labels
from normscope.probe.layers import in_training
from normscope.probe.ranks import gathered
from normscope.probe.run import NormRun, dropouts, tensors_of
from normscope.probe.stream import MomentStream, total_of
from normscope.progress import bar, expected, wanted

Propagate = Literal["batch", "sequential"]
ENOUGH = 0.1  # standard deviations; where the doctor begins to call statistics stale

_FROZEN = (FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d)
_MODE = (ModeNorm1d, ModeNorm2d, ModeNorm3d)


@dataclass(frozen=True)
class Recalibrated:
    """One layer whose statistics were measured.

    Attributes:
        name: as in `model.named_modules()`.
        calls: times that it runs in one forward; its statistics are those of all calls together.
        count: values per channel, the smallest over groups that were present.
        moved: by how many standard deviations the statistics moved, the largest over channels.
        error: two standard errors of the new statistics, in standard deviations, likewise.
        absent: groups of which the data held too little; theirs stayed as they were.
    """

    name: str
    calls: int
    count: int
    moved: float
    error: float
    absent: tuple[int, ...] = ()

    @property
    def enough(self) -> bool:
        """Whether the data pin the statistics down to ENOUGH standard deviations."""
        return self.error <= ENOUGH


@dataclass(frozen=True)
class Recalibration:
    """What `recalibrate` did.

    Attributes:
        model: the model, changed.
        layers: those whose statistics were measured, in the order of their first call.
        left: name -> why a normalisation layer kept its statistics.
        batches: how many were read.
    """

    model: nn.Module
    layers: tuple[Recalibrated, ...]
    left: dict[str, str]
    batches: int
    _before: Snapshot = field(repr=False)

    @property
    def enough(self) -> bool:
        """Whether there were data enough for every layer; see `Recalibrated.enough`."""
        return all(layer.enough for layer in self.layers)

    def __repr__(self) -> str:
        most = max(self.layers, key=lambda layer: layer.moved, default=None)
        model, count = type(self.model).__name__, len(self.layers)
        lines = [f"Recalibration of {model}: {count} layers measured on {self.batches} batches"]
        if most is not None:
            lines.append(f"{most.name} moved most, by {most.moved:.2g} standard deviations")
        short = [layer.name for layer in self.layers if not layer.enough]
        if short:
            lines.append(f"more data are needed for {few(short)}")
        lines += [f"left as it was: {name}: {why}" for name, why in list(self.left.items())[:4]]
        if len(self.left) > 4:
            lines.append(f"and {len(self.left) - 4} more")
        return "\n".join([*lines, ".undo() writes the former statistics back"])

    def undo(self) -> nn.Module:
        """Write the former statistics back; returns the model."""
        self._before.rollback()
        return self.model


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    only: Iterable[str] = (),
    propagate: Propagate = "batch",
    forward: Forward | None = None,
    labels: Labels | None = None,
    batch_limit: int | None = None,
    process_group: dist.ProcessGroup | Literal["world"] | None = None,
    on_progress: Callable[[int], None] | None = None,
    progress: bool | None = None,
) -> Recalibration:
    """Replace running statistics by the exact ones of a whole data set, as a transaction.

        mean = (1/n) sum x,   running_var = 1/(n-1) sum (x - mean)^2     over all batches

    Every value counts the same whatever the sizes of batches; what lies between batches is in
    the variance; merging is in float64 (Chan). Layers by condition get one set per condition. A
    layer that runs several times in a forward gets the statistics of all its calls. Dropout and
    everything else is in eval mode. Nothing but the three buffers changes, and they change
    together, after the last batch: an exception before leaves the model byte-equal.

    Args:
        model: any module with batch norms.
        batches: as `diagnose`. Read once, with propagate="sequential" once per layer.
        only: patterns of layer names, as "encoder.*"; empty: all but frozen ones. The others
            normalise with what they have.
        propagate: what a layer sees of those before it. "batch": they normalise with the batch
            at hand, as in training, in one pass. "sequential": with their new statistics, as in
            use; it does not depend on how batches are composed, and the result agrees with
            itself: measured again in eval(), it is the same.
        forward: forward(model, batch), for batches of another structure.
        labels: where the labels are; with forward their number is that of the samples.
        batch_limit: read so many batches at most; None: all, or 1,000 of a loader without length.
        process_group: ranks that hold one part of the data each, "world" for all; every rank
            must call. None: this process alone.
        on_progress: called after every batch with the number of batches so far.
        progress: show a bar; None: in a notebook and on a terminal, without on_progress.

    Raises:
        InputError: no batch, a loader that fails, one value per channel, a pattern that fits
            nothing.
        ModelError: a forward that fails, an input of a norm that is not finite, no layer with
            running statistics.

    Source: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3 (population
    statistics); Chan, Golub, LeVeque 1979 (merging).

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    >>> batches = [(torch.randn(32, 4), torch.arange(32) % 2) for _ in range(4)]
    >>> done = normscope.recalibrate(net, batches)
    >>> [layer.name for layer in done.layers], done.batches
    (['1'], 4)
    """
    if propagate not in ("batch", "sequential"):
        raise InputError(f'propagate is {propagate!r}; it can be "batch" or "sequential"')
    loader = Loader(
        batches, model, forward=forward, labels=labels, limit=batch_limit, keep=propagate != "batch"
    )
    check_runnable(model, writes=True)
    layers, left = chosen(model, tuple(only))
    group = dist.group.WORLD if process_group == "world" else process_group
    known = expected(batches, batch_limit) if propagate == "batch" else 0
    with bar(wanted(progress, on_progress), known) as show:

        def told(read: int) -> None:
            show(read, 0, "recalibrate")
            if on_progress is not None:
                on_progress(read)

        streams, order = measured(model, loader, layers, propagate, "all", group, told)
    left |= {name: "no forward runs it" for name in layers if name not in streams}
    new = {name: _population(name, streams[name]) for name in order}
    done = tuple(_told(name, layers[name], streams[name], new[name]) for name in order)
    seen = max((stream.batches for calls in streams.values() for stream in calls), default=0)
    before = snapshot(model)
    with before, torch.no_grad():
        for name, total in new.items():
            _write(layers[name], total, streams[name][0].batches)
    return Recalibration(model, done, left, seen, before)


def chosen(
    model: nn.Module, only: tuple[str, ...] = ()
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return the layers whose statistics can be measured, and why others are left.

    Raises:
        InputError: a pattern that fits no normalisation layer.
        ModelError: there is no layer with running statistics.
    """
    norms = probe.find_norms(model)
    for pattern in only:
        if not any(fnmatchcase(norm.name, pattern) for norm in norms):
            there = ", ".join(norm.name for norm in norms[:5]) or "none"
            raise InputError(f"no normalisation layer is called {pattern!r}; there is {there}")
    layers, left = {}, {}
    training = in_training(model)
    for norm in norms:
        wanted = any(fnmatchcase(norm.name, pattern) for pattern in only)
        why = _reason(norm, training and not norm.module.training and not wanted)
        if only and not wanted:
            why = "it was not chosen"
        if why is None:
            layers[norm.name] = norm.module
        else:
            left[norm.name] = why
    if not any(norm.skipped is None for norm in norms):
        raise ModelError(without_statistics(model))
    return layers, left


def measured(
    model: nn.Module,
    loader: Loader,
    layers: Mapping[str, nn.Module],
    propagate: Propagate,
    part: Part,
    group: dist.ProcessGroup | None = None,
    on_progress: Callable[[int], None] | None = None,
    *,
    dropout: bool = False,
) -> tuple[dict[str, list[MomentStream]], list[str]]:
    """Measure the moments at every layer's entry, a stream per call, and the order of first calls.

    With dropout, it drops as in training.
    """
    read = 0

    def one_pass(run: NormRun) -> NormRun:
        nonlocal read
        try:
            with probe.preserved(model), run.active():
                for module in dropouts(model) if dropout else ():
                    module.training = True
                for batch in loader.read(part):
                    run.run(loader, model, batch)
                    read += 1
                    if on_progress is not None:
                        on_progress(read)
        except Exception as problem:
            if isinstance(problem, InputError) and group is not None and not read:
                return run  # a rank may have no data
            _agree(group, ok=False)
            raise
        return run

    if propagate == "batch":
        run = one_pass(NormRun(layers, by_batch=set(layers)))
        names = _shared_order(run.order, group)
        return _joined(layers, run.streams, names, group), names
    first = one_pass(NormRun(layers, by_batch=set(layers), measured=set()))
    names = _shared_order(first.order, group)
    streams: dict[str, list[MomentStream]] = {}
    stored: dict[str, tuple[Tensor, Tensor]] = {}
    for name in names:
        # a layer that runs again later sees its own first call by the batch
        own, last = ({name}, None) if first.most_calls[name] > 1 else (set(), name)
        run = one_pass(NormRun(layers, by_batch=own, stored=stored, measured={name}, last=last))
        streams |= _joined(layers, run.streams, [name], group)
        total = _population(name, streams[name])
        mean, var = tensors_of(layers[name])
        known = (total.count > 1).unsqueeze(-1)
        stored[name] = (
            torch.where(known, total.mean, mean.to(total.mean.dtype)),
            torch.where(known, total.var(correction=1), var.to(total.mean.dtype)),
        )
    return streams, names


def _reason(norm: probe.Norm, deliberate: bool) -> str | None:
    if isinstance(norm.module, _MODE):  # which has statistics by group, and so none per channel
        return "its groups are soft; train it on"
    if norm.skipped == "lens.skip.per_sample":
        return "it normalises within each sample"
    if norm.skipped is not None:
        return "it has no running statistics per channel"
    if isinstance(norm.module, _FROZEN):
        return "it is frozen"
    if isinstance(norm.module, nn.modules.instancenorm._InstanceNorm):
        return "it normalises within each sample"
    if deliberate:
        return "it is in eval() inside a model in train(): somebody froze it; name it in only="
    return None


def _population(name: str, calls: list[MomentStream]) -> Moments:
    total = total_of(calls)
    if not bool(total.m2.isfinite().all()) or not bool(total.mean.isfinite().all()):
        raise ModelError(
            f"the input of layer {name} holds NaN or infinity; "
            "check the weights and statistics of the layers before it"
        )
    if not bool((total.count > 1).any()):
        raise InputError(
            f"layer {name} saw one value per channel, which has no variance; give more data"
        )
    return total


def _told(name: str, layer: nn.Module, calls: list[MomentStream], total: Moments) -> Recalibrated:
    known = total.count > 1
    mean, var = (t.detach().to(total.mean.device, torch.float64) for t in tensors_of(layer))
    moved = drift(mean, var, total.mean, total.var(correction=1))
    one = MomentStream()
    one.blocks = [block for stream in calls for block in stream.blocks]
    one.samples = sum(stream.samples for stream in calls)
    error = 2 * one.drift_error()
    return Recalibrated(
        name=name,
        calls=len(calls),
        count=int(total.count[known].min()),
        moved=float(moved[known].max()),
        error=float(error[known].max()),
        absent=tuple((~known).nonzero().flatten().tolist()) if known.dim() else (),
    )


def _write(layer: nn.Module, total: Moments, batches: int) -> None:
    known = (total.count > 1).unsqueeze(-1)
    for name, value in (("running_mean", total.mean), ("running_var", total.var(correction=1))):
        old = layer._buffers[name]
        assert old is not None, "chosen for its statistics"
        rounded = value.to(old.dtype)
        if not bool(rounded[known.expand_as(rounded)].isfinite().all()):
            raise ModelError(
                f"a {name} does not fit into {old.dtype}; hold the statistics in float32"
            )
        old.copy_(torch.where(known, rounded, old))
    counter = layer._buffers.get("num_batches_tracked")
    if counter is not None:
        average = getattr(layer, "momentum", None) is None
        seen = torch.full_like(counter, batches) if average else counter + batches
        counter.copy_(torch.where(total.count > 1, seen, counter) if counter.dim() else seen)


def _agree(group: dist.ProcessGroup | None, *, ok: bool) -> None:
    """Let every rank say whether it is well, so that none waits for one that has failed."""
    if group is not None and not all(gathered(ok, group)) and ok:
        raise ModelError("another rank failed; nothing was changed on any rank")


def _shared_order(order: list[str], group: dist.ProcessGroup | None) -> list[str]:
    """Return the order of first calls; of the first rank that has data."""
    if group is None:
        return order
    _agree(group, ok=True)
    return next((known for known in gathered(order, group) if known), [])


def _joined(
    layers: Mapping[str, nn.Module],
    streams: dict[str, list[MomentStream]],
    names: list[str],
    group: dist.ProcessGroup | None,
) -> dict[str, list[MomentStream]]:
    """Return the streams, or of all ranks: one stream whose blocks are those of every rank."""
    if group is None:
        return {name: streams[name] for name in names if name in streams}
    _agree(group, ok=True)
    joined = {}
    for name in names:
        mean, _ = tensors_of(layers[name])
        calls = streams.get(name, [])
        own = total_of(calls) if calls else Moments.empty(*mean.shape, device=mean.device)
        stream = MomentStream()
        facts = gathered((sum(t.samples for t in calls), sum(t.batches for t in calls)), group)
        stream.blocks = [own.all_reduce(group)]
        stream.samples, stream.batches = map(sum, zip(*facts, strict=True))
        joined[name] = [stream]
    return joined
