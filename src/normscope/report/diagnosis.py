"""A diagnosis, and what a check means, as documents."""

import math
from collections.abc import Sequence

from normscope.records import ChannelGap, Diagnosis, Finding, Gap, Repaired, Severity
from normscope.report import document as doc
from normscope.report import repair
from normscope.report.bilingual import Text, Words, said
from normscope.report.checks import Rows, advice, evidence, few, grouped, place, title, worded
from normscope.report.document import Bar, Bars, Bell, Bells, Document, Section, Table
from normscope.report.format import number, percent

DRAWN = 6  # channels that are not folded
STYLES: dict[Severity, doc.FindingStyle] = {"error": "error", "warning": "warn", "info": "note"}


def document(record: Diagnosis, repaired: Repaired | None = None) -> Document:
    """Show what ails a model, why and what to do; and what became of it, where it was repaired."""
    name = "doctor.title" if repaired is None else "doctor.repair.title"
    facts = [
        (said("doctor.fact.layers"), str(record.layers)),
        (said("doctor.fact.checks"), str(len(record.passed) + len(record.codes))),
    ]
    if record.gap is not None:
        facts.append((said("doctor.fact.samples"), f"{record.gap.samples:,}"))
    healthy = record.worst in (None, "info")
    answer = doc.Finding("good" if healthy else "warn", None, tuple(verdict(record)))
    found = (_conclusion(group) for group in grouped(record.findings))
    sections = [Section(said("doctor.section.verdict"), (answer, *found), "verdict")]
    if record.channels:
        sections.append(_channels(record.channels))
    if record.causes:
        causes = _causes(record)
        shown = (doc.Only("page", causes),) if healthy else causes
        sections.append(Section(said("doctor.section.causes"), shown, "causes"))
    sections += _checks(record)
    if repaired is not None:
        sections.insert(1, repair.section(repaired))
    return Document(said(name, model=record.model), tuple(sections), tuple(facts))


def explanation(code: str) -> Document:
    """Show what a check looks for, why, and what to do."""
    head = title(code)
    name = Text(f"{code}: {head.en}", f"{code}：{head.zh}")
    found = doc.Finding("note", name, (said(f"doctor.{code}.explain"),))
    return Document(name, (Section(name, (found,)),))


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


def _conclusion(group: list[Finding]) -> doc.Finding:
    """One finding of some layers: what it is, the evidence, and what to do."""
    first, where = group[0], place(group)
    name = where if isinstance(where, Text) else Text(where, where)
    head, grade = title(first.code), said(f"doctor.severity.{first.severity}")
    headline = Text(
        f"{first.code} {grade.en}: {head.en} ({name.en})",
        f"{first.code} {grade.zh}：{head.zh}（{name.zh}）",
    )
    what = evidence(first)
    details = (
        Text(f"{what.en[:1].upper()}{what.en[1:]}.", f"{what.zh}。"),
        advice(first.code, first.facts.get("kind", "")),
    )
    return doc.Finding(STYLES[first.severity], headline, details)


def _channels(gaps: Sequence[ChannelGap]) -> Section:
    """Draw stored beside measured statistics; the numbers are folded."""
    pictures = tuple(_bells(gap) for gap in gaps)
    names = ("layer", "channel", "stored_mean", "stored_std", "mean", "std", "distance")
    rows: Rows = [
        [
            gap.layer,
            _channel(gap),
            *(number(v, digits=3) for v in (gap.stored_mean, _root(gap.stored_var))),
            *(number(v, digits=3) for v in (gap.mean, _root(gap.var), gap.distance)),
        ]
        for gap in gaps
    ]
    numbers = worded(said("doctor.channels.caption"), names, rows, keys=2)
    folded, others = pictures[DRAWN:], said("doctor.channels.more", count=len(pictures) - DRAWN)
    more = (doc.Details(others, (doc.Figures(folded, small=True),)),) if folded else ()
    blocks = (
        doc.Only("page", (doc.Paragraph(said("doctor.channels.how")),)),
        doc.Figures(pictures[:DRAWN], small=True),
        *more,
        doc.Details(said("page.as_table"), (numbers,)),
    )
    return Section(said("doctor.section.channels"), blocks, "channels", said("doctor.nav.channels"))


