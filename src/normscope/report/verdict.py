"""The sentences that open a report: each is computed from the numbers of the record."""

import math
from dataclasses import dataclass
from statistics import fmean, median

from normscope.records import Row, Run
from normscope.report.bilingual import Text, joined, said, sentences
from normscope.report.document import Finding
from normscope.report.format import deviation, number, percent


@dataclass(frozen=True)
class Difference:
    """Accuracy of one normalisation minus another's, over the seeds that both finished."""

    mean: float
    margin: float  # half the 95 % interval; NaN for one seed
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether the 95 % interval leaves out zero."""
        return abs(self.mean) > self.margin


def difference(run: Run, norm: str, other: str) -> Difference | None:
    """The paired difference; None where no seed finished under both."""
    scores = {
        (m.norm, m.seed): m.accuracy
        for m in run.members
        if m.status == "done" and math.isfinite(m.accuracy)
    }
    seeds = sorted(s for n, s in scores if n == norm and (other, s) in scores)
    if not seeds:
        return None
    pairs = [scores[norm, s] - scores[other, s] for s in seeds]
    if len(pairs) == 1:
        return Difference(pairs[0], math.nan, 1)
    from scipy.special import stdtrit  # takes a fifth of a second to import

    t = float(stdtrit(len(pairs) - 1, 0.975))  # Student's t, both tails 5 % together
    return Difference(fmean(pairs), t * deviation(pairs) / math.sqrt(len(pairs)), len(pairs))


def winner(run: Run) -> Finding:
    """Say which normalisation classifies best, and whether that is more than noise."""
    honest = [r for r in run.rows if not r.leaks and math.isfinite(r.mean)]
    if not honest:
        return Finding("warn", said("page.verdict.none"), (said("page.verdict.none.detail"),))
    ranked = sorted(honest, key=lambda r: -r.mean)
    best = ranked[0]
    accuracy = {"norm": best.norm, "accuracy": percent(best.mean)}
    if len(ranked) == 1:
        return Finding("good", said("page.verdict.only", **accuracy), (_spread(best),))
    found = {r.norm: difference(run, best.norm, r.norm) for r in ranked[1:]}
    level = [n for n, d in found.items() if d is None or not d.clear]
    parts = [_spread(best)] + [_against(n, d) for n, d in found.items() if d is not None]
    if any(d is not None and math.isnan(d.margin) for d in found.values()):
        return Finding("note", said("page.verdict.undecided", **accuracy), (sentences(*parts),))
    if level:
        names = {"others": joined(level, zh="、")}
        headline = said("page.verdict.level", **accuracy, **names)
        return Finding("note", headline, (sentences(*parts),))
    return Finding("good", said("page.verdict.won", **accuracy), (sentences(*parts),))


def _spread(row: Row) -> Text:
    finished = row.seeds - row.diverged
    if finished < 2 or math.isnan(row.spread):
        return said("page.verdict.one_seed", norm=row.norm)
    return said("page.verdict.spread", norm=row.norm, points=_points(row.spread), seeds=finished)


def _against(other: str, d: Difference) -> Text:
    if math.isnan(d.margin):
        return said("page.verdict.against.one", other=other, points=_signed(d.mean))
    return said(
        "page.verdict.against.clear" if d.clear else "page.verdict.against.noise",
        other=other,
        points=_signed(d.mean),
        low=_signed(d.mean - d.margin),
        high=_signed(d.mean + d.margin),
    )


def _points(share: float) -> str:
    return f"{100 * share:.2f}"


def _signed(share: float) -> str:
    return f"{100 * share:+.2f}".replace("-", "−")


def stopped(run: Run) -> list[Finding]:
    """Say which networks were stopped, and which diverged."""
    found = []
    if not run.complete:
        done = sum(m.status == "done" for m in run.members)
        planned = len(run.config.norms) * run.config.seeds
        text = said("page.verdict.stopped.detail", done=done, planned=planned)
        found.append(Finding("warn", said("page.verdict.stopped"), (text,)))
    diverged = [f"{r.norm} ({r.diverged}/{r.seeds})" for r in run.rows if r.diverged]
    if diverged:
        names = joined(diverged, zh="、")
        detail = said("page.verdict.diverged.detail", norms=names)
        found.append(Finding("warn", said("page.verdict.diverged"), (detail,)))
    return found


def trap(run: Run) -> list[Finding]:
    """Say what networks that are given the label reach without it."""
    found = []
    for row in run.rows:
        if row.leaks and row.without_label is not None and math.isfinite(row.mean):
            numbers = {
                "norm": row.norm,
                "with_label": percent(row.mean),
                "without": percent(row.without_label)
                if math.isfinite(row.without_label)
                else said("page.not_finite"),
            }
            headline = said("page.verdict.trap", **numbers)
            found.append(Finding("warn", headline, (said("page.verdict.trap.detail", **numbers),)))
    return found


def domains(run: Run) -> list[Finding]:
    """Say where the normalisations differ most between domains."""
    rows = [r for r in run.rows if r.by_domain and not r.leaks]
    if len(rows) < 2:
        return []
    gaps = {}
    for name in rows[0].by_domain:
        known = [(r.by_domain[name], r.norm) for r in rows if name in r.by_domain]
        known = [pair for pair in known if math.isfinite(pair[0])]
        if len(known) > 1:
            gaps[name] = max(known), min(known)
    if not gaps:
        return []
    domain, (high, low) = max(gaps.items(), key=lambda gap: gap[1][0][0] - gap[1][1][0])
    numbers = {"domain": domain, "best": high[1], "worst": low[1]}
    numbers |= {"high": percent(high[0]), "low": percent(low[0])}
    detail = said("page.verdict.domains.detail", **numbers)
    return [Finding("note", said("page.verdict.domains", **numbers), (detail,))]


def rates(run: Run) -> list[Finding]:
    """Say how wide the range of learning rates is that trains."""
    known = [
        (s.highest / s.lowest, s)
        for s in run.sweeps
        if s.lowest is not None and s.highest is not None
    ]
    if len(known) < 2:
        return []
    parts = [
        said(
            "page.verdict.rates.one",
            norm=s.norm,
            low=number(s.lowest or 0),
            high=number(s.highest or 0),
            factor=number(factor, digits=2),
        )
        for factor, s in known
    ]
    widest = max(factor for factor, _ in known)
    names = [s.norm for factor, s in known if math.isclose(factor, widest)]
    if len(names) == len(known):
        return [Finding("note", said("page.verdict.rates.alike"), (sentences(*parts),))]
    key = "page.verdict.rates.one_widest" if len(names) == 1 else "page.verdict.rates.widest"
    return [Finding("note", said(key, norms=joined(names, " and ", "、")), (sentences(*parts),))]


def drift(run: Run) -> list[Finding]:
    """Compare how much the inputs of layers move with and without batch norm."""
    drifts = {}
    for norm in ("batch", "none"):
        values = [d for t in run.traces if t.norm == norm for d in t.drift if math.isfinite(d)]
        if values:
            drifts[norm] = median(values)
    if len(drifts) < 2:
        return []
    calmer = drifts["batch"] < drifts["none"]
    headline = said("page.verdict.calmer" if calmer else "page.verdict.not_calmer")
    numbers = {norm: number(value, digits=2) for norm, value in drifts.items()}
    return [Finding("note", headline, (said("page.verdict.drift.detail", **numbers),))]
