"""What is stored against what the data say."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from normscope.doctor.adapt import CONFIDENT, adapt, certainty
from normscope.doctor.attribution import Override
from normscope.doctor.checks.base import Check, CheckContext, Skip, broken, register
from normscope.doctor.evidence import Evidence
from normscope.doctor.state import LayerState
from normscope.moments import Moments, drift, rms
from normscope.probe.compare import SURE, Answer
from normscope.probe.stream import total_of
from normscope.records import Finding, Severity


@register("NS003", needs="data", repair="recalibrate", cause="stale", specific=1)
class Stale(Check):
    """Statistics that are not those of the data."""

    source = "normed Wasserstein distance, 0.1 as in drift detection by Evidently"
    warn, fail = 0.1, 0.5

    def judge(self, case: CheckContext, state: LayerState) -> Iterator[Finding]:
        away = case.away(state)
        if away is None or state.name in case.other_inputs:
            return
        # what a running average of so many batches and this momentum strays by chance
        usual = 3 * chance(case.evidence, state)
        size = rms(away)
        over = (away > self.warn) & (away > usual)
        grade = self.graded(size, case)
        few = float(over.double().mean()) <= 0.05 and not bool((away > self.fail).any())
        if not bool(over.any()) or (grade is None and few):
            return
        severity, threshold = grade or ("warning", self.warn)
        mean, var = case.evidence.population(state.name)
        var = var.clamp(min=1e-12)
        known = var.isfinite() & ~broken(state)
        shift = ((state.mean - mean) / var.sqrt())[known.expand_as(mean)]
        ratio = (state.var.clamp(min=1e-12) / var).log()[known.expand_as(mean)]
        yield self.finding(
            state.name, severity, size, threshold, channels=over, shift=rms(shift),
            ratio=float(ratio.mean().exp()), worst=float(away.max()),
            kind="kept" if case.keep_stored else "",
        )  # fmt: skip


def chance(data: Evidence, state: LayerState) -> Tensor:
    """Compute how far a running average strays from the truth, in deviations of the data.

    sqrt(m / (2-m)) times that of one batch's statistics, which is read from between the batches.
    """
    m = 0.0 if state.momentum is None else min(max(state.momentum, 0.0), 1.0)
    stream = data.by_batch[state.name][0]
    one = stream.drift_error() * max(len(stream.blocks), 1) ** 0.5
    stray: Tensor = one * (m / (2 - m)) ** 0.5
    return stray.nan_to_num(0).cpu()


@register("NS029", needs="data")
class Unrepresentative(Check):
    """Data at hand that cannot stand for those of training."""

    source = "paired comparison on the data, 2 standard errors; distance as in NS003"
    warn = 0.1

    def find(self, case: CheckContext) -> Iterator[Finding]:
        gap = case.evidence.gap
        if not gap.known and not case.evidence.few:
            raise Skip("doctor.skip.quality")
        worst = case.furthest
        if not case.keep_stored or worst <= self.warn or case.attribution is None:
            return
        if not case.restored < -SURE:
            yield self.finding(
                "", "info", worst, kind="few", distinct=case.evidence.distinct,
                samples=gap.samples,
            )  # fmt: skip
            return
        before, after = gap.other, gap.reference
        kind = "metric" if before.metrics else "accuracy" if before.right else "loss"
        classes = len(before.truth)
        yield self.finding(
            "", "info", worst, kind=kind, eval=getattr(before, kind),
            train=getattr(after, kind), samples=gap.samples,
            classes=int((before.truth > 0).sum()), outputs=classes,
        )  # fmt: skip


@register("NS004", needs="data", specific=0)
class TrainEvalGap(Check):
    """The same samples come out differently in train() and in eval()."""

    source = "measured: healthy digits networks 0.7 %, batch size 2 29 %"
    warn, fail = 0.02, 0.1

    def find(self, case: CheckContext) -> Iterator[Finding]:
        gap = case.evidence.gap
        if not gap.samples:
            raise Skip("doctor.skip.outputs")
        classes = gap.disagreement == gap.disagreement
        scale = 1.0 if classes else 5.0  # relative differences are larger than disagreements
        apart = gap.disagreement if classes else gap.relative
        grade = self.graded(apart / scale, case)
        if grade is not None:
            severity, threshold = grade
            explained = 0.0 if case.attribution is None else case.attribution.of_batches
            left = gap.relative * max(1 - explained**2, 0.0) ** 0.5
            noise = not gap.known and left < self.warn * 5  # of batches of this size
            if noise or case.keep_stored or gap.advantage > SURE:
                severity = "info"
            train, evaluated = gap.accuracies
            yield self.finding(
                "", severity, apart, threshold * scale, kind="argmax" if classes else "relative",
                relative=gap.relative, train=train, eval=evaluated,
            )  # fmt: skip


@register("NS013", needs="data", repair="recalibrate", cause="dropout")
class DropoutBefore(Check):
    """Dropout changes the variance that the layer learned."""

    source = "Li et al. 2019, 'Disharmony between dropout and batch normalization'"
    warn = 0.2

    def judge(self, case: CheckContext, state: LayerState) -> Iterator[Finding]:
        if not case.evidence.dropped:
            raise Skip("doctor.skip.dropout")
        if state.name not in case.evidence.dropped or state.name in case.damaged:
            return
        on = total_of(case.evidence.dropped[state.name])
        off_mean, off_var = case.evidence.population(state.name)
        on_var = on.var(correction=1).cpu()
        ratio = float((off_var.clamp(min=1e-12) / on_var.clamp(min=1e-12)).log().mean().exp())
        # it is the cause only where the stored statistics are those with dropout on
        with_on = rms(drift(state.mean, state.var, on.mean.cpu(), on_var))
        with_off = rms(drift(state.mean, state.var, off_mean, off_var))
        if not 1 - self.warn < ratio < 1 / (1 - self.warn) and with_on < with_off:
            severity: Severity = "error" if case.gap_matters else "warning"
            yield self.finding(state.name, severity, ratio, 1 - self.warn, ratio=ratio)


@register("NS017", needs="data", repair="split", cause="reused")
class Reused(Check):
    """One layer, several places."""

    source = "distance between calls as in NS003; Wu and Johnson 2021, table 5"
    warn = 0.1

    def judge(self, case: CheckContext, state: LayerState) -> Iterator[Finding]:
        calls = [t.total() for t in case.evidence.by_batch.get(state.name, [])]
        stored = [(c.mean, c.var(correction=1)) for c in calls]
        away = max((rms(drift(*other, *stored[0])) for other in stored[1:]), default=0.0)
        if away > self.warn:
            grave = case.gap_matters and away > 0.5
            yield self.finding(
                state.name, "error" if grave else "warning", away, calls=len(calls), distance=away
            )

    def override(self, case: CheckContext, names: tuple[str, ...]) -> Override:
        return Override(by_batch=set(names))


@register("NS021", needs="data", repair="domains", cause="domains")
class MixedDomains(Check):
    """Domains that differ more than classes do."""

    source = "eta^2 of domain over eta^2 of class"
    warn = 1.0

    def find(self, case: CheckContext) -> Iterator[Finding]:
        places = case.evidence.places
        if not places.repeats:
            raise Skip("doctor.skip.domains")
        apart = places.excess() > 0.3  # batches of one domain, mixed statistics in eval()
        for state in case.layers:
            if state.mean.dim() > 1 or state.name not in case.evidence.by_domain:
                continue
            domain = _eta2(case.evidence.by_domain[state.name])
            kinds = case.evidence.by_class.get(state.name)
            label = 0.05 if kinds is None else max(_eta2(kinds), 0.01)
            if domain > 0.05 and (domain / label > self.warn or apart):
                yield self.finding(
                    state.name, "warning" if case.gap_matters else "info", domain / label,
                    domain=domain, label=label,
                )  # fmt: skip

    def fixed(
        self, case: CheckContext, names: tuple[str, ...]
    ) -> tuple[str, Sequence[Answer]] | None:
        assert case.attribution is not None, "asked with data only"
        return self.cause, case.attribution.by_domain()


def _eta2(sets: Moments) -> float:
    """Average over channels the share of variance that lies between the sets."""
    total = sets.pool().m2
    share = 1 - sets.m2.sum(0) / total.clamp(min=1e-12)
    return float(share[total > 1e-12].mean()) if bool((total > 1e-12).any()) else 0.0


@register("NS022", needs="data", repair="adapt", specific=1)
class Drift(Check):
    """Data in use that are not those of training."""

    source = "normed Wasserstein distance as in NS003; Schneider et al. 2020"
    warn, fail = 0.1, 0.5

    def find(self, case: CheckContext) -> Iterator[Finding]:
        if case.live is None:
            raise Skip("doctor.skip.live")
        for state in case.layers:
            if state.name in case.damaged or state.name not in case.live.stored:
                continue
            total = total_of(case.live.stored[state.name])
            away = drift(state.mean, state.var, total.mean.cpu(), total.var(1).cpu())
            size = rms(away)
            grade = self.graded(size)
            if grade is not None:
                severity, threshold = grade
                unsure = self._unsure(case, case.live)
                kind = (
                    "plain" if unsure != unsure else "scale" if unsure <= CONFIDENT else "classes"
                )
                yield self.finding(
                    state.name, severity, size, threshold, channels=away > self.warn,
                    kind=kind, unsure=unsure,
                )  # fmt: skip
                return  # what comes behind follows from it

    def _unsure(self, case: CheckContext, live: Evidence) -> float:
        """Return the entropy of live predictions after adapting, over that on training data."""
        values = [answer.values for answer in live.eval]
        scores = all(v.shape[1] > 1 and bool(v.isfinite().all()) for v in values)
        if case.data is None or not scores:
            return float("nan")
        reference = certainty(case.model, case.data.loader)
        done = adapt(case.model, live.loader)
        done.undo()
        return done.unsure(reference)
