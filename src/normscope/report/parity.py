"""Two forms of a network as a document: the same or not, the first norm that differs, and why."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from normscope.records import NormPair, Parity, Reason
from normscope.report import document as doc
from normscope.report.bilingual import Text, Words, joined, sentences, tr
from normscope.report.charts import spec
from normscope.report.format import power

NAMES = 5  # of further norms in one sentence
LOOK = {"differs": "wrong", "missing": "wrong"}


def document(record: Parity) -> doc.Document:
    """Show the verdict, the outputs and every norm of two forms of a network."""
    sections: dict[str, tuple[doc.Block, ...]] = {
        "verdict": (*_answer(record), *_passports(record)),
        "outputs": (_outputs(record),),
        "norms": (_norms(record), _picture(record))[: len(record.norms)],  # two make a picture
    }
    facts: dict[str, Words] = {
        "forms": joined((tr(f"parity.form.{form}") for form in record.forms), zh="、"),
        "norms": str(len(record.norms)),
        "forwards": "{} + {}".format(*record.forwards),
    }
    first, second = record.names
    return doc.assembled("parity", tr("parity.title", first=first, second=second), sections, facts)


def reason_text(reason: Reason) -> Text:
    """Say why a norm is not the same, and what to do."""
    compiled = reason.code == "compiled_code"
    detail = tr(f"parity.which.{reason.detail}") if compiled else reason.detail
    return tr(f"parity.reason.{reason.code}", **{**vars(reason), "detail": detail})


def _passports(record: Parity) -> Iterator[doc.Block]:
    """Say which side is not what its own passport says."""
    for which, mismatches in zip(("first", "second"), record.passports, strict=True):
        side = tr(f"parity.which.{which}")
        if mismatches:
            first = mismatches[0]
            text = tr(
                "parity.passport.bad",
                which=side,
                count=len({m.norm for m in mismatches}),
                norm=first.norm,
                what=tr(f"passport.code.{first.code}"),
                passport=first.passport[:12],
                found=first.found[:12],
            )
            yield doc.Paragraph(text, "notice")
        elif mismatches is not None:
            yield doc.Paragraph(tr("parity.passport.ok", which=side), "quiet")


def _answer(record: Parity) -> Iterator[doc.Block]:
    """Say that the forms are the same, or name the first norm that is not, and why."""
    counts = Counter(norm.status for norm in record.norms)
    first = record.first
    if record.ok:
        key = "same" if record.norms else "same_plain"
        parts = [tr(f"parity.verdict.{key}", norms=len(record.norms))]
        if counts["fused"]:
            parts.append(tr("parity.verdict.fused", count=counts["fused"]))
        yield doc.Finding("good", None, (sentences(*parts),))
    elif first is None:
        details = [reason_text(reason) for reason in record.reasons]
        if record.extra:
            details.append(tr("parity.verdict.extra", names=", ".join(record.extra[:NAMES])))
        key = "no_norm" if details else "unknown"
        yield doc.Finding("error", tr(f"parity.verdict.{key}"), tuple(details))
    else:
        headline = tr("parity.verdict.first", name=first.name)
        yield doc.Finding("error", headline, tuple(map(reason_text, first.reasons)))
        others = [n.name for n in record.norms if n.status == "differs" and n is not first]
        names = ", ".join(others[:NAMES]) + (" ..." if len(others) > NAMES else "")
        remarks = {
            "more": bool(others),
            "carried": counts["carried"] > 0,
            "harmless": all(mode.ok for mode in record.modes),
        }
        values = {"more": len(others), "carried": counts["carried"]}
        rest = [
            tr(f"parity.verdict.{key}", count=values.get(key), names=names)
            for key, needed in remarks.items()
            if needed
        ]
        if rest:
            yield doc.Paragraph(sentences(*rest))


def _outputs(record: Parity) -> doc.Table:
    of: dict[str, Any] = {
        "mode": lambda mode: doc.Cell(f"{mode.mode}()", "name"),
        "outputs": lambda mode: doc.Cell(power(mode.outputs), "" if mode.ok else "wrong"),
        "allowed": lambda mode: power(mode.allowed),
    }
    if any(math.isfinite(mode.statistics) for mode in record.modes):
        of["statistics"] = lambda mode: power(mode.statistics)
    return doc.columns("parity.caption.outputs", "parity.column", record.modes, of)


def _norms(record: Parity) -> doc.Table:
    def why(pair: NormPair) -> doc.Cell:
        reasons = map(reason_text, pair.reasons[:2])
        return doc.Cell(sentences(*reasons) if pair.reasons else "", "text")

    return doc.columns(
        "parity.caption.norms",
        "parity.column",
        record.norms,
        {
            "norm": lambda pair: doc.Cell(pair.name, "name"),
            "other": lambda pair: "=" if pair.other == pair.name else pair.other or "-",
            "channels": lambda pair: str(pair.channels),
            "status": lambda pair: doc.Cell(
                tr(f"parity.status.{pair.status}"), LOOK.get(pair.status, "")
            ),
            "inputs": lambda pair: power(pair.inputs),
            "outputs": lambda pair: doc.Cell(power(pair.outputs), LOOK.get(pair.status, "")),
            "allowed": lambda pair: power(pair.allowed),
            "why": why,
        },
    )


def _picture(record: Parity) -> doc.Chart:
    names = (tr("parity.chart.difference"), tr("parity.chart.allowed"))
    least = min((n.allowed for n in record.norms), default=1e-8) / 100
    rows = [  # a logarithm has no place for 0
        {"at": place, "series": name, "value": max(value, least), "norm": pair.name}
        for place, pair in enumerate(record.norms, 1)
        for name, value in zip(names, (pair.outputs, pair.allowed), strict=True)
        if math.isfinite(value)
    ]
    numbers = doc.columns(
        "parity.chart.title",
        "parity.column",
        record.norms,
        {
            "norm": lambda n: doc.Cell(n.name, "name"),
            "outputs": lambda n: power(n.outputs),
            "allowed": lambda n: power(n.allowed),
        },
    )
    title, note = tr("parity.chart.title"), tr("parity.chart.note")
    return doc.Chart(title, note, spec("parity", rows, names), numbers, across=True)
