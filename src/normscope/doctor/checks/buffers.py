"""What the stored numbers of a layer say by themselves: these need a checkpoint, no model."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from normscope.doctor.checks.base import Case, Check, Skip, broken
from normscope.doctor.state import LayerState
from normscope.doctor.tally import distance
from normscope.records import Finding


@dataclass
class ColdStatistics(Check):
    """Statistics that still hold their start.

    Running statistics begin at mean 0 and variance 1. After t batches at momentum m a share
    w = (1-m)^t of that start is left in them; with few batches or a small momentum it is most of
    what eval() uses. A layer that still has exactly (0, 1) was never updated at all. With the
    default momentum 0.1 the share falls below 1 % after 44 batches. What is left of the start
    can be taken out without data: mean/(1-w) and (var-w)/(1-w).
    """

    code = "NS002"
    family = "buffers"
    needs = "checkpoint"
    source = "(1-m)^t from the definition of the running average"
    repair = "correct_cold"
    warn: float = 0.01
    fail: float = 0.1

    def find(self, case: Case) -> Iterator[Finding]:
        for state in case.layers:
            if state.fresh:
                grave = bool(state.tracked) or case.gap_matters
                yield self.finding(
                    state.name, "error" if grave else "warning", 1.0, self.fail,
                    repair="recalibrate", tracked=state.tracked or 0, kind="never",
                )  # fmt: skip
                continue
            share, corrected = state.init_share, state.corrected()
            grade = self.graded(share)
            if grade is None or corrected is None or self._refuted(case, state):
                continue
            severity, threshold = grade
            known = state.module is not None
            if severity == "error" and case.data is not None and not case.gap_matters:
                severity, threshold = "warning", self.warn
            yield self.finding(
                state.name, severity, share, threshold,
                confidence="high" if case.data is not None else "medium" if known else "low",
                tracked=state.tracked, momentum=state.momentum or 0.0, kind="cold",
            )  # fmt: skip

    def _refuted(self, case: Case, state: LayerState) -> bool:
        """Whether the data lie closer to what is stored than to what the formula makes of it."""
        corrected = state.corrected()
        if case.data is None or corrected is None or state.name not in case.data.by_batch:
            return False
        total = case.data.population(state.name)
        mean, var = total.mean.cpu(), total.var(correction=1).cpu()
        now = distance(state.mean, state.var, mean, var)
        then = distance(*corrected, mean, var)
        return float(then.pow(2).mean()) >= float(now.pow(2).mean())


@dataclass
class NotFinite(Check):
    """Statistics that are NaN, infinite or negative.

    One infinite value in one batch makes the running statistics of its channel NaN for ever;
    variances computed as E[x^2] - E[x]^2 can come out negative. In train() nothing shows, since
    the batch normalises; in eval() the channel is NaN. Measure those channels again from data,
    and keep batches that are not finite out with normscope.guard(model, skip_nonfinite=True).
    """

    code = "NS009"
    family = "buffers"
    needs = "checkpoint"
    source = "a variance is finite and not negative"
    repair = "mend_channels"

    def find(self, case: Case) -> Iterator[Finding]:
        for state in case.layers:
            bad = broken(state)
            if bool(bad.any()):
                share = float(bad.double().mean())
                yield self.finding(
                    state.name, "error", share, 0.0, channels=bad, count=int(bad.sum()),
                    of=bad.numel(),
                )  # fmt: skip
            for what in (state.weight, state.bias):
                if what is not None and not bool(what.isfinite().all()):
                    gone = ~what.isfinite()
                    yield self.finding(
                        state.name, "error", float(gone.double().mean()), 0.0, channels=gone,
                        repair="", count=int(gone.sum()), of=gone.numel(),
                    )  # fmt: skip


@dataclass
class TinyVariance(Check):
    """Variances as small as eps.

    The layer divides by sqrt(var + eps). Where var is not much larger than eps, eps decides the
    scale, and a port between libraries with another eps (1e-3 in Keras and EfficientNet, 1e-5 in
    torch) changes the output. Counted are channels with var < 10 eps that are not constant. Take
    the eps that the weights were trained with.
    """

    code = "NS006"
    family = "buffers"
    needs = "checkpoint"
    source = "eps then changes the scale by 5 % or more"
    repair = "choose_eps"
    warn: float = 0.05

    def find(self, case: Case) -> Iterator[Finding]:
        for state in case.layers:
            small = (state.var >= 0) & (state.var < 10 * state.eps)
            share = float(small.double().mean())
            grade = self.graded(share)
            if grade is not None:
                severity, threshold = grade
                yield self.finding(
                    state.name, severity, share, threshold, channels=small, eps=state.eps,
                    smallest=float(state.var.min()),
                    confidence="medium" if state.module is not None else "low",
                )  # fmt: skip


@dataclass
class DeadScale(Check):
    """Channels whose scale is nearly zero.

    With |gamma| < 0.01 a channel puts out its beta whatever comes in. Training with weight decay
    or an L1 penalty makes such channels on purpose; they can be pruned. Whether the channel is
    dead depends on beta too: it may still carry a constant that the next layer needs.
    """

    code = "NS010"
    family = "buffers"
    needs = "checkpoint"
    source = "Frankle et al. 2021, section 5: |gamma| < 0.01"
    warn: float = 0.01

    def find(self, case: Case) -> Iterator[Finding]:
        for state in case.layers:
            if state.weight is None:
                continue
            dead = state.weight.abs() < self.warn
            if bool(dead.any()):
                share = float(dead.double().mean())
                yield self.finding(
                    state.name, "info", share, self.warn, channels=dead, count=int(dead.sum()),
                    of=dead.numel(),
                )  # fmt: skip


@dataclass
class DeadGates(Check):
    """Gates that never open, or never close.

    Behind the layer a non-linearity passes y > 0, that is z > -beta/gamma in standard
    deviations. Beyond 3 standard deviations a gate is always shut (the channel is lost) or
    always open (the non-linearity does nothing). With data the share of values that pass is
    counted; without, beta/|gamma| is read. Lower the learning rate, or set gamma to 1 and beta
    to 0 on those channels and train on.
    """

    code = "NS011"
    family = "buffers"
    needs = "checkpoint"
    source = "share of channels; Phi(-3) = 0.13 %"
    warn: float = 0.1

    def find(self, case: Case) -> Iterator[Finding]:
        for state in case.layers:
            if state.name in case.damaged:
                continue
            gates, seen = self._gates(case, state)
            if gates is None:
                continue
            shut, wide = gates
            share = float((shut | wide).double().mean())
            if share > self.warn:
                yield self.finding(
                    state.name, "warning" if seen else "info", share, self.warn,
                    channels=shut | wide, confidence="high" if seen else "low",
                    shut=int(shut.sum()), open=int(wide.sum()), of=shut.numel(),
                )  # fmt: skip

    def _gates(
        self, case: Case, state: LayerState
    ) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, bool]:
        if case.data is not None:
            look = case.data.looks.get(state.name)
            if look is None or look.fired is None or not look.activation:
                return None, True  # nothing gates this layer
            share = look.fired.cpu().double() / max(look.values, 1)
            return (share < 0.001, share > 0.999), True
        if state.weight is None or state.bias is None:
            return None, False
        place = state.bias / state.weight.abs().clamp(min=1e-12)
        return (place < -3, place > 3), False


@dataclass
class Precision(Check):
    """Statistics in 16 bits, or a mean that drowns the spread.

    half and bfloat16 hold three or two decimal digits: running averages stop moving, and
    variances overflow at 65504. And where |mean| is over a thousand standard deviations, sums of
    squares in float32 lose the variance. Keep the statistics in float32 (layer.float() after
    model.half()), and put data on one scale.
    """

    code = "NS023"
    family = "buffers"
    needs = "checkpoint"
    source = "float32 keeps 7 digits; E[x^2] - E[x]^2 needs twice those of mean/std"
    warn: float = 1e3

    def find(self, case: Case) -> Iterator[Finding]:
        for state in case.layers:
            if state.dtype in (torch.float16, torch.bfloat16):
                bits = str(state.dtype).removeprefix("torch.")
                yield self.finding(
                    state.name, "warning", 16.0, 32.0, kind="bits", dtype=bits,
                    repair="widen",
                )  # fmt: skip
            far = state.mean.abs() / state.var.clamp(min=1e-30).sqrt()
            far = torch.where((state.var > 0) & far.isfinite(), far, 0)
            if float(far.max()) > self.warn:
                yield self.finding(
                    state.name, "warning", float(far.max()), self.warn, channels=far > self.warn,
                    kind="ratio", dtype=str(state.dtype).removeprefix("torch."),
                )  # fmt: skip


@dataclass
class DoubleUpdates(Check):
    """Layers that counted their batches twice.

    Recomputing activations for gradient checkpointing, gradient accumulation and several
    forwards per step each update the running statistics once more. Then some layers have
    counted a multiple of the batches that others have, and remember a shorter past. Statistics
    stay roughly right; with normscope.guard(model, update="step") each step counts once.
    """

    code = "NS027"
    family = "buffers"
    needs = "checkpoint"
    source = "every layer sees every batch once"
    repair = "recalibrate"
    warn: float = 1.5

    def find(self, case: Case) -> Iterator[Finding]:
        counts = [s.tracked for s in case.layers if s.tracked]
        if len(counts) < 2:
            raise Skip("doctor.skip.counters")
        usual = sorted(counts)[0]
        for state in case.layers:
            ratio = (state.tracked or 0) / usual
            if ratio > self.warn:
                yield self.finding(
                    state.name, "warning", ratio, self.warn, tracked=state.tracked, usual=usual,
                    confidence="medium",
                )  # fmt: skip
