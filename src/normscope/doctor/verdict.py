"""What explains most: findings in the order of their weight, and what is at fault."""

from collections.abc import Sequence

from normscope.doctor.checks import CHECKS
from normscope.probe.compare import SURE
from normscope.records import SEVERITIES, Cause, Finding, Verdict

OF_DATA = ("NS007", "NS008", "NS020", "NS022", "NS029", "NS033")  # batches are at fault
IN_USE = "NS022"  # weights are not trained on data in use, so other statistics can serve them
UNFIT = "NS029"  # the data cannot judge the model
SCALED = "NS033"  # statistics of such inputs serve no others
PARTICULAR = 0.15  # share of the gap that a general cause must close beyond a particular one
LITTLE = 0.2  # share of the gap below which a cause explains nothing


def ranked(findings: Sequence[Finding], causes: Sequence[Cause]) -> list[Finding]:
    """Order the findings, the one that explains most first; notes last.

    A cause is measured by the share of the gap that goes when it alone is fixed. A general
    cause, as stale statistics, always covers a particular one: it comes first only where it
    closes more than the best particular one by PARTICULAR. Data that cannot judge the model come
    before all but errors of the model's own, as a layer left in train().
    """
    closes: dict[str, float] = {}
    for cause in causes:
        if not cause.advantage < -SURE:
            closes[cause.code] = max(closes.get(cause.code, 0.0), min(cause.closes, 1.0))
    gravest = {
        code: max(SEVERITIES.index(f.severity) for f in findings if f.code == code)
        for code in {f.code for f in findings}
    }
    best = max((closes.get(f.code, 0.0) for f in findings if _particular(f)), default=0.0)

    def place(finding: Finding) -> tuple[bool, bool, float, float, float, str]:
        code = finding.code
        share = closes.get(code, 0.0)
        covered = not _particular(finding) and share < best + PARTICULAR
        explains = share if share >= LITTLE and not covered else 0.0
        note = gravest[code] == 0
        specific = CHECKS[code].specific
        # a fault that the model shows by itself stands, whatever the data are
        certain = UNFIT in gravest and gravest[code] == 2 and CHECKS[code].needs == "model"
        first = certain or code == UNFIT
        return (not first, note, -round(explains, 2), -specific, -gravest[code], code)

    return sorted(findings, key=place)


def _particular(finding: Finding) -> bool:
    return CHECKS[finding.code].specific == 2


def verdict(findings: Sequence[Finding], causes: Sequence[Cause]) -> Verdict:
    """Name the finding that explains most, whose fault it is, and what would do harm."""
    first = next(iter(findings), None)
    if first is None or (first.severity == "info" and first.code != UNFIT):
        return Verdict(kind="nothing")
    own = [cause for cause in causes if cause.code == first.code]
    share = max((cause.closes for cause in own), default=float("nan"))
    if first.code == UNFIT:
        return Verdict(kind="data", code=first.code, closes=share, warns="recalibrate")
    if first.code in OF_DATA:
        warns = {IN_USE: "", SCALED: "recalibrate"}.get(first.code, "retrain")
        return Verdict(kind="data", code=first.code, closes=share, warns=warns)
    worse = [c.code for c in causes if c.advantage < -SURE]
    cold = [c for c in causes if c.name == "cold" and c.closes < 0]
    if any(finding.code == UNFIT for finding in findings):
        return Verdict(kind="statistics", code=first.code, closes=share, warns="recalibrate")
    warns = "cold" if "NS002" in worse or cold else ""
    return Verdict(kind="statistics", code=first.code, closes=share, warns=warns)
