"""How layers are set: modes, momentum, freezing, averaging, optimizer, ranks."""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normscope.doctor.attribution import Override
from normscope.doctor.checks.base import Check, CheckContext, Skip, register
from normscope.doctor.state import LayerState
from normscope.layers.statistics import RunningStatistics
from normscope.moments import drift, rms
from normscope.probe.compare import Answer
from normscope.probe.layers import bare, in_training
from normscope.probe.ranks import gathered
from normscope.records import Finding

CLOSE = 0.5  # cosine of the weights of a copy and of what it follows
CONVENTIONS = (0.9, 0.95, 0.99, 0.997, 0.999)  # what other libraries call the same 0.1 ... 0.001


@register("NS001", needs="model", repair="eval_mode", cause="mode")
class Mode(Check):
    """Layers that normalise by the batch although the model is in eval()."""

    source = "eval() puts every layer into eval"

    def judge(self, case: CheckContext, state: LayerState) -> Iterator[Finding]:
        if in_training(case.model):
            raise Skip("doctor.skip.training")
        if state.module is not None and state.module.training:
            yield self.finding(state.name, "error", 1.0)

    def fixed(
        self, case: CheckContext, names: tuple[str, ...]
    ) -> tuple[str, Sequence[Answer]] | None:
        if case.attribution is None:
            return None
        as_is = case.attribution.answers(Override(by_batch=set(names)))
        differs = case.attribution.changes(as_is) > 1e-3
        return self.cause, case.attribution.train if differs else case.attribution.eval


@register("NS005", needs="model", repair="momentum", cause="momentum")
class Momentum(Check):
    """A momentum of another convention."""

    source = "torch: new = (1-m) old + m batch; ports of others' 0.9 ... 0.999"
    warn = 0.5

    def judge(self, case: CheckContext, state: LayerState) -> Iterator[Finding]:
        m = state.momentum
        if m is None:
            return
        named = any(abs(m - c) < 1e-9 for c in CONVENTIONS)
        if m == 0:
            yield self.finding(state.name, "info", m, momentum=m, kind="zero", repair="")
        elif m > self.warn or named:
            yield self.finding(
                state.name, "warning", m, momentum=m, other=round(1 - m, 6), kind="other",
                confidence="high" if named else "medium",
            )  # fmt: skip


@register("NS014", needs="model", repair="freeze", cause="fake_freeze")
class FakeFreeze(Check):
    """Layers that are frozen by half."""

    source = "pytorch issue 86590; a frozen layer changes nothing"
    warn = 0.1  # standard deviations that statistics moved, as in NS003

    def judge(self, case: CheckContext, state: LayerState) -> Iterator[Finding]:
        layer = state.module
        if layer is None or not isinstance(layer, (_BatchNorm, RunningStatistics)):
            return
        affine = list(layer.parameters(recurse=False))
        untracked = getattr(layer, "track_running_stats", True) is False
        if untracked:
            yield self.finding(state.name, "error", 1.0, 0.0, kind="untracked")
        elif affine and not any(p.requires_grad for p in affine):
            if _follows_another(bare(case.model), state.name):
                return
            # a model that learns nowhere is for inference: nothing there is half frozen
            learns = any(p.requires_grad for p in case.model.parameters())
            if layer.training:
                yield self.finding(state.name, "error", 1.0, 0.0, kind="params")
            elif learns and not in_training(case.model):
                away = case.away(state)
                # in eval() all along, or its statistics moved: the data tell
                moved = away is None or rms(away) > self.warn
                yield self.finding(
                    state.name, "warning" if moved else "info", 1.0, 0.0, kind="params",
                    confidence="medium" if moved else "low", repair=None if moved else "",
                )  # fmt: skip


def _follows_another(model: nn.Module, name: str) -> bool:
    """Return whether a layer is in a copy of a part that learns, whose weights lie close to it.

    The target network of BYOL and the key encoder of MoCo have no gradients and train on.
    """
    path = name.split(".")
    holders = (model.get_submodule(".".join(path[:end])) for end in range(1, len(path)))
    frozen = (part for part in holders if not any(p.requires_grad for p in part.parameters()))
    own = list(next(frozen, nn.Identity()).parameters())
    for other in model.modules():
        learned = list(other.parameters())
        pairs = [(a, b) for a, b in zip(own, learned, strict=False) if a.dim() > 1]
        alike = [p.shape for p in own] == [p.shape for p in learned]
        if alike and pairs and any(p.requires_grad for p in learned):
            a, b = (
                torch.cat([p.detach().flatten() for p in some]) for some in zip(*pairs, strict=True)
            )
            if float(F.cosine_similarity(a.double(), b.double(), 0)) > CLOSE:
                return True
    return False


@register("NS015", repair="recalibrate", cause="averaged")
class Averaged(Check):
    """Averaged weights with the statistics of others."""

    source = "Izmailov et al. 2018, section 3.2; distance as in NS003"
    warn, fail = 0.1, 0.5

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
        yield from self.above("", case.furthest, case, kind="stale", distance=case.furthest)


@register("NS016", needs="model")
class WeightDecay(Check):
    """Weight decay on scale and shift."""

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
            yield self.finding("", "info", max(d for _, d in hit), count=len(names), first=names[0])


@register("NS018", needs="model")
class Ranks(Check):
    """Ranks with statistics of their own."""

    source = "distance as in NS003"
    warn = 0.1

    def find(self, case: CheckContext) -> Iterator[Finding]:
        # every rank must ask, or those that do wait for ever
        if case.group is None or dist.get_world_size(case.group) < 2:
            raise Skip("doctor.skip.ranks")
        ranks = gathered([(s.mean, s.var) for s in case.layers], case.group)
        for number, state in enumerate(case.layers):
            others = [rank[number] for rank in ranks]
            away = max(float(drift(m, v, state.mean, state.var).max()) for m, v in others)
            yield from self.above(state.name, away)


@register("NS019", needs="model")
class Accumulation(Check):
    """Batches smaller than a step."""

    source = "a norm sees one forward at a time"
    warn = 1.0

    def find(self, case: CheckContext) -> Iterator[Finding]:
        if case.accumulate is None:
            raise Skip("doctor.skip.accumulate")
        if case.accumulate > self.warn:
            yield self.finding("", "info", float(case.accumulate), n=case.accumulate)


@register("NS030", needs="model", repair="copy_buffers", cause="not_following")
class NotFollowing(Check):
    """Buffers that do not follow the model that this one is an average or a copy of."""

    source = "distance from the statistics of the reference, as in NS003"
    warn, fail = 0.1, 0.5

    def judge(self, case: CheckContext, state: LayerState) -> Iterator[Finding]:
        if case.reference is None:
            raise Skip("doctor.skip.reference")
        other = case.followed.get(state.name)
        if other is not None and other.mean.shape == state.mean.shape:
            size = rms(drift(state.mean, state.var, other.mean, other.var))
            yield from self.above(state.name, size, kind="never" if state.fresh else "behind")

    def override(self, case: CheckContext, names: tuple[str, ...]) -> Override:
        found = {name: case.followed[name] for name in names if name in case.followed}
        return Override({name: (state.mean, state.var) for name, state in found.items()})
