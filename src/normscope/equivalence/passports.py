"""The passport of a checkpoint: what no state dict carries, made from a model and its data."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normscope import __version__
from normscope.errors import InputError, ModelError
from normscope.layers import FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d
from normscope.layers.statistics import RunningStatistics
from normscope.moments import drift
from normscope.probe.batches import Forward, Loader
from normscope.probe.grammar import Labels
from normscope.probe.layers import Norm, bare, find_norms
from normscope.probe.restore import preserved
from normscope.probe.run import NormRun, tensors_of
from normscope.probe.stream import MomentStream, total_of
from normscope.records import DataPassport, Mismatch, NormPassport, Passport

SKETCHES = 4  # random sums of means and of variances
STATISTICS = ("running_mean", "running_var")
ROUNDING = 2  # rounding errors of the coarser dtype, that a copy in another one may be off by
FROZEN = (FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d)


def passport(
    model: nn.Module,
    loader: Iterable[Any] | Loader | None = None,
    *,
    forward: Forward | None = None,
    labels: Labels | None = None,
    batch_limit: int | None = None,
) -> Passport:
    """Write down what a checkpoint of this model does not carry.

    Of every norm with running statistics: eps, momentum, the convention of its variance, mode and
    freeze flags, and a digest of the statistics. With data also which they are (how many batches
    of which sizes, and the moments of what enters the first norm), how far the stored statistics
    are from them, and with which standard error so many batches determine them. The data are read
    once, each norm normalising by the batch as in training; the model comes back as it was.

    >>> import torch, normscope
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4, eps=1e-3))
    >>> normscope.passport(model).norms[0].eps
    0.001

    Args:
        model: any module; it is not changed.
        loader: the batches that made the statistics, or some of them.
        forward: forward(model, batch), for batches of another structure.
        labels: a key or position in the batch, or labels(batch).
        batch_limit: read so many batches at most.

    Raises:
        ModelError: no norm with running statistics, a forward that fails.
        InputError: a loader that fails or is empty.
    """
    norms = [n for n in find_norms(model) if n.skipped is None]
    if not norms:
        raise ModelError(
            f"the model ({type(bare(model)).__name__}) has no norm with running statistics; there "
            "is nothing that a passport could say"
        )
    streams: dict[str, list[MomentStream]] = {}
    data = None
    if loader is not None:
        read = loader
        if not isinstance(read, Loader):
            read = Loader(read, model, forward=forward, labels=labels, limit=batch_limit)
        streams, data = _measured(model, read, norms)
    return Passport(
        model=type(bare(model)).__name__,
        torch=torch.__version__,
        normscope=__version__,
        norms=tuple(_norm(norm, streams.get(norm.name)) for norm in norms),
        data=data,
    )


def compare_to_passport(subject: nn.Module | Mapping[str, Any], own: Passport) -> list[Mismatch]:
    """Find where a model or a state dict is not what its passport says.

    Statistics count as the same where they are so to the bit, or up to the rounding of a change
    of dtype. eps and momentum are those of a model; a state dict has none.
    """
    found: list[Mismatch] = []
    held = _held(subject)
    for norm in own.norms:
        here = held.get(norm.name)
        if here is None:
            found.append(Mismatch(code="missing", norm=norm.name, passport=norm.layer, found=""))
            continue
        mean, var, layer = here
        if layer is not None:
            found += _settings(norm, layer)
        if len(mean.flatten()) != norm.channels:
            sizes = (str(norm.channels), str(len(mean.flatten())))
            found.append(
                Mismatch(code="channels", norm=norm.name, passport=sizes[0], found=sizes[1])
            )
        elif (moved := _moved(norm, mean, var)) is not None:
            start = bool((mean == 0).all()) and bool((var == 1).all())
            found.append(
                Mismatch(
                    code="reset" if start else "overwritten",
                    norm=norm.name,
                    passport=norm.digest,
                    found=_digest(mean, var),
                    amount=moved,
                )
            )
    return found


def apply_passport(model: nn.Module, own: Passport) -> tuple[str, ...]:
    """Set eps and momentum of a model's norms to what its passport says; return what changed.

    >>> import torch, normscope
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4, eps=1e-3))
    >>> other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    >>> normscope.apply_passport(other, normscope.passport(model))
    ('1',)

    Raises:
        InputError: a norm of the passport that the model does not have; nothing was changed.
    """
    layers = {n.name: n.module for n in find_norms(model)}
    absent = [norm.name for norm in own.norms if norm.name not in layers]
    if absent:
        raise InputError(
            f"the passport is of a {own.model} with norm {absent[0]!r}, which the model "
            f"({type(bare(model)).__name__}) does not have; give the model that it was made of"
        )
    changed = []
    for norm in own.norms:
        layer: Any = layers[norm.name]
        if _settings(norm, layer):
            layer.eps = norm.eps
            if hasattr(layer, "momentum"):
                layer.momentum = norm.momentum
            changed.append(norm.name)
    return tuple(changed)


def _settings(norm: NormPassport, layer: nn.Module) -> list[Mismatch]:
    found = []
    eps = float(getattr(layer, "eps", norm.eps))
    if abs(eps - norm.eps) > 1e-6 * max(eps, norm.eps):
        found.append(
            Mismatch(code="eps", norm=norm.name, passport=f"{norm.eps:.4g}", found=f"{eps:.4g}")
        )
    momentum = getattr(layer, "momentum", norm.momentum)
    if momentum != norm.momentum:
        texts = ["None" if m is None else f"{m:.4g}" for m in (norm.momentum, momentum)]
        found.append(Mismatch(code="momentum", norm=norm.name, passport=texts[0], found=texts[1]))
    return found


Held = dict[str, tuple[Tensor, Tensor, nn.Module | None]]


def _held(subject: nn.Module | Mapping[str, Any]) -> Held:
    """Mean and variance by the name of the norm, and the layer of a model."""
    if isinstance(subject, nn.Module):
        norms = [n for n in find_norms(subject) if n.skipped is None]
        return {n.name: (*tensors_of(n.module), n.module) for n in norms}
    found: Held = {}
    for key, mean in subject.items():
        name, _, last = key.rpartition(".")
        var = subject.get(f"{name}.running_var" if name else "running_var")
        if last == "running_mean" and isinstance(mean, Tensor) and isinstance(var, Tensor):
            # as wrappers and torch.compile call it
            plain = ".".join(p for p in name.split(".") if p not in ("_orig_mod", "module"))
            found[plain or "BatchNorm"] = (mean, var, None)
    return found


def _norm(norm: Norm, streams: list[MomentStream] | None) -> NormPassport:
    layer: Any = norm.module
    mean, var = tensors_of(layer)
    affine = [p for p in layer.parameters(recurse=False) if p is not None]
    tracked = getattr(layer, "num_batches_tracked", None)
    ours = isinstance(layer, (_BatchNorm, RunningStatistics, *FROZEN))
    known: dict[str, float] = {}
    if streams:
        known = _distances(mean, var, streams)
    sketch, sizes = _sketch(mean, var)
    return NormPassport(
        name=norm.name,
        layer=type(layer).__name__,
        channels=mean.numel(),
        eps=float(getattr(layer, "eps", math.nan)),
        momentum=getattr(layer, "momentum", None),
        convention="unbiased" if ours else "unknown",
        training=layer.training,
        frozen=isinstance(layer, FROZEN)
        or (bool(affine) and not any(p.requires_grad for p in affine)),
        tracked=int(tracked.max()) if isinstance(tracked, Tensor) and tracked.numel() else None,
        dtype=str(mean.dtype).removeprefix("torch."),
        digest=_digest(mean, var),
        sketch=sketch,
        deviations=sizes,
        **known,
    )


def _digest(mean: Tensor, var: Tensor) -> str:
    """Of the numbers in float32, which hold every narrower one."""
    whole = hashlib.sha256()
    for tensor in (mean, var):
        whole.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return whole.hexdigest()[:24]


def _signs(channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.randint(0, 2, (SKETCHES, channels), generator=generator).double() * 2 - 1


def _sketch(mean: Tensor, var: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Random signed sums of means and of deviations, and the sizes to measure a change by."""
    m, v = (t.detach().cpu().double().flatten() for t in (mean, var))
    signs = _signs(len(m))
    deviation = v.clamp(min=0).sqrt()
    sums = [*(signs @ m), *(signs @ deviation)]
    size = float(deviation.pow(2).mean().sqrt())
    return tuple(map(float, sums)), (size, float(m.abs().max()))


