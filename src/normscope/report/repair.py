"""A repair as a document: what was tried, what held-out samples said, what was kept."""

import math

from normscope.records import Repaired, Score, Trial
from normscope.report import document as doc
from normscope.report.bilingual import Text, said
from normscope.report.checks import Rows, advice, few, title, worded
from normscope.report.document import Bar, Bars, Document, Section, Table
from normscope.report.format import number, percent


def document(record: Repaired) -> Document:
    """Show what a repair came to, without the diagnosis before it."""
    return Document(said("doctor.repair.title", model=record.model), (section(record),))


def section(record: Repaired) -> Section:
    """Tell what was tried, what held-out samples said, and what was kept."""
    first, *others = outcome(record)
    kept: doc.FindingStyle = "good" if record.kept else "note"
    blocks: list[doc.Block] = [doc.Finding(kept, None, (first, *others))]
    if record.trials:
        bars = _before_after(record)
        if bars.bars:
            blocks.append(bars)
        blocks.append(trials(record))
    for code in record.advice:
        head = title(code)
        do = advice(code)
        lines = (said("doctor.repair.advice"), do)
        blocks.append(doc.Finding("warn", Text(f"{code}: {head.en}", f"{code}：{head.zh}"), lines))
    return Section(said("doctor.section.trials"), tuple(blocks), "repair")


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
        text = _change(before, after, share=name == "accuracy")
        style: doc.BarStyle = "good" if better else "" if after == before else "warn"
        bars.append(Bar(said(f"doctor.measure.{name}"), shares, text, style))
    return Bars(said("doctor.repair.picture"), said("doctor.repair.bars"), tuple(bars))


def trials(record: Repaired) -> Table:
    """Every remedy: before, after, and what held-out samples said."""
    rows: Rows = [
        [
            said(f"doctor.remedy.{t.remedy}"),
            ", ".join(t.codes),
            few(t.layers),
            _change(t.before.accuracy, t.after.accuracy, share=True),
            _change(t.before.loss, t.after.loss),
            _change(t.before.gap, t.after.gap),
            judged(t),
        ]
        for t in record.trials
    ]
    names = ["remedy", "code", "layers", "accuracy", "loss", "gap", "verdict"]
    if not math.isnan(record.before.metric):
        names.insert(3, "metric")
        for row, t in zip(rows, record.trials, strict=True):
            row.insert(3, _change(t.before.metric, t.after.metric))
    return worded(said("doctor.section.trials"), tuple(names), rows)


def judged(trial: Trial) -> Text:
    """What became of a remedy."""
    if trial.note:
        return said("doctor.repair.unfit", note=trial.note)
    if trial.kept:
        return said("doctor.repair.kept" if trial.helps else "doctor.repair.forced")
    return said("doctor.repair.taken_back")


def outcome(record: Repaired) -> list[Text]:
    """What a repair came to."""
    if not record.trials:
        found = [said("doctor.repair.verdict.nothing")]
    elif not record.kept:
        found = [said("doctor.repair.verdict.none")]
    else:
        names = [said(f"doctor.remedy.{name}") for name in record.kept]
        joined = Text(", ".join(t.en for t in names), "、".join(t.zh for t in names))
        found = [_outcome(record.before, record.after, joined)]
    if record.dry_run:
        found.append(said("doctor.repair.dry"))
    return found


def _outcome(before: Score, after: Score, names: Text) -> Text:
    if not before.samples:
        return said("doctor.repair.verdict.unjudged", remedies=names)
    for name in ("metric", "accuracy", "loss"):
        if not math.isnan(getattr(after, name)):
            break
    else:
        name = "gap"
    if name != "accuracy":
        key = "unlabelled" if name == "gap" else name
        values = [number(getattr(score, name), digits=3) for score in (before, after)]
        return said(
            f"doctor.repair.verdict.{key}", remedies=names, before=values[0], after=values[1]
        )
    return said(
        "doctor.repair.verdict.kept",
        remedies=names,
        before=percent(before.accuracy),
        after=percent(after.accuracy),
        loss_before=number(before.loss, digits=3),
        loss_after=number(after.loss, digits=3),
    )


def _change(before: float, after: float, *, share: bool = False) -> str:
    if math.isnan(before) or math.isnan(after):
        return "-"
    tell = percent if share else (lambda value: number(value, digits=3))
    return f"{tell(before)} → {tell(after)}"
