"""How the batches are made: their size, their composition, their padding."""

from collections.abc import Iterator

from torch.nn.modules.batchnorm import _BatchNorm

from normscope.doctor.checks.base import Check, CheckContext, Skip, register
from normscope.records import Finding, Severity


@register("NS007", needs="data", repair="own_weight")
class BatchSize(Check):
    """Batches too small to normalise with."""

    source = "Wu and He 2018, 'Group normalization': errors rise below 16 per batch"
    warn, fail = 16.0, 4.0

    def find(self, case: CheckContext) -> Iterator[Finding]:
        sizes, usual = case.evidence.sizes, case.evidence.usual
        layers = case.evidence.layers
        counts = {s.name: layers[s.name].effective() for s in case.layers if s.name in layers}
        if not counts:
            raise Skip("doctor.skip.none")
        # of an object that only forward= understands the number of samples is not known
        known = any(layers[name].sizes[0] == sizes[0] for name in counts)
        smallest = min(counts, key=lambda name: counts[name])
        m = counts[smallest]
        if known and usual == layers[smallest].positions == 1:
            # train() raises on one value per channel, so training had other batches than these
            yield self.finding(smallest, "info", m, self.warn, kind="refused", repair="")
        elif m < self.warn:
            grave = m < self.fail and case.gap_matters
            yield self.finding(
                smallest, "error" if grave else "warning", m, size=usual,
                kind="alone" if known and usual == 1 else "small",
            )  # fmt: skip
        elif known and min(sizes) == 1 and all(layers[n].positions == 1 for n in counts):
            yield self.finding("", "warning", 1.0, size=1, kind="last")


@register("NS008", needs="data")
class BatchComposition(Check):
    """Batches whose samples belong together."""

    source = "share of signal (1-r)(1-1/m), derived and measured on digits"
    warn, fail = 0.1, 0.3

    def find(self, case: CheckContext) -> Iterator[Finding]:
        labels = case.evidence.labels
        r, place = labels.excess(), labels.fixed_places()
        layer, spread = self._spread(case)
        if all(value != value for value in (r, place, spread)):
            if len(labels.counts) == 1:
                raise Skip("doctor.skip.one_class")
            raise Skip("doctor.skip.one_batch" if labels.counts else "doctor.skip.labels")
        m = case.evidence.usual
        for value, kind, name in (
            (r, "mates", ""),
            (place, "places", ""),
            (spread, "means", layer),
        ):
            grade = self.graded(value, case)
            if grade is None:
                continue
            severity, threshold = grade
            if severity == "error" and case.keep_stored:
                severity, threshold = "warning", self.warn
            if kind == "places" and not case.gap_matters:
                severity = "info"  # harmless where nothing depends on the place
            yield self.finding(
                name, severity, value, threshold, kind=kind, left=(1 - value) * (1 - 1 / m),
            )  # fmt: skip
            return

    def _spread(self, case: CheckContext) -> tuple[str, float]:
        """Return the layer whose samples correlate most within batches, and r less three errors."""
        best = ("", float("nan"))
        for name, sample in case.evidence.layers.items():
            r, error = sample.batch_correlation()
            if r - 3 * error > self.warn and not r < best[1]:
                best = (name, r)
            elif r == r and best[1] != best[1]:
                best = (name, 0.0)
        return best


@register("NS020", needs="data")
class Padding(Check):
    """Padding that counts as data."""

    source = "share of positions that enter the moments"
    warn = 0.05

    def find(self, case: CheckContext) -> Iterator[Finding]:
        # where labels say that eval() does as well, the weights have learned with it
        serves = case.evidence.gap.known and not case.gap_matters
        for state in case.layers:
            sample = case.evidence.layers.get(state.name)
            if sample is not None and sample.padded > self.warn:
                severity: Severity = "info" if serves else "warning"
                yield self.finding(state.name, severity, sample.padded, confidence="medium")
                return


@register("NS026", needs="data")
class Leak(Check):
    """An output that depends on who else is in the batch."""

    source = "rounding alone is far below"
    warn, fail = 1e-3, 1e-3

    def find(self, case: CheckContext) -> Iterator[Finding]:
        leak = case.evidence.leak
        if leak != leak:
            raise Skip(
                "doctor.skip.outputs" if case.evidence.sizes[0] > 1 else "doctor.skip.single"
            )
        if leak > self.fail:
            without = [
                name
                for name, m in case.model.named_modules()
                if isinstance(m, _BatchNorm) and m.running_mean is None
            ]
            norm = case.evidence.normalised
            yield self.finding(
                without[0] if without else "", "error" if norm else "warning", leak, self.fail,
                change=leak, kind="norm" if norm else "other",
                confidence="high" if norm else "medium",
            )  # fmt: skip
