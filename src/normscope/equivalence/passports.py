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
from normscope.moments import drift, rms
from normscope.probe.batches import Forward, Loader
from normscope.probe.grammar import Labels
from normscope.probe.layers import Norm, bare, find_norms
from normscope.probe.restore import preserved
from normscope.probe.run import NormRun, tensors_of
from normscope.probe.stream import MomentStream, total_of
from normscope.records import DataPassport, Mismatch, NormPassport, Passport
from normscope.records.passport import SKETCHES

ROUNDING = 2  # rounding errors of the coarser dtype, that a copy in another one may be off by
NAN = math.nan
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
        if not isinstance(loader, Loader):
            loader = Loader(loader, model, forward=forward, labels=labels, limit=batch_limit)
        streams, data = _measured(model, loader, norms)
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

    def add(code: Any, norm: NormPassport, was: object, now: object, amount: float = NAN) -> None:
        texts = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in (was, now))
        first, second = texts
        found.append(
            Mismatch(code=code, norm=norm.name, passport=first, found=second, amount=amount)
        )

    held = _held(subject)
    for norm in own.norms:
        if norm.name not in held:
            add("missing", norm, norm.layer, "")
            continue
        mean, var, layer = held[norm.name]
        eps = float(getattr(layer, "eps", norm.eps))
        if abs(eps - norm.eps) > 1e-6 * max(eps, norm.eps):
            add("eps", norm, norm.eps, eps)
        if (momentum := getattr(layer, "momentum", norm.momentum)) != norm.momentum:
            add("momentum", norm, norm.momentum, momentum)
        if mean.numel() != norm.channels:
            add("channels", norm, norm.channels, mean.numel())
        elif (moved := _moved(norm, mean, var)) is not None:
            new = bool((mean == 0).all() and (var == 1).all())
            code = "reset" if new else "overwritten"
            add(code, norm, norm.digest, _digest(mean, var), moved)
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
    layers: dict[str, Any] = {n.name: n.module for n in find_norms(model)}
    absent = [norm.name for norm in own.norms if norm.name not in layers]
    if absent:
        raise InputError(
            f"the passport is of a {own.model} with norm {absent[0]!r}, which the model "
            f"({type(bare(model)).__name__}) does not have; give the model that it was made of"
        )
    mismatches = compare_to_passport(model, own)
    changed = {m.norm for m in mismatches if m.code in ("eps", "momentum")}
    for norm in own.norms:
        if norm.name in changed:
            layers[norm.name].eps = norm.eps
            if hasattr(layers[norm.name], "momentum"):
                layers[norm.name].momentum = norm.momentum
    return tuple(norm.name for norm in own.norms if norm.name in changed)


def _held(
    subject: nn.Module | Mapping[str, Any],
) -> dict[str, tuple[Tensor, Tensor, nn.Module | None]]:
    """Return mean and variance by the name of the norm, and the layer of a model."""
    if isinstance(subject, nn.Module):
        norms = [n for n in find_norms(subject) if n.skipped is None]
        return {n.name: (*tensors_of(n.module), n.module) for n in norms}
    found: dict[str, tuple[Tensor, Tensor, nn.Module | None]] = {}
    for key, mean in subject.items():
        var = subject.get(f"{key.removesuffix('running_mean')}running_var")
        if key.endswith("running_mean") and isinstance(mean, Tensor) and isinstance(var, Tensor):
            # as wrappers and torch.compile call it
            parts = [p for p in key.split(".")[:-1] if p not in ("_orig_mod", "module")]
            found[".".join(parts) or "BatchNorm"] = (mean, var, None)
    return found


def _norm(norm: Norm, streams: list[MomentStream] | None) -> NormPassport:
    layer: Any = norm.module
    mean, var = tensors_of(layer)
    affine = list(layer.parameters(recurse=False))
    tracked = getattr(layer, "num_batches_tracked", None)
    ours = isinstance(layer, (_BatchNorm, RunningStatistics, *FROZEN))
    return NormPassport(
        name=norm.name,
        layer=type(layer).__name__,
        channels=mean.numel(),
        eps=float(getattr(layer, "eps", NAN)),
        momentum=getattr(layer, "momentum", None),
        convention="unbiased" if ours else "unknown",
        training=layer.training,
        frozen=isinstance(layer, FROZEN)
        or (bool(affine) and not any(p.requires_grad for p in affine)),
        tracked=int(tracked.max()) if isinstance(tracked, Tensor) and tracked.numel() else None,
        dtype=str(mean.dtype).removeprefix("torch."),
        digest=_digest(mean, var),
        sketch=tuple(map(float, _sketch(mean, var))),
        deviations=(rms(var.detach().cpu().double().clamp(min=0).sqrt()),
                    float(mean.detach().double().abs().max())),
        **(_distances(mean, var, streams) if streams else {}),
    )  # fmt: skip


def _digest(mean: Tensor, var: Tensor) -> str:
    """Hash the numbers in float32, which holds every narrower one."""
    whole = hashlib.sha256()
    for tensor in (mean, var):
        whole.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return whole.hexdigest()[:24]


def _sketch(mean: Tensor, var: Tensor) -> Tensor:
    """Return random signed sums of means and of deviations.

    Such a sum of differences has their sum of squares as its mean square.
    """
    m, v = (t.detach().cpu().double().flatten() for t in (mean, var))
    generator = torch.Generator().manual_seed(len(m))
    signs = torch.randint(0, 2, (SKETCHES, len(m)), generator=generator).double() * 2 - 1
    return torch.cat([signs @ m, signs @ v.clamp(min=0).sqrt()])


def _moved(norm: NormPassport, mean: Tensor, var: Tensor) -> float | None:
    """Estimate how far the statistics are from the passport's, in deviations; None: not at all."""
    if _digest(mean, var) == norm.digest:
        return None
    off = _sketch(mean, var) - torch.tensor(norm.sketch, dtype=torch.float64)
    if not bool(off.isfinite().all()):
        return math.inf
    distance = rms(off) * math.sqrt(2 / max(norm.channels, 1))
    size, largest = norm.deviations
    written = getattr(torch, norm.dtype, torch.float32)
    eps = max(torch.finfo(kind).eps for kind in (written, mean.dtype))
    rounding = ROUNDING * eps * (size + largest) if written != mean.dtype else 0.0
    return None if distance <= rounding else distance / max(size, 1e-30)


def _distances(mean: Tensor, var: Tensor, streams: list[MomentStream]) -> dict[str, float]:
    """Measure how far statistics are from data, and the standard errors of these."""
    total = total_of(streams)
    measured = total.var(correction=1).cpu()
    alive = measured > 1e-10
    if not bool(alive.any()):
        return {}
    stored, own = (t.detach().double().cpu() for t in (mean, var))
    apart = drift(stored, own, total.mean.cpu(), measured)
    mean_error, var_error = (error.cpu() for error in streams[0].errors())
    biased = total.var(correction=0).clamp(min=1e-30).cpu()
    return {
        "distance": rms(apart[alive]),
        "mean_error": rms((mean_error / biased.sqrt())[alive]),
        "var_error": rms((var_error / biased)[alive]),
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
