"""What reaches the model: inputs that were prepared otherwise than in training."""

from collections.abc import Iterator

from normscope.doctor.checks.base import Check, CheckContext, Skip, register
from normscope.moments import rms
from normscope.records import Finding


@register("NS033", needs="data", cause="other_scale")
class OtherScale(Check):
    """Inputs on another scale than in training, or with other columns."""

    source = (
        "factors of 1.5 and more whose logarithms differ by 0.1 at most; an order or units that "
        "bring the statistics 5 times nearer"
    )
    warn, fail = 0.1, 0.5

    def find(self, case: CheckContext) -> Iterator[Finding]:
        away = {s.name: a for s in case.layers if not s.fresh and (a := case.away(s)) is not None}
        if not away:
            raise Skip("doctor.skip.none")
        for name, factor in case.scales.items():
            size = rms(away[name])
            severity, threshold = self.graded(size, case) or ("warning", self.warn)
            yield self.finding(name, severity, size, threshold, factor=factor)
        for name, channels in case.columns.items():
            size = rms(away[name])
            severity, threshold = self.graded(size, case) or ("warning", self.warn)
            yield self.finding(
                name, severity, size, threshold, channels=channels, kind="columns",
                count=int(channels.sum()), of=len(channels),
            )  # fmt: skip