def _moved(norm: NormPassport, mean: Tensor, var: Tensor) -> float | None:
    """About how far the statistics are from the passport's, in deviations; None where they are not.

    A random signed sum of the differences has their sum of squares as its mean square.
    """
    if _digest(mean, var) == norm.digest:
        return None
    sums, _ = _sketch(mean, var)
    off = torch.tensor(sums) - torch.tensor(norm.sketch)
    if not bool(off.isfinite().all()):
        return math.inf
    distance = math.sqrt(float(off.double().pow(2).mean()) * 2 / max(norm.channels, 1))
    size, largest = norm.deviations
    written = getattr(torch, norm.dtype, torch.float32)
    eps = max(torch.finfo(t).eps for t in (written, mean.dtype))
    rounding = ROUNDING * eps * (size + largest) if written != mean.dtype else 0.0
    return None if distance <= rounding else distance / max(size, 1e-30)


def _distances(mean: Tensor, var: Tensor, streams: list[MomentStream]) -> dict[str, float]:
    total = total_of(streams)
    measured = total.var(correction=1)
    apart = drift(mean.detach().double().cpu(), var.detach().double().cpu(),
                  total.mean.cpu(), measured.cpu())  # fmt: skip
    mean_error, var_error = streams[0].errors()
    own = total.var(correction=0).clamp(min=1e-30).cpu()
    alive = measured.cpu() > 1e-10
    if not bool(alive.any()):
        return {}
    return {
        "distance": float(apart[alive].pow(2).mean().sqrt()),
        "mean_error": float((mean_error.cpu() / own.sqrt())[alive].pow(2).mean().sqrt()),
        "var_error": float((var_error.cpu() / own)[alive].pow(2).mean().sqrt()),
    }


def _measured(
    model: nn.Module, loader: Loader, norms: list[Norm]
) -> tuple[dict[str, list[MomentStream]], DataPassport | None]:
    layers = {n.name: n.module for n in norms}
    run = NormRun(layers, by_batch=set(layers))
    sizes: Counter[int] = Counter()
    with preserved(model), run.active():
        for batch in loader.read():
            run.run(loader, model, batch)
            sizes[batch.size] += 1
    if not run.order:
        return {}, None
    first = run.order[0]
    total = total_of(run.streams[first])
    flat = total.pool() if total.mean.dim() > 1 else total
    return run.streams, DataPassport(
        batches=sum(sizes.values()),
        samples=sum(size * count for size, count in sizes.items()),
        sizes=tuple(size for size, _ in sizes.most_common(8)),
        norm=first,
        count=int(flat.count),
        mean=tuple(map(float, flat.mean)),
        var=tuple(map(float, flat.var(correction=1))),
    )
