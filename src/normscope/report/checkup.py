"""A diagnosis and a repair in sentences and tables, for the terminal and the page alike."""

import math
from collections.abc import Iterable

from normscope.records import Diagnosis, Finding, Gap, Repaired, Score, Trial
from normscope.report.bilingual import Text, said
from normscope.report.document import Cell, Table, table
from normscope.report.messages import catalogue
from normscope.report.story import number, percent
from normscope.report.verdict import Finding as Conclusion

NAMED = 3  # layers that are listed for one finding; the others are counted
WORDS = 24  # characters; what is longer is a sentence and may break
Rows = list[list[str | Text]]


def grouped(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Findings of the same code, severity and evidence sentence together."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for f in findings:
        groups.setdefault((f.code, f.severity, f.facts.get("kind", "")), []).append(f)
    return list(groups.values())


def evidence(finding: Finding) -> Text:
    """What was found, in one sentence with its numbers."""
    key = f"doctor.{finding.code}.found"
    kind = finding.facts.get("kind", "")
    if kind and f"{key}.{kind}" in catalogue():
        key = f"{key}.{kind}"
    values: dict[str, object] = dict(finding.facts)
    values["measured"] = number(finding.measured, digits=3)
    values["share"] = percent(finding.measured) if math.isfinite(finding.measured) else "-"
    return said(key, **values)


def title(code: str) -> Text:
    """What a check looks for, as a phrase."""
    return said(f"doctor.{code}.title")


def advice(code: str, kind: str = "") -> Text:
    """What to do about it."""
    key = f"doctor.{code}.do.{kind}"
    return said(key if kind and key in catalogue() else f"doctor.{code}.do")


def place(group: list[Finding]) -> Text | str:
    """The layers of a group, the first few by name."""
    names = [f.layer for f in group if f.layer]
    if not names:
        return said("doctor.whole")
    shown = ", ".join(names[:NAMED])
    if len(names) <= NAMED:
        return shown
    more = said("doctor.more", count=len(names) - NAMED)
    return Text(f"{shown} {more.en}", f"{shown} {more.zh}")


def verdict(record: Diagnosis) -> list[Text]:
    """The answer in a few sentences: what explains most, what not to do, what was measured."""
    passed, skipped = len(record.passed), len(record.skipped)
    found = record.verdict
    if found is None or found.kind == "nothing":
        kind = "partial" if skipped > passed else "notes" if record.findings else "healthy"
        texts = [said(f"doctor.verdict.{kind}", passed=passed, skipped=skipped)]
    elif found.code == "NS029":
        better = record.gap is not None and record.gap.advantage > 2
        texts = [said("doctor.verdict.better")] if better else []
        texts.append(said("doctor.verdict.kept"))
    else:
        kind = "batches" if found.kind == "data" else "sick"
        texts = [said(f"doctor.verdict.{kind}", title=title(found.code), code=found.code)]
        if found.closes > 0.2:
            texts.append(said("doctor.verdict.closes", share=percent(min(found.closes, 1.0))))
    if found is not None and found.warns:
        texts.append(said(f"doctor.not.{found.warns}"))
    return texts + ([] if record.gap is None else _gap(record.gap))


def _gap(gap: Gap) -> list[Text]:
    texts = []
    for name, show in (("metric", number), ("accuracy", percent), ("loss", number)):
        train, evaluated = getattr(gap, f"train_{name}"), getattr(gap, f"eval_{name}")
        if not math.isnan(evaluated):
            values = {"train": show(train), "eval": show(evaluated)}
            what = said(f"doctor.quality.{name}")
            texts.append(said("doctor.verdict.quality", name=what, **values))
            break
    if not math.isnan(gap.disagreement):
        share = percent(gap.disagreement)
        return [*texts, said("doctor.verdict.gap", samples=gap.samples, share=share)]
    return [*texts, said("doctor.verdict.relative", share=percent(gap.relative))]


def conclusions(record: Diagnosis) -> list[Conclusion]:
    """The verdict and every finding, for the head of a page."""
    healthy = record.worst in (None, "info")
    found = [Conclusion("good" if healthy else "warn", None, text) for text in verdict(record)]
    for group in grouped(record.findings):
        first = group[0]
        where = place(group)
        name = where if isinstance(where, Text) else Text(where, where)
        head = title(first.code)
        grade = said(f"doctor.severity.{first.severity}")
        headline = Text(
            f"{first.code} {grade.en}: {head.en} ({name.en})",
            f"{first.code} {grade.zh}：{head.zh}（{name.zh}）",
        )
        what, do = evidence(first), advice(first.code, first.facts.get("kind", ""))
        detail = Text(f"{_sentence(what.en)}. {do.en}", f"{what.zh}。{do.zh}")
        found.append(Conclusion("note" if first.severity == "info" else "warn", headline, detail))
    return found


def findings(record: Diagnosis) -> Table:
    """Every finding: layer, evidence, threshold and its source, confidence."""
    rows: Rows = [
        [
            f.code,
            said(f"doctor.severity.{f.severity}"),
            f.layer or said("doctor.whole"),
            evidence(f),
            number(f.threshold, digits=3) if math.isfinite(f.threshold) else "-",
            f.source,
            said(f"doctor.confidence.{f.confidence}"),
        ]
        for f in record.findings
    ]
    names = ("code", "severity", "layer", "found", "threshold", "source", "confidence")
    return _worded(said("doctor.section.findings"), names, rows)


def causes(record: Diagnosis) -> Table:
    """How much of the gap goes when each cause alone is mended."""
    rows: Rows = [
        [
            said(f"doctor.cause.{c.name}"),
            c.code or "-",
            _closes(c.closes),
            "-" if math.isnan(c.advantage) else f"{c.advantage:+.1f}",
            _few(c.layers),
        ]
        for c in record.causes
    ]
    caption = said("doctor.causes.caption")
    return _worded(caption, ("cause", "code", "closes", "sure", "layers"), rows)


def layers(record: Diagnosis) -> Table:
    """Each layer's part of the gap."""
    rows: Rows = [
        [
            layer.name,
            number(layer.distance, digits=3),
            _closes(layer.both),
            _closes(layer.mean),
            _closes(layer.var),
            ", ".join(map(str, layer.worst)),
        ]
        for layer in record.by_layer
    ]
    names = ("layer", "distance", "both", "mean", "var", "channels")
    return _worded(said("doctor.section.layers"), names, rows)


def skipped(record: Diagnosis) -> Table:
    """The checks that were not made, and why."""
    codes: dict[str, list[str]] = {}
    for check in record.skipped:
        codes.setdefault(check.reason, []).append(check.code)
    rows: Rows = [[said(reason), ", ".join(found)] for reason, found in codes.items()]
    return _worded(said("doctor.section.skipped"), ("reason", "code"), rows)


def trials(record: Repaired) -> Table:
    """Every remedy: before, after, and what held-out samples said."""
    rows: Rows = [
        [
            said(f"doctor.remedy.{t.remedy}"),
            ", ".join(t.codes),
            _few(t.layers),
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
    return _worded(said("doctor.section.trials"), tuple(names), rows)


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


def _worded(caption: Text, names: tuple[str, ...], rows: Rows) -> Table:
    made = table(caption, [said(f"doctor.column.{name}") for name in names], rows)
    # numbers are narrow; only sentences need the room of a text column
    styled = tuple(
        tuple(Cell(c.text, "text" if _is_sentence(c.text) else "") for c in row)
        for row in made.rows
    )
    return Table(made.caption, made.head, styled)


def _is_sentence(text: str | Text) -> bool:
    return len(text.en if isinstance(text, Text) else text) > WORDS


def _closes(share: float) -> str:
    return percent(share) if share > -1 else "< -100%"


def _few(names: tuple[str, ...]) -> str | Text:
    shown = ", ".join(names[:NAMED])
    if len(names) <= NAMED:
        return shown
    more = said("doctor.more", count=len(names) - NAMED)
    return Text(f"{shown} {more.en}", f"{shown} {more.zh}")


def _change(before: float, after: float, *, share: bool = False) -> str:
    if math.isnan(before) or math.isnan(after):
        return "-"
    tell = percent if share else (lambda value: number(value, digits=3))
    return f"{tell(before)} → {tell(after)}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
