"""How layers are set: modes, momentum, freezing, averaging, optimizer, ranks."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normscope.doctor.checks.base import Case, Check, Skip
from normscope.doctor.tally import distance
from normscope.layers.statistics import RunningStatistics
from normscope.records import Finding

CONVENTIONS = (0.9, 0.95, 0.99, 0.997, 0.999)  # what other libraries call the same 0.1 ... 0.001


@dataclass
class Mode(Check):
    """Layers that normalise by the batch although the model is in eval().

    A layer whose training flag is set normalises with the batch at hand and goes on changing its
    statistics: an output then depends on what else is in the batch. It happens when train() is
    called on a part, when eval() is overridden, or when a part was added later. Call eval() on
    the model, and keep the mode with normscope.guard(model, use="stored").
    """

    code = "NS001"
    family = "modes"
    needs = "model"
    source = "eval() puts every layer into eval"
    repair = "eval_mode"

    def find(self, case: Case) -> Iterator[Finding]:
        assert case.model is not None, "needed"
        if case.model.training:
            raise Skip("doctor.skip.training")
        for state in case.layers:
            if state.module is not None and state.module.training:
                yield self.finding(state.name, "error", 1.0, 0.0)


@dataclass
class Momentum(Check):
    """A momentum of another convention.

    torch's momentum is the weight of the new batch; in Keras, TensorFlow and JAX it is that of
    the old average. 0.99 carried over unchanged keeps the last batch only, and 0 never moves.
    Take 1 - momentum, then measure the statistics again.
    """

    code = "NS005"
    family = "modes"
    needs = "model"
    source = "torch: new = (1-m) old + m batch; ports of others' 0.9 ... 0.999"
    repair = "momentum"
    warn: float = 0.5

    def find(self, case: Case) -> Iterator[Finding]:
        for state in case.layers:
            m = state.momentum
            if m is None or (isinstance(state.module, nn.Module) and not _tracks(state.module)):
                continue
            named = any(abs(m - c) < 1e-9 for c in CONVENTIONS)
            if m == 0 or m > self.warn or named:
                yield self.finding(
                    state.name, "warning", m, self.warn, momentum=m, other=round(1 - m, 6),
                    confidence="high" if named or m == 0 else "medium",
                )  # fmt: skip


@dataclass
class FakeFreeze(Check):
    """Layers that are frozen by half.

    With requires_grad False the scale and shift stay, but in train() the layer still normalises
    by the batch and still moves its running statistics: the part is not frozen. The same with
    track_running_stats=False on a layer that has buffers. And eval() on the part is lost at the
    next train() of the model. Make it normscope's FrozenBatchNorm, which has no modes.
    """

    code = "NS014"
    family = "modes"
    needs = "model"
    source = "pytorch issue 86590; a frozen layer changes nothing"
    repair = "freeze"

    def find(self, case: Case) -> Iterator[Finding]:
        assert case.model is not None, "needed"
        learns = any(p.requires_grad for p in case.model.parameters())
        for state in case.layers:
            layer = state.module
            if layer is None or not isinstance(layer, (_BatchNorm, RunningStatistics)):
                continue
            affine = list(layer.parameters(recurse=False))
            untracked = getattr(layer, "track_running_stats", True) is False
            if untracked:
                yield self.finding(state.name, "error", 1.0, 0.0, kind="untracked")
            elif affine and not any(p.requires_grad for p in affine):
                # a model that learns nowhere is for inference: nothing there is half frozen
                grave = layer.training
                if grave or (learns and not case.model.training):
                    yield self.finding(
                        state.name, "error" if grave else "warning", 1.0, 0.0, kind="params",
                        confidence="high" if grave else "medium",
                    )  # fmt: skip


@dataclass
class Averaged(Check):
    """Averaged weights with the statistics of others.

    Averages of weights (SWA, EMA, model soups) move every layer's input, but the running
    statistics are those of the weights before. Accuracy can fall to chance. Measure the
    statistics again with the averaged weights.
    """

    code = "NS015"
    family = "modes"
    needs = "checkpoint"
    source = "Izmailov et al. 2018, section 3.2; distance as in NS003"
    repair = "recalibrate"
    warn: float = 0.1
    fail: float = 0.5

    def find(self, case: Case) -> Iterator[Finding]:
        is_average = any(n.rpartition(".")[2] == "n_averaged" for n in case.names)
        if case.model is not None:
            swa = torch.optim.swa_utils.AveragedModel
            is_average |= any(isinstance(m, swa) for m in case.model.modules())
        if not is_average:
            raise Skip("doctor.skip.average")
        if case.data is None:
            yield self.finding(
                "", "warning", 1.0, 0.0, confidence="low", kind="unknown", distance=0
            )
            return
        worst = 0.0
        for state in case.layers:
            if state.name in case.data.by_batch:
                total = case.data.population(state.name)
                away = distance(
                    state.mean, state.var, total.mean.cpu(), total.var(correction=1).cpu()
                )
                worst = max(worst, float(away.pow(2).mean().sqrt()))
        grade = self.graded(worst)
        if grade is not None:
            severity, threshold = grade
            if severity == "error" and not case.gap_matters:
                severity, threshold = "warning", self.warn
            yield self.finding("", severity, worst, threshold, kind="stale", distance=worst)


@dataclass
class WeightDecay(Check):
    """Weight decay on scale and shift.

    Decay pulls gamma to 0 although a layer before it can undo any shrinking but this one; common
    practice leaves gamma and beta out. On weights before a norm decay does not regularise the
    function, it raises the effective learning rate lr/|w|^2. Put gamma and beta into a group
    with weight_decay=0.
    """

    code = "NS016"
    family = "modes"
    needs = "model"
    source = "He et al. 2019, 'Bag of tricks', section 3.1"

    def find(self, case: Case) -> Iterator[Finding]:
        if case.optimizer is None:
            raise Skip("doctor.skip.optimizer")
        decayed = {
            id(p): float(group.get("weight_decay", 0))
            for group in case.optimizer.param_groups
            for p in group["params"]
            if group.get("weight_decay", 0)
        }
        hit = [
            (s.name, decayed[id(p)])
            for s in case.layers
            if s.module is not None
            for p in s.module.parameters(recurse=False)
            if id(p) in decayed
        ]
        if hit:
            names = list(dict.fromkeys(name for name, _ in hit))
            yield self.finding(
                "", "info", max(d for _, d in hit), 0.0, count=len(names), first=names[0],
            )  # fmt: skip


@dataclass
class Ranks(Check):
    """Ranks with statistics of their own.

    In data-parallel training each rank normalises by its own share of the batch and keeps its
    own running statistics; which of them is saved is chance. Synchronise the layers (convert to
    "sync", or process_group="world"), or call normscope.merge_ranks(model) before saving.
    """

    code = "NS018"
    family = "modes"
    needs = "model"
    source = "distance as in NS003"
    warn: float = 0.1

    def find(self, case: Case) -> Iterator[Finding]:
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            raise Skip("doctor.skip.ranks")
        for state in case.layers:
            pair = torch.stack([state.mean, state.var])
            ranks = [torch.empty_like(pair) for _ in range(dist.get_world_size())]
            dist.all_gather(ranks, pair)
            away = max(float(distance(r[0], r[1], pair[0], pair[1]).max()) for r in ranks)
            if away > self.warn:
                yield self.finding(state.name, "warning", away, self.warn)


@dataclass
class Accumulation(Check):
    """Batches smaller than a step.

    With gradient accumulation the optimizer sees the whole batch, the norm one micro-batch: its
    noise is that of the micro-batch, and its statistics are updated several times a step. Keep
    the micro-batch at 16 or more, or update once a step with normscope.guard(model,
    update="step", optimizer=optimizer).
    """

    code = "NS019"
    family = "modes"
    needs = "model"
    source = "a norm sees one forward at a time"
    warn: float = 1.0

    def find(self, case: Case) -> Iterator[Finding]:
        if case.accumulate is None:
            raise Skip("doctor.skip.accumulate")
        if case.accumulate > self.warn:
            yield self.finding("", "info", float(case.accumulate), self.warn, n=case.accumulate)


def _tracks(layer: nn.Module) -> bool:
    return getattr(layer, "momentum", None) is not None
