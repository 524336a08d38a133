"""A diagnosis, and what a check means, as documents."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from normscope.records import ChannelGap, Diagnosis, Finding, Gap, Repaired, Severity
from normscope.report import document as doc
from normscope.report import repair
from normscope.report.bilingual import Text, Words, few, joined, labelled, read, tr
from normscope.report.charts.bells import bells
from normscope.report.checks import advice, evidence, grouped, listed, place, source, title
from normscope.report.document import Bar, Bars, Document, Drawing, Section
from normscope.report.format import number, or_dash, percent, three

DRAWN = 6  # channels that are not folded
STATISTICS = ("stored_mean", "stored_std", "mean", "std", "distance")
STYLES: dict[Severity, doc.FindingStyle] = {"error": "error", "warning": "warn", "info": "note"}


def document(record: Diagnosis, repaired: Repaired | None = None) -> Document:
    """Show what ails a model, why and what to do; and what became of it, where it was repaired."""
    name = "doctor.title" if repaired is None else "doctor.repair.title"
    facts = {
        "layers": str(record.layers),
        "checks": str(len(record.passed) + len(record.codes)),
        **({} if record.gap is None else {"samples": f"{record.gap.samples:,}"}),
    }
    healthy = record.worst in (None, "info")
    answer = doc.Finding("good" if healthy else "warn", None, tuple(verdict(record)))
    causes = _causes(record) if record.causes else ()
    sections: dict[str, Sequence[doc.Block]] = {
        "verdict": (answer, *map(_conclusion, grouped(record.findings))),
        "repair": () if repaired is None else repair.blocks(repaired),
        "channels": _channels(record.channels) if record.channels else (),
        "causes": (doc.Only("page", causes),) if healthy and causes else causes,
        "findings": _findings(record) if record.findings else (),
        "skipped": _skipped(record) if record.skipped else (),
    }
    return doc.assembled("doctor", tr(name, model=record.model), sections, facts)


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
    if gap.from_one:
        texts.append(tr("doctor.verdict.from_one", classes=gap.from_one))
    elif not math.isnan(gap.by_chance):
        texts.append(tr("doctor.verdict.chance", share=percent(gap.by_chance)))
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


def _channels(gaps: Sequence[ChannelGap]) -> tuple[doc.Block, ...]:
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
    return (
        doc.Only("page", (doc.Paragraph(tr("doctor.channels.how")),)),
        doc.Figures(pictures[:DRAWN], small=True),
        *more,
        doc.Details(tr("page.as_table"), (numbers,)),
    )


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
        return three(_root(getattr(gap, name.replace("std", "var"))))
    return three(getattr(gap, name))


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
                "sure": lambda c: or_dash(c.advantage, "{:+.1f}".format),
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
                    "distance": lambda layer: three(layer.distance),
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


def _findings(record: Diagnosis) -> tuple[doc.Block, ...]:
    """List every finding with its evidence, threshold and confidence, and what the codes mean."""
    evidences = listed(
        "doctor.section.findings",
        record.findings,
        {
            "code": lambda f: f.code,
            "severity": lambda f: tr(f"doctor.severity.{f.severity}"),
            "layer": lambda f: f.layer or tr("doctor.whole"),
            "found": evidence,
            "threshold": lambda f: three(f.threshold) if math.isfinite(f.threshold) else "-",
            "source": source,
            "confidence": lambda f: tr(f"doctor.confidence.{f.confidence}"),
        },
    )
    meaning = tuple(
        doc.Finding("note", joined((code, title(code)), " ", " "), (tr(f"doctor.{code}.explain"),))
        for code in record.codes
    )
    explained = doc.Details(tr("doctor.section.explain"), meaning)
    return (doc.Only("page", (evidences, explained)),)


def _skipped(record: Diagnosis) -> tuple[doc.Block, ...]:
    """List why which checks were not made."""
    codes: dict[str, list[str]] = {}
    for check in record.skipped:
        codes.setdefault(check.reason, []).append(check.code)
    of: dict[str, Callable[[tuple[str, list[str]]], Words]] = {
        "reason": lambda item: tr(item[0]),
        "code": lambda item: ", ".join(item[1]),
    }
    return (listed("doctor.section.skipped", codes.items(), of),)
