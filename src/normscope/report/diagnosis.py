"""A diagnosis, and what a check means, as documents."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from normscope.records import ChannelGap, Diagnosis, Finding, Gap, Repaired, Severity
from normscope.report import document as doc
from normscope.report import repair
from normscope.report.bilingual import Text, Words, joined, labelled, read, tr
from normscope.report.charts.bells import bells
from normscope.report.checks import advice, evidence, few, grouped, listed, place, title
from normscope.report.document import Bar, Bars, Document, Drawing, Section, Table
from normscope.report.format import number, percent

DRAWN = 6  # channels that are not folded
STATISTICS = ("stored_mean", "stored_std", "mean", "std", "distance")
STYLES: dict[Severity, doc.FindingStyle] = {"error": "error", "warning": "warn", "info": "note"}


def document(record: Diagnosis, repaired: Repaired | None = None) -> Document:
    """Show what ails a model, why and what to do; and what became of it, where it was repaired."""
    name = "doctor.title" if repaired is None else "doctor.repair.title"
    facts = [
        (tr("doctor.fact.layers"), str(record.layers)),
        (tr("doctor.fact.checks"), str(len(record.passed) + len(record.codes))),
    ]
    if record.gap is not None:
        facts.append((tr("doctor.fact.samples"), f"{record.gap.samples:,}"))
    healthy = record.worst in (None, "info")
    answer = doc.Finding("good" if healthy else "warn", None, tuple(verdict(record)))
    found = (_conclusion(group) for group in grouped(record.findings))
    sections = [Section(tr("doctor.section.verdict"), (answer, *found), "verdict")]
    if record.channels:
        sections.append(_channels(record.channels))
    if record.causes:
        causes = _causes(record)
        shown = (doc.Only("page", causes),) if healthy else causes
        sections.append(Section(tr("doctor.section.causes"), shown, "causes"))
    sections += _checks(record)
    if repaired is not None:
        sections.insert(1, repair.section(repaired))
    return Document(tr(name, model=record.model), tuple(sections), tuple(facts))


def explanation(code: str) -> Document:
    """Show what a check looks for, why, and what to do."""
    name = labelled(code, title(code))
    found = doc.Finding("note", name, (tr(f"doctor.{code}.explain"),))
    return Document(name, (Section(name, (found,)),))


def verdict(record: Diagnosis) -> list[Text]:
    """Answer in a few sentences: what explains most, what not to do, what was measured."""
    passed, skipped = len(record.passed), len(record.skipped)
    found = record.verdict
    if found is None or found.kind == "nothing":
        kind = "partial" if skipped > passed else "notes" if record.findings else "healthy"
        texts = [tr(f"doctor.verdict.{kind}", passed=passed, skipped=skipped)]
    elif found.code == "NS029":
        better = record.gap is not None and record.gap.advantage > 2
        texts = [tr("doctor.verdict.better")] if better else []
        texts.append(tr("doctor.verdict.kept"))
    else:
        kind = "batches" if found.kind == "data" else "sick"
        texts = [tr(f"doctor.verdict.{kind}", title=title(found.code), code=found.code)]
        if found.closes > 0.2:
            texts.append(tr("doctor.verdict.closes", share=percent(min(found.closes, 1.0))))
    if found is not None and found.warns:
        texts.append(tr(f"doctor.not.{found.warns}"))
    return texts + ([] if record.gap is None else _gap(record.gap))


def _gap(gap: Gap) -> list[Text]:
    texts = []
    for name, show in (("metric", number), ("accuracy", percent), ("loss", number)):
        train, evaluated = getattr(gap, f"train_{name}"), getattr(gap, f"eval_{name}")
        if not math.isnan(evaluated):
            values = {"train": show(train), "eval": show(evaluated)}
            what = tr(f"doctor.quality.{name}")
            texts.append(tr("doctor.verdict.quality", name=what, **values))
            break
    if not math.isnan(gap.disagreement):
        share = percent(gap.disagreement)
        return [*texts, tr("doctor.verdict.gap", samples=gap.samples, share=share)]
    return [*texts, tr("doctor.verdict.relative", share=percent(gap.relative))]


def _conclusion(group: list[Finding]) -> doc.Finding:
    """Tell one finding of some layers: what it is, the evidence, and what to do."""
    first, where = group[0], place(group)
    grade = joined((first.code, tr(f"doctor.severity.{first.severity}")), " ", " ")
    about = labelled(grade, title(first.code))
    headline = Text(f"{about.en} ({read(where, 'en')})", f"{about.zh}（{read(where, 'zh')}）")
    what = evidence(first)
    found = Text(f"{what.en[:1].upper()}{what.en[1:]}.", f"{what.zh}。")
    details = (found, advice(first.code, first.facts.get("kind", "")))
    return doc.Finding(STYLES[first.severity], headline, details)


def _channels(gaps: Sequence[ChannelGap]) -> Section:
    """Draw stored beside measured statistics; the numbers are folded."""
    pictures = tuple(_bells(gap) for gap in gaps)
    numbers = listed(
        "doctor.channels.caption",
        gaps,
        {
            "layer": lambda gap: gap.layer,
            "channel": _channel,
            **{name: partial(_statistic, name=name) for name in STATISTICS},
        },
        keys=2,
    )
    folded, others = pictures[DRAWN:], tr("doctor.channels.more", count=len(pictures) - DRAWN)
    more = (doc.Details(others, (doc.Figures(folded, small=True),)),) if folded else ()
    blocks = (
        doc.Only("page", (doc.Paragraph(tr("doctor.channels.how")),)),
        doc.Figures(pictures[:DRAWN], small=True),
        *more,
        doc.Details(tr("page.as_table"), (numbers,)),
    )
    return Section(tr("doctor.section.channels"), blocks, "channels", tr("doctor.nav.channels"))


def _bells(gap: ChannelGap) -> Drawing:
    """Draw the stored distribution of a channel beside the measured one."""
    broken = not (math.isfinite(gap.stored_mean) and 0 <= gap.stored_var < math.inf)
    values = {name: _statistic(gap, name) for name in (*STATISTICS, "stored_var")}
    measured, stored = (gap.mean, _root(gap.var)), (gap.stored_mean, _root(gap.stored_var))
    return Drawing(
        tr("doctor.channel.title", layer=gap.layer, channel=_channel(gap)),
        tr("doctor.channel.broken" if broken else "doctor.channel.note", **values),
        bells({"measured": measured, "stored": stored}),
        (tr("doctor.measured"), tr("doctor.stored")),
    )


def _statistic(gap: ChannelGap, name: str) -> str:
    """Write a number of a channel; a deviation is the root of a variance."""
    if name.endswith("std"):
        return number(_root(getattr(gap, name.replace("std", "var"))), digits=3)
    return number(getattr(gap, name), digits=3)


def _channel(gap: ChannelGap) -> Words:
    if gap.condition is None:
        return str(gap.channel)
    return tr("doctor.channel.condition", channel=gap.channel, condition=gap.condition)


def _root(variance: float) -> float:
    return math.sqrt(variance) if variance >= 0 else math.nan


def _causes(record: Diagnosis) -> tuple[doc.Block, ...]:
    """Draw and list how much of the gap goes with each cause, and with each layer."""
    causes = [(tr(f"doctor.cause.{c.name}"), c.closes) for c in record.causes]
    by_layer = [(layer.name, layer.both) for layer in record.by_layer]
    pictures = [_bars("doctor.causes.title", "doctor.causes.caption", causes)]
    tables = [
        listed(
            "doctor.causes.caption",
            record.causes,
            {
                "cause": lambda c: tr(f"doctor.cause.{c.name}"),
                "code": lambda c: c.code or "-",
                "closes": lambda c: _closes(c.closes),
                "sure": lambda c: "-" if math.isnan(c.advantage) else f"{c.advantage:+.1f}",
                "layers": lambda c: few(c.layers),
            },
        )
    ]
    if by_layer:
        pictures.append(_bars("doctor.layers.title", "doctor.layers.note", by_layer))
        tables.append(
            listed(
                "doctor.section.layers",
                record.by_layer,
                {
                    "layer": lambda layer: layer.name,
                    "distance": lambda layer: number(layer.distance, digits=3),
                    "both": lambda layer: _closes(layer.both),
                    "mean": lambda layer: _closes(layer.mean),
                    "var": lambda layer: _closes(layer.var),
                    "channels": lambda layer: ", ".join(map(str, layer.worst)),
                },
            )
        )
    return (doc.Figures(tuple(pictures)), *tables)


def _bars(title: str, note: str, closes: Sequence[tuple[Words, float]]) -> Bars:
    bars = tuple(
        Bar(name, (min(max(part, 0.0), 1.0),), _closes(part), "" if part > 0 else "quiet")
        for name, part in closes
    )
    return Bars(tr(title), tr(note), bars)


def _closes(share: float) -> str:
    return percent(share) if share > -1 else "< -100%"


def _checks(record: Diagnosis) -> list[Section]:
    """List every finding with its evidence, what the codes mean, and what was not checked."""
    sections = []
    if record.findings:
        meaning = tuple(
            doc.Finding(
                "note",
                joined((code, title(code)), " ", " "),
                (tr(f"doctor.{code}.explain"),),
            )
            for code in record.codes
        )
        shown = (_findings(record), doc.Details(tr("doctor.section.explain"), meaning))
        name = tr("doctor.section.findings")
        sections.append(Section(name, (doc.Only("page", shown),), "findings"))
    if record.skipped:
        codes: dict[str, list[str]] = {}
        for check in record.skipped:
            codes.setdefault(check.reason, []).append(check.code)
        of: dict[str, Callable[[tuple[str, list[str]]], Words]] = {
            "reason": lambda item: tr(item[0]),
            "code": lambda item: ", ".join(item[1]),
        }
        skipped = listed("doctor.section.skipped", codes.items(), of)
        sections.append(Section(tr("doctor.section.skipped"), (skipped,), "skipped"))
    return sections


def _findings(record: Diagnosis) -> Table:
    """List every finding: layer, evidence, threshold and its source, confidence."""
    return listed(
        "doctor.section.findings",
        record.findings,
        {
            "code": lambda f: f.code,
            "severity": lambda f: tr(f"doctor.severity.{f.severity}"),
            "layer": lambda f: f.layer or tr("doctor.whole"),
            "found": evidence,
            "threshold": lambda f: (
                number(f.threshold, digits=3) if math.isfinite(f.threshold) else "-"
            ),
            "source": lambda f: f.source,
            "confidence": lambda f: tr(f"doctor.confidence.{f.confidence}"),
        },
    )