def _bells(gap: ChannelGap) -> Bells:
    values = {
        "stored_mean": number(gap.stored_mean, digits=3),
        "stored_std": number(_root(gap.stored_var), digits=3),
        "stored_var": number(gap.stored_var, digits=3),
        "mean": number(gap.mean, digits=3),
        "std": number(_root(gap.var), digits=3),
        "distance": number(gap.distance, digits=3),
    }
    broken = not (math.isfinite(gap.stored_mean) and 0 <= gap.stored_var < math.inf)
    return Bells(
        said("doctor.channel.title", layer=gap.layer, channel=_channel(gap)),
        said("doctor.channel.broken" if broken else "doctor.channel.note", **values),
        (
            Bell(said("doctor.measured"), gap.mean, _root(gap.var), "measured"),
            Bell(said("doctor.stored"), gap.stored_mean, _root(gap.stored_var), "stored"),
        ),
    )


def _channel(gap: ChannelGap) -> Words:
    if gap.condition is None:
        return str(gap.channel)
    return said("doctor.channel.condition", channel=gap.channel, condition=gap.condition)


def _root(variance: float) -> float:
    return math.sqrt(variance) if variance >= 0 else math.nan


def _causes(record: Diagnosis) -> tuple[doc.Block, ...]:
    """Draw and list how much of the gap goes with each cause, and with each layer."""
    bars = tuple(
        Bar(said(f"doctor.cause.{c.name}"), (_share(c.closes),), _closes(c.closes), _sign(c.closes))
        for c in record.causes
    )
    by_layer = tuple(
        Bar(layer.name, (_share(layer.both),), _closes(layer.both), _sign(layer.both))
        for layer in record.by_layer
    )
    notes = said("doctor.causes.caption"), said("doctor.layers.note")
    pictures = [Bars(said("doctor.causes.title"), notes[0], bars)]
    if by_layer:
        pictures.append(Bars(said("doctor.layers.title"), notes[1], by_layer))
    blocks: list[doc.Block] = [doc.Figures(tuple(pictures)), causes(record)]
    if record.by_layer:
        blocks.append(layers(record))
    return tuple(blocks)


def _checks(record: Diagnosis) -> list[Section]:
    """List every finding with its evidence, what the codes mean, and what was not checked."""
    sections = []
    if record.findings:
        meaning = tuple(
            doc.Finding(
                "note",
                Text(f"{code} {title(code).en}", f"{code} {title(code).zh}"),
                (said(f"doctor.{code}.explain"),),
            )
            for code in record.codes
        )
        shown = (findings(record), doc.Details(said("doctor.section.explain"), meaning))
        name = said("doctor.section.findings")
        sections.append(Section(name, (doc.Only("page", shown),), "findings"))
    if record.skipped:
        sections.append(Section(said("doctor.section.skipped"), (skipped(record),), "skipped"))
    return sections


def _share(closes: float) -> float:
    return min(max(closes, 0.0), 1.0)


def _sign(closes: float) -> doc.BarStyle:
    return "" if closes > 0 else "quiet"


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
    return worded(said("doctor.section.findings"), names, rows)


def causes(record: Diagnosis) -> Table:
    """How much of the gap goes when each cause alone is mended."""
    rows: Rows = [
        [
            said(f"doctor.cause.{c.name}"),
            c.code or "-",
            _closes(c.closes),
            "-" if math.isnan(c.advantage) else f"{c.advantage:+.1f}",
            few(c.layers),
        ]
        for c in record.causes
    ]
    caption = said("doctor.causes.caption")
    return worded(caption, ("cause", "code", "closes", "sure", "layers"), rows)


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
    return worded(said("doctor.section.layers"), names, rows)


def skipped(record: Diagnosis) -> Table:
    """The checks that were not made, and why."""
    codes: dict[str, list[str]] = {}
    for check in record.skipped:
        codes.setdefault(check.reason, []).append(check.code)
    rows: Rows = [[said(reason), ", ".join(found)] for reason, found in codes.items()]
    return worded(said("doctor.section.skipped"), ("reason", "code"), rows)


def _closes(share: float) -> str:
    return percent(share) if share > -1 else "< -100%"
