"""The sentences that open a report: each is computed from the numbers of the record."""

import math
from dataclasses import dataclass
from statistics import fmean, median

from normscope.records import Row, Run
from normscope.report.bilingual import Text, joined, sentences, tr
from normscope.report.document import Finding, FindingStyle
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
    """Compute the paired difference; None where no seed finished under both."""
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


def _found(style: FindingStyle, key: str, **values: object) -> Finding:
    """Make a finding of the message of a key, and of that of its detail."""
    return Finding(style, tr(key, **values), (tr(f"{key}.detail", **values),))


def winner(run: Run) -> Finding:
    """Say which normalisation classifies best, and whether that is more than noise."""
    honest = [r for r in run.rows if not r.leaks and math.isfinite(r.mean)]
    if not honest:
        return _found("warn", "page.verdict.none")
    best, *others = sorted(honest, key=lambda r: -r.mean)
    found = {r.norm: difference(run, best.norm, r.norm) for r in others}
    level = [n for n, d in found.items() if d is None or not d.clear]
    if not others:
        key = "only"
    elif any(d is not None and math.isnan(d.margin) for d in found.values()):
        key = "undecided"
    else:
        key = "level" if level else "won"
    values = {"norm": best.norm, "accuracy": percent(best.mean), "others": joined(level, zh="、")}
    parts = [_spread(best), *(_against(n, d) for n, d in found.items() if d is not None)]
    style: FindingStyle = "good" if key in ("only", "won") else "note"
    return Finding(style, tr(f"page.verdict.{key}", **values), (sentences(*parts),))


def _spread(row: Row) -> Text:
    finished = row.seeds - row.diverged
    if finished < 2 or math.isnan(row.spread):
        return tr("page.verdict.one_seed", norm=row.norm)
    points = f"{100 * row.spread:.2f}"
    return tr("page.verdict.spread", norm=row.norm, points=points, seeds=finished)


def _against(other: str, d: Difference) -> Text:
    key = "one" if math.isnan(d.margin) else "clear" if d.clear else "noise"
    ends = {"points": d.mean, "low": d.mean - d.margin, "high": d.mean + d.margin}
    values = {name: f"{100 * v:+.2f}".replace("-", "−") for name, v in ends.items()}
    return tr(f"page.verdict.against.{key}", other=other, **values)


def stopped(run: Run) -> list[Finding]:
    """Say which networks were stopped, and which diverged."""
    found = []
    if not run.complete:
        done = sum(m.status == "done" for m in run.members)
        planned = len(run.config.norms) * run.config.seeds
        found.append(_found("warn", "page.verdict.stopped", done=done, planned=planned))
    diverged = [f"{r.norm} ({r.diverged}/{r.seeds})" for r in run.rows if r.diverged]
    if diverged:
        found.append(_found("warn", "page.verdict.diverged", norms=joined(diverged, zh="、")))
    return found


def trap(run: Run) -> list[Finding]:
    """Say what networks that are given the label reach without it."""

    def reached(accuracy: float) -> Text | str:
        return percent(accuracy) if math.isfinite(accuracy) else tr("page.not_finite")

    return [
        _found(
            "warn",
            "page.verdict.trap",
            norm=row.norm,
            with_label=percent(row.mean),
            without=reached(row.without_label),
        )
        for row in run.rows
        if row.leaks and row.without_label is not None and math.isfinite(row.mean)
    ]


def domains(run: Run) -> list[Finding]:
    """Say where the normalisations differ most between domains."""
    rows = [r for r in run.rows if r.by_domain and not r.leaks]
    gaps = {}
    for name in rows[0].by_domain if rows else ():
        found = [(r.by_domain.get(name, math.nan), r.norm) for r in rows]
        known = [pair for pair in found if math.isfinite(pair[0])]
        if len(known) > 1:
            gaps[name] = max(known), min(known)
    if not gaps:
        return []
    domain, (high, low) = max(gaps.items(), key=lambda gap: gap[1][0][0] - gap[1][1][0])
    ends = {"high": percent(high[0]), "low": percent(low[0]), "best": high[1], "worst": low[1]}
    return [_found("note", "page.verdict.domains", domain=domain, **ends)]


def rates(run: Run) -> list[Finding]:
    """Say how wide the range of learning rates is that trains."""
    known = [(s.norm, s.lowest, s.highest) for s in run.sweeps if s.lowest and s.highest]
    if len(known) < 2:
        return []
    factors = {norm: high / low for norm, low, high in known}
    parts = [
        tr(
            "page.verdict.rates.one",
            norm=norm,
            low=number(low),
            high=number(high),
            factor=number(high / low, digits=2),
        )
        for norm, low, high in known
    ]
    widest = max(factors.values())
    names = [norm for norm, factor in factors.items() if math.isclose(factor, widest)]
    one = "one_widest" if len(names) == 1 else "widest"
    key = f"page.verdict.rates.{'alike' if len(names) == len(known) else one}"
    headline = tr(key, norms=joined(names, " and ", "、"))
    return [Finding("note", headline, (sentences(*parts),))]


def drift(run: Run) -> list[Finding]:
    """Compare how much the inputs of layers move with and without batch norm."""
    moved = {
        norm: [d for t in run.traces if t.norm == norm for d in t.drift if math.isfinite(d)]
        for norm in ("batch", "none")
    }
    if not all(moved.values()):
        return []
    middle = {norm: median(values) for norm, values in moved.items()}
    calmer = "calmer" if middle["batch"] < middle["none"] else "not_calmer"
    numbers = {norm: number(value, digits=2) for norm, value in middle.items()}
    detail = tr("page.verdict.drift.detail", **numbers)
    return [Finding("note", tr(f"page.verdict.{calmer}"), (detail,))]
