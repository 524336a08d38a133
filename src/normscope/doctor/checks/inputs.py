"""What reaches the model: inputs that were prepared otherwise than in training."""

from collections.abc import Iterator

from normscope.doctor.checks.base import Check, CheckContext, Skip, register
from normscope.records import Finding


@register
class OtherScale(Check):
    """Inputs on another scale than in training."""

    code = "NS033"
    family = "batches"
    needs = "data"
    source = "factors of 1.5 and more whose logarithms differ by 0.1 at most"
    cause = "other_scale"
    warn = 0.1
    fail = 0.5

    def find(self, case: CheckContext) -> Iterator[Finding]:
        away = {s.name: a for s in case.layers if not s.fresh and (a := case.away(s)) is not None}
        if not away:
            raise Skip("doctor.skip.none")
        for name, factor in case.scales.items():
            size = float(away[name].pow(2).mean().sqrt())
            severity, threshold = self.graded(size, case) or ("warning", self.warn)
            yield self.finding(name, severity, size, threshold, factor=factor)
