"""Test-time adaptation: statistics mixed with those of live data, and the way back.

Optionally the scale and shift learn from the entropy of predictions, as Tent does; that can
collapse into one class, so it is watched, and taken back where it does.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normscope import probe
from normscope.doctor.recalibrate import chosen, measured
from normscope.errors import InputError, ModelError
from normscope.probe.batches import Forward, Loader
from normscope.probe.compare import leaves
from normscope.probe.frozen import check_runnable
from normscope.probe.grammar import Labels
from normscope.probe.restore import ModelSnapshot
from normscope.probe.run import tensors_of
from normscope.probe.stream import total_of

COLLAPSE = 0.7  # of the diversity of predictions before learning; below, it has collapsed
CONFIDENT = 2.0  # times the uncertainty on the source data; above, classes look too different


@dataclass(frozen=True)
class Certainty:
    """How sure and how diverse predictions are, in nats, without any label.

    Attributes:
        entropy: mean over samples of -sum_k p_k log p_k.
        diversity: entropy of the mean prediction; log K where all classes come up alike.
    """

    entropy: float
    diversity: float


@dataclass(frozen=True)
class Adaptation:
    """What `adapt` did.

    Attributes:
        model: changed.
        samples: live samples that were read.
        before, after: certainty on the live data.
        collapsed: whether learning was taken back; the statistics stay adapted.
    """

    model: nn.Module
    samples: int
    before: Certainty
    after: Certainty
    collapsed: bool
    _before: ModelSnapshot = field(repr=False)

    def __repr__(self) -> str:
        lines = [
            f"Adaptation of {type(self.model).__name__} to {self.samples} live samples",
            (
                f"entropy {self.before.entropy:.3g} -> {self.after.entropy:.3g}, diversity "
                f"{self.before.diversity:.3g} -> {self.after.diversity:.3g} nats"
            ),
        ]
        if self.collapsed:
            lines.append("learning collapsed and was taken back; the statistics stay adapted")
        return "\n".join([*lines, ".undo() brings the model back"])

    def undo(self) -> nn.Module:
        """Bring the model back as it was, to the byte; return it."""
        self._before.rollback()
        return self.model

    def promising(self, source: Certainty) -> bool:
        """Return whether the adapted model is about as sure on live data as on those of training.

        Where it is not, classes look different and statistics alone cannot help. No labels.
        """
        return self.unsure(source) <= CONFIDENT

    def unsure(self, source: Certainty) -> float:
        """Return entropy after adapting over that on the source (at least 0.05 nats)."""
        return self.after.entropy / max(source.entropy, 0.05)


def adapt(
    model: nn.Module,
    batches: Iterable[Any] | Loader,
    *,
    prior: float = 16,
    learn: bool = False,
    lr: float = 1e-3,
    steps: int = 1,
    forward: Forward | None = None,
    labels: Labels | None = None,
    batch_limit: int | None = None,
) -> Adaptation:
    """Move running statistics towards live data, as a transaction.

        mean = (N mean_source + n mean_live) / (N + n),   var likewise,   n live samples

    Layers before normalise with the live batch while it is measured. With learn, gamma and beta
    then descend the entropy of predictions, with Adam; when the diversity of predictions falls
    below 0.7 of what it was, they have collapsed and what was learned is taken back.

    Args:
        model: changed in place; an exception leaves it as it was.
        batches: live data; labels are not used.
        prior: N, how many samples the source statistics count for; 0: the live ones alone.
        learn: train gamma and beta too.
        lr: of Adam.
        steps: passes over the data while learning.
        forward: as for `recalibrate`.
        labels: likewise.
        batch_limit: likewise.

    Raises:
        InputError: a negative prior, a loader that fails or is empty.
        ModelError: a forward that fails, no layer with running statistics.

    Source: Schneider et al. 2020, "Improving robustness against common corruptions by covariate
    shift adaptation", equation 1; Wang et al. 2021, "Tent".

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    >>> live = [torch.randn(32, 4) + 1 for _ in range(4)]
    >>> normscope.adapt(net, live, prior=0).samples
    128
    """
    if prior < 0:
        raise InputError(f"prior is {prior}; it must be 0 or more samples")
    check_runnable(model, writes=True)
    loader = Loader.reading(batches, model, forward=forward, labels=labels, limit=batch_limit)
    start = ModelSnapshot(model)
    try:
        before = certainty(model, loader)
        layers, _ = chosen(model)
        streams, order = measured(model, loader, layers, "batch", "all")
        samples = 0
        with torch.no_grad():
            for name in order:
                samples = streams[name][0].samples
                total = total_of(streams[name])
                share = samples / (prior + samples)
                live = (total.mean, total.var(correction=1))
                for old, new in zip(tensors_of(layers[name]), live, strict=True):
                    mixed = (1 - share) * old + share * new
                    old.copy_(torch.where(mixed.isfinite(), mixed, old))
        collapsed = learn and _learned(model, loader, layers, lr, steps)
        after = certainty(model, loader)
    except BaseException:
        start.rollback()
        raise
    return Adaptation(model, samples, before, after, collapsed, start)


def certainty(model: nn.Module, batches: Iterable[Any] | Loader) -> Certainty:
    """Return the entropy of a model in eval() on some data; it is not changed.

    NaN where no output is (N, K, ...) with K > 1 scores. Positions of dense outputs count as
    samples.
    """
    loader = Loader.reading(batches, model)
    total, entropy, samples = None, 0.0, 0
    with probe.preserved(model):
        for batch in loader.read():
            scores = _scores(loader.run(model, batch), batch.size)
            if scores is None:
                return Certainty(math.nan, math.nan)
            p = scores.double().softmax(1)
            entropy += float(_entropy(p).sum())
            total = p.sum(0) if total is None else total + p.sum(0)
            samples += len(p)
    assert total is not None, "the loader raises where it is empty"
    return Certainty(entropy / samples, float(_entropy(total / samples)))


def _scores(output: Any, size: int) -> Tensor | None:
    """Return (M, K) of the first output that can be scores of classes over dimension 1."""
    for value in leaves(output):
        if value.is_floating_point() and value.dim() > 1 and len(value) == size:
            return value.movedim(1, -1).reshape(-1, value.shape[1]) if value.shape[1] > 1 else None
    return None


def _learned(
    model: nn.Module, loader: Loader, layers: dict[str, nn.Module], lr: float, steps: int
) -> bool:
    """Descend the entropy; whether it collapsed and was taken back."""
    own = [p for layer in layers.values() for p in layer.parameters(recurse=False)]
    if not own:
        raise ModelError("no layer has a scale and shift to learn; leave learn out")
    start = ModelSnapshot(model)
    floor = COLLAPSE * certainty(model, loader).diversity
    everything = list(model.parameters())
    wanted = [(p, p.requires_grad, p.grad) for p in everything]
    modes = [(m, m.training) for m in model.modules()]
    collapsed = False
    try:
        for module, _ in modes:
            module.training = False
        for p in everything:
            p.requires_grad_(any(p is q for q in own))
        optimizer = torch.optim.Adam(own, lr=lr)
        for _ in range(steps):
            for batch in loader.read():
                optimizer.zero_grad()
                scores = _scores(loader.run(model, batch), batch.size)
                if scores is None:
                    raise ModelError(
                        "the model's output is no score of classes (N, K): there is no entropy "
                        "to learn from; leave learn out"
                    )
                _entropy(scores.softmax(1)).mean().backward()
                optimizer.step()
            reached = certainty(model, loader).diversity
            if not math.isfinite(reached) or reached < floor:
                collapsed = True
                break
    finally:
        for p, requires_grad, grad in wanted:
            p.requires_grad_(requires_grad)
            p.grad = grad
        for module, mode in modes:
            module.training = mode
    if collapsed:
        start.rollback()
    return collapsed


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-12).log()).sum(-1)
