"""What the stored numbers of a layer say by themselves: these need a checkpoint, no model."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from normscope.doctor.attribution import Override
from normscope.doctor.checks.base import Check, CheckContext, Skip, broken, register
from normscope.doctor.state import LayerState
from normscope.moments import drift, rms
from normscope.probe.compare import SURE, Answer, Quality, advantage
from normscope.records import Finding

FEW = 10  # steps, too few to compare with
OFTEN = 5  # updates in a step; more are of an earlier training
POINTS = 0.02  # of accuracy that another eps must bring
LOWER = 0.2  # or share of the loss that it must take away
DEAD = 1000  # a variance below eps over this is that of a constant
USUAL_EPS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # torch 1e-5, Keras 1e-3, ViTs 1e-6


@register("NS002", repair="correct_cold", cause="cold")
class ColdStatistics(Check):
    """Statistics that still hold their start."""

    source = "(1-m)^t from the definition of the running average"
    warn, fail = 0.01, 0.1

    def judge(self, case: CheckContext, state: LayerState) -> Iterator[Finding]:
        if state.fresh:
            grave = bool(state.tracked) or case.gap_matters
            yield self.finding(
                state.name, "error" if grave else "warning", 1.0, self.fail,
                repair="recalibrate", tracked=state.tracked or 0, kind="never",
            )  # fmt: skip
            return
        share, corrected = state.init_share, state.corrected()
        grade = self.graded(share, case)
        if grade is None or corrected is None or self._refuted(case, state):
            return
        if state.name in case.other_inputs:
            return
        severity, threshold = grade
        known = state.module is not None
        if case.keep_stored:
            severity = "info"
        yield self.finding(
            state.name, severity, share, threshold,
            confidence="high" if case.data is not None else "medium" if known else "low",
            tracked=state.tracked, momentum=state.momentum or 0.0, kind="cold",
        )  # fmt: skip

    def fixed(
        self, case: CheckContext, names: tuple[str, ...]
    ) -> tuple[str, Sequence[Answer]] | None:
        if case.attribution is None:
            return None
        states, target = case.attribution.states, case.attribution.target
        if all(states[n].fresh for n in names):
            return "never_updated", case.attribution.answers(self.override(case, names))
        stored = {n: states[n].corrected() or target[n] for n in names}
        return self.cause, case.attribution.answers(Override(stored))

    def _refuted(self, case: CheckContext, state: LayerState) -> bool:
        """Return whether the data lie closer to what is stored than to what the formula makes."""
        corrected, now = state.corrected(), case.away(state)
        if now is None or corrected is None:
            return False
        then = drift(*corrected, *case.evidence.population(state.name))
        return rms(then.nan_to_num(0)) >= rms(now)


@register("NS009", repair="repair_channels", cause="not_finite")
class NotFinite(Check):
    """Statistics that are NaN, infinite or negative."""

    source = "a variance is finite and not negative"

    def override(self, case: CheckContext, names: tuple[str, ...]) -> Override:
        assert case.attribution is not None, "asked with data only"
        stored = {}
        for name in names:
            state, (mean, var) = case.attribution.states[name], case.attribution.target[name]
            bad = broken(state)
            stored[name] = (torch.where(bad, mean, state.mean), torch.where(bad, var, state.var))
        return Override(stored)

    def judge(self, case: CheckContext, state: LayerState) -> Iterator[Finding]:
        affine = [~what.isfinite() for what in (state.weight, state.bias) if what is not None]
        for bad, repair in ((broken(state), self.repair), *((gone, "") for gone in affine)):
            if bool(bad.any()):
                share = float(bad.double().mean())
                yield self.finding(
                    state.name, "error", share, channels=bad, repair=repair, count=int(bad.sum()),
                    of=bad.numel(),
                )  # fmt: skip


@register("NS006", repair="choose_eps", cause="eps")
class TinyVariance(Check):
    """Variances as small as eps."""

    source = "eps then changes the scale by 5 % or more; accuracy rises by two points"
    warn = 0.05
    _eps: float | None = None  # that does better

    def find(self, case: CheckContext) -> Iterator[Finding]:
        tried = case.attribution is not None and case.data is not None and case.data.gap.known
        found = []
        for state in case.layers:
            most = 10 * max(USUAL_EPS if tried else (state.eps,))
            small = (state.var >= state.eps / DEAD) & (state.var < max(most, 10 * state.eps))
            share = float(small.double().mean())
            if share > self.warn:
                found.append((state, small, share))
        best = self._best(case) if tried and found else None
        if tried and best is None:
            return  # what is set does best
        for state, small, share in found:
            yield self.finding(
                state.name, "warning" if tried else "info", share, channels=small,
                eps=state.eps, smallest=float(state.var[small].min()), best=best or math.nan,
                kind="tried" if tried else "guess", confidence="high" if tried else "low",
            )  # fmt: skip

    def _best(self, case: CheckContext) -> float | None:
        """Return the usual eps that does best, where it does better beyond chance and by enough."""
        assert case.attribution is not None, "asked before"
        # in a model whose statistics are wrong, these come first
        restored = case.attribution.against_eval(case.attribution.restored).other
        best, reached = None, 0.0
        for eps in USUAL_EPS:
            if {s.eps for s in case.layers} == {eps}:
                continue
            answers = case.attribution.answers(self._with(case, eps))
            compared = case.attribution.against_eval(answers)
            gain = relevant_gain(compared.reference, compared.other)
            beaten = advantage(restored, compared.other) < 0
            if compared.advantage > SURE and gain > reached and not beaten:
                best, reached = eps, gain
        self._eps = best
        return best

    def _with(self, case: CheckContext, eps: float) -> Override:
        """Return statistics that normalise as if eps were another: var + eps stays what it is."""
        assert case.attribution is not None, "asked with data only"
        states = case.attribution.states.values()
        return Override({s.name: (s.mean, s.var + eps - s.eps) for s in states})

    def fixed(
        self, case: CheckContext, names: tuple[str, ...]
    ) -> tuple[str, Sequence[Answer]] | None:
        if self._eps is None or case.attribution is None:
            return None
        return self.cause, case.attribution.answers(self._with(case, self._eps))


def relevant_gain(old: Quality, new: Quality) -> float:
    """Return the metric's gain: of accuracy above POINTS, or of the loss above LOWER; 0 below.

    Another eps scales scores, which moves the loss a little without being right.
    """
    if old.metrics:
        return new.metric - old.metric
    share = 1 - new.loss / max(old.loss, 1e-12)
    rise = new.accuracy - old.accuracy if old.right else 0.0
    return share if rise >= POINTS or (rise >= 0 and share >= LOWER) else 0.0


@register("NS028")
class DeadChannels(Check):
    """Channels whose input is constant."""

    source = "var < eps / 1000: the output moves by 3 % of a standard deviation at most"

    def find(self, case: CheckContext) -> Iterator[Finding]:
        dead = {s.name: (s.var >= 0) & (s.var < s.eps / DEAD) for s in case.layers}
        count = sum(int(d.sum()) for d in dead.values())
        if count:
            name = max(dead, key=lambda n: int(dead[n].sum()))
            total = sum(d.numel() for d in dead.values())
            yield self.finding(
                name, "info", float(count), channels=dead[name], count=count, of=total,
                layers=sum(bool(d.any()) for d in dead.values()),
            )  # fmt: skip


@register("NS031")
class UnseenGroups(Check):
    """Groups of which nothing was ever seen."""

    source = "a group that was seen once has another mean"

    def judge(self, case: CheckContext, state: LayerState) -> Iterator[Finding]:
        if state.unseen and not state.fresh:
            count, shown = len(state.unseen), ", ".join(map(str, state.unseen[:5]))
            yield self.finding(
                state.name, "warning", float(count), groups=shown, count=count, of=len(state.mean)
            )


@register("NS010")
class DeadScale(Check):
    """Channels whose scale is nearly zero."""

    source = "Frankle et al. 2021, section 5: |gamma| < 0.01"
    warn = 0.01

    def judge(self, case: CheckContext, state: LayerState) -> Iterator[Finding]:
        if state.weight is None:
            return
        dead = state.weight.abs() < self.warn
        if bool(dead.any()):
            count, of = int(dead.sum()), dead.numel()
            yield self.finding(state.name, "info", count / of, channels=dead, count=count, of=of)


@register("NS011")
class DeadGates(Check):
    """Gates that never open, or never close."""

    source = "share of channels; Phi(-3) = 0.13 %"
    warn = 0.1

    def judge(self, case: CheckContext, state: LayerState) -> Iterator[Finding]:
        gates, seen = self._gates(case, state)
        if gates is None or state.name in case.damaged:
            return
        shut, wide = gates
        share = float((shut | wide).double().mean())
        if share > self.warn:
            yield self.finding(
                state.name, "warning" if seen else "info", share, channels=shut | wide,
                confidence="high" if seen else "low", shut=int(shut.sum()), open=int(wide.sum()),
                of=shut.numel(),
            )  # fmt: skip

    def _gates(
        self, case: CheckContext, state: LayerState
    ) -> tuple[tuple[Tensor, Tensor] | None, bool]:
        if case.data is not None:
            sample = case.evidence.layers.get(state.name)
            if sample is None or not isinstance(sample.active, Tensor) or not sample.activation:
                return None, True  # no activation follows this layer
            share = sample.active.cpu().double() / max(sample.values, 1)
            return (share < 0.001, share > 0.999), True
        if state.weight is None or state.bias is None:
            return None, False
        place = state.bias / state.weight.abs().clamp(min=1e-12)
        return (place < -3, place > 3), False


@register("NS023")
class Precision(Check):
    """Statistics in 16 bits, or a mean that drowns the spread."""

    source = "float32 keeps 7 digits; E[x^2] - E[x]^2 needs twice those of mean/std"
    warn = 1e3

    def judge(self, case: CheckContext, state: LayerState) -> Iterator[Finding]:
        dtype = str(state.dtype).removeprefix("torch.")
        if state.dtype in (torch.float16, torch.bfloat16):
            yield self.finding(
                state.name, "warning", 16.0, 32.0, kind="bits", dtype=dtype, repair="widen"
            )
        far = state.mean.abs() / state.var.clamp(min=1e-30).sqrt()
        far = torch.where((state.var > 0) & far.isfinite(), far, 0)
        yield from self.above(
            state.name, float(far.max()), channels=far > self.warn, kind="ratio", dtype=dtype
        )


@register("NS027", repair="recalibrate", cause="double_updates")
class DoubleUpdates(Check):
    """Layers that counted their batches more than once."""

    source = "every layer sees every batch once"
    warn = 1.5

    def find(self, case: CheckContext) -> Iterator[Finding]:
        counts = [s.tracked for s in case.layers if s.tracked]
        steps = steps_of(case.optimizer) * (case.accumulate or 1)
        steps = steps if steps >= FEW else 0
        if not counts or (len(counts) < 2 and not steps):
            raise Skip("doctor.skip.counters")
        usual = steps or min(counts)
        found = [s for s in case.layers if (s.tracked or 0) / usual > self.warn]
        # an optimizer that is new to a trained model has counted fewer steps, in no whole ratio
        ratios = [(s.tracked or 0) / usual for s in found]
        if steps and not all(
            ratio < OFTEN and abs(ratio - round(ratio)) < 0.02 for ratio in ratios
        ):
            raise Skip("doctor.skip.steps")
        if not found and not steps:
            raise Skip("doctor.skip.steps")  # all may have counted twice
        for state in found:
            yield self.finding(
                state.name, "warning", (state.tracked or 0) / usual,
                tracked=state.tracked, usual=usual, kind="steps" if steps else "layers",
                confidence="high" if steps else "medium",
            )  # fmt: skip


def steps_of(optimizer: torch.optim.Optimizer | None) -> int:
    """Return the steps that an optimizer has counted; 0 where it counts none."""
    if optimizer is None:
        return 0
    states = optimizer.state.values()
    return max((int(s["step"]) for s in states if "step" in s), default=0)
