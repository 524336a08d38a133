"""How layers are set: modes, momentum, freezing, averaging, optimizer, ranks."""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from normscope.doctor.attribution import Override
from normscope.doctor.checks.base import Check, CheckContext, Skip, register
from normscope.doctor.state import of_model
from normscope.layers.statistics import RunningStatistics
from normscope.moments import drift
from normscope.probe.compare import Answer
from normscope.probe.layers import in_training
from normscope.records import Finding

CONVENTIONS = (0.9, 0.95, 0.99, 0.997, 0.999)  # what other libraries call the same 0.1 ... 0.001


@register
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
    cause = "mode"

    def find(self, case: CheckContext) -> Iterator[Finding]:
        if in_training(case.model):
            raise Skip("doctor.skip.training")
        for state in case.layers:
            if state.module is not None and state.module.training:
                yield self.finding(state.name, "error", 1.0, 0.0)

    def fixed(
        self, case: CheckContext, names: tuple[str, ...]
    ) -> tuple[str, Sequence[Answer]] | None:
        if case.attribution is None or case.data is None:
            return None
        as_is = case.attribution.answers(Override(by_batch=set(names)))
        differs = case.attribution.changes(as_is) > 1e-3
        return self.cause, case.data.train if differs else case.data.eval


@register
class Momentum(Check):
    """A momentum of another convention.

    torch's momentum is the weight of the new batch; in Keras, TensorFlow and JAX it is that of
    the old average. 0.99 carried over unchanged keeps the last batch only: take 1 - momentum,
    then measure the statistics again. With 0 new data never move the statistics: eval() is what
    it was, but fine-tuning will keep the statistics of the old data.
    """

    code = "NS005"
    family = "modes"
    needs = "model"
    source = "torch: new = (1-m) old + m batch; ports of others' 0.9 ... 0.999"
    repair = "momentum"
    cause = "momentum"
    warn = 0.5

    def find(self, case: CheckContext) -> Iterator[Finding]:
        for state in case.layers:
            m = state.momentum
            if m is None:
                continue
            named = any(abs(m - c) < 1e-9 for c in CONVENTIONS)
            if m == 0:
                yield self.finding(
                    state.name, "info", m, self.warn, momentum=m, kind="zero", repair=""
                )
            elif m > self.warn or named:
                yield self.finding(
                    state.name, "warning", m, self.warn, momentum=m, other=round(1 - m, 6),
                    confidence="high" if named else "medium", kind="other",
                )  # fmt: skip


@register
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
    cause = "fake_freeze"

    def find(self, case: CheckContext) -> Iterator[Finding]:
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
                if grave or (learns and not in_training(case.model)):
                    yield self.finding(
                        state.name, "error" if grave else "warning", 1.0, 0.0, kind="params",
                        confidence="high" if grave else "medium",
                    )  # fmt: skip


@register
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
    cause = "averaged"
    warn = 0.1
    fail = 0.5

    def find(self, case: CheckContext) -> Iterator[Finding]:
        is_average = any(n.rpartition(".")[2] == "n_averaged" for n in case.names)
        if case.subject is not None:
            swa = torch.optim.swa_utils.AveragedModel
            is_average |= any(isinstance(m, swa) for m in case.subject.modules())
        if not is_average:
            raise Skip("doctor.skip.average")
        if case.data is None:
            yield self.finding(
                "", "warning", 1.0, 0.0, confidence="low", kind="unknown", distance=0
            )
            return
        found = [away for s in case.layers if (away := case.away(s)) is not None]
        worst = max((float(away.pow(2).mean().sqrt()) for away in found), default=0.0)
        grade = self.graded(worst, case)
        if grade is not None:
            severity, threshold = grade
            yield self.finding("", severity, worst, threshold, kind="stale", distance=worst)


@register
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

    def find(self, case: CheckContext) -> Iterator[Finding]:
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


@register
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
    warn = 0.1

    def find(self, case: CheckContext) -> Iterator[Finding]:
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            raise Skip("doctor.skip.ranks")
        for state in case.layers:
            pair = torch.stack([state.mean, state.var])
            ranks = [torch.empty_like(pair) for _ in range(dist.get_world_size())]
            dist.all_gather(ranks, pair)
            away = max(float(drift(r[0], r[1], pair[0], pair[1]).max()) for r in ranks)
            if away > self.warn:
                yield self.finding(state.name, "warning", away, self.warn)


@register
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
    warn = 1.0

    def find(self, case: CheckContext) -> Iterator[Finding]:
        if case.accumulate is None:
            raise Skip("doctor.skip.accumulate")
        if case.accumulate > self.warn:
            yield self.finding("", "info", float(case.accumulate), self.warn, n=case.accumulate)


@register
class NotFollowing(Check):
    """Buffers that do not follow the model that this one is an average or a copy of.

    Averages and copies of weights (EMA, SWA, the target network of DQN, the key encoder of MoCo)
    are often updated over parameters() only: their running statistics then stay at their start,
    or far behind. Copy the buffers with the parameters, as torch's AveragedModel does with
    use_buffers=True, or measure the statistics again. Compared with diagnose(model, reference=).
    """

    code = "NS030"
    family = "modes"
    needs = "model"
    source = "distance from the statistics of the reference, as in NS003"
    repair = "copy_buffers"
    cause = "not_following"
    warn = 0.1
    fail = 0.5

    def find(self, case: CheckContext) -> Iterator[Finding]:
        if case.reference is None:
            raise Skip("doctor.skip.reference")
        followed = {s.name: s for s in of_model(case.reference)}
        for state in case.layers:
            other = followed.get(state.name)
            if other is None or other.mean.shape != state.mean.shape:
                continue
            size = float(drift(state.mean, state.var, other.mean, other.var).pow(2).mean().sqrt())
            grade = self.graded(size)
            if grade is not None:
                severity, threshold = grade
                yield self.finding(
                    state.name, severity, size, threshold,
                    kind="never" if state.fresh else "behind",
                )  # fmt: skip

    def override(self, case: CheckContext, names: tuple[str, ...]) -> Override:
        assert case.reference is not None, "found with one only"
        followed = {s.name: s for s in of_model(case.reference)}
        return Override({n: (followed[n].mean, followed[n].var) for n in names if n in followed})
