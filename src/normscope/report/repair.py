"""A repair as a document: what was tried, what held-out samples said, what was kept."""

import math
from functools import partial

from normscope.records import Repaired, Score, Trial
from normscope.report import document as doc
from normscope.report.bilingual import Text, few, joined, labelled, tr
from normscope.report.checks import advice, listed, title
from normscope.report.document import Bar, Bars, Document, Table, assembled
from normscope.report.format import percent, three


def document(record: Repaired) -> Document:
    """Show what a repair came to, without the diagnosis before it."""
    title = tr("doctor.repair.title", model=record.model)
    return assembled("doctor", title, {"repair": blocks(record)})


def blocks(record: Repaired) -> list[doc.Block]:
    """Tell what was tried, what held-out samples said, and what was kept."""
    kept: doc.FindingStyle = "good" if record.kept else "note"
    made: list[doc.Block] = [doc.Finding(kept, None, tuple(outcome(record)))]
    if record.trials:
        bars = _before_after(record)
        made += [bars, _trials(record)] if bars.bars else [_trials(record)]
    for code in record.advice:
        lines = (tr("doctor.repair.advice"), advice(code))
        made.append(doc.Finding("warn", labelled(code, title(code)), lines))
    return made


def _before_after(record: Repaired) -> Bars:
    """Draw every measure of held-out samples before and after, each on a scale of its own."""
    bars = []
    for name, higher in (("metric", True), ("accuracy", True), ("loss", False), ("gap", False)):
        before, after = getattr(record.before, name), getattr(record.after, name)
        if math.isnan(before) or math.isnan(after):
            continue
        most = 1.0 if name == "accuracy" else max(abs(before), abs(after)) or 1.0
        shares = tuple(min(max(v / most, 0.0), 1.0) for v in (before, after))
        better = (after > before) == higher and after != before
        style: doc.BarStyle = "good" if better else "" if after == before else "warn"
        text = _change(record, name)
        bars.append(Bar(tr(f"doctor.measure.{name}"), shares, text, style))
    return Bars(tr("doctor.repair.picture"), tr("doctor.repair.bars"), tuple(bars))


def _trials(record: Repaired) -> Table:
    """List every remedy: before, after, and what held-out samples said."""
    measures = ["accuracy", "loss", "gap"]
    if not math.isnan(record.before.metric):
        measures.insert(0, "metric")
    return listed(
        "doctor.section.repair",
        record.trials,
        {
            "remedy": lambda t: tr(f"doctor.remedy.{t.remedy}"),
            "code": lambda t: ", ".join(t.codes),
            "layers": lambda t: few(t.layers),
            **{name: partial(_change, name=name) for name in measures},
            "verdict": _judged,
        },
    )


def _judged(trial: Trial) -> Text:
    """Say what became of a remedy."""
    if trial.note:
        return tr("doctor.repair.unfit", note=trial.note)
    if trial.kept:
        return tr("doctor.repair.kept" if trial.helps else "doctor.repair.forced")
    return tr("doctor.repair.taken_back")


def outcome(record: Repaired) -> list[Text]:
    """Say what a repair came to."""
    if record.kept:
        names = joined((tr(f"doctor.remedy.{name}") for name in record.kept), zh="、")
        found = [_outcome(record.before, record.after, names)]
    else:
        found = [tr(f"doctor.repair.verdict.{'none' if record.trials else 'nothing'}")]
    return [*found, tr("doctor.repair.dry")] if record.dry_run else found


def _outcome(before: Score, after: Score, remedies: Text) -> Text:
    """Say by how much the first measure that is known changed."""
    known = (n for n in ("metric", "accuracy", "loss") if not math.isnan(getattr(after, n)))
    name = next(known, "gap")
    key = (
        {"accuracy": "kept", "gap": "unlabelled"}.get(name, name) if before.samples else "unjudged"
    )
    show = percent if name == "accuracy" else three
    return tr(
        f"doctor.repair.verdict.{key}",
        remedies=remedies,
        before=show(getattr(before, name)),
        after=show(getattr(after, name)),
        loss_before=three(before.loss),
        loss_after=three(after.loss),
    )


def _change(record: Repaired | Trial, name: str) -> str:
    before, after = getattr(record.before, name), getattr(record.after, name)
    if math.isnan(before) or math.isnan(after):
        return "-"
    show = percent if name == "accuracy" else three
    return f"{show(before)} → {show(after)}"
