"""A passport as a document, and what was found where a checkpoint was held against it."""

import math
from typing import Any

from normscope.records import NormPassport, Passport, PassportCheck
from normscope.report.bilingual import Words, joined, tr
from normscope.report.document import Cell, Document, Finding, Paragraph, Section, Table, columns

COLUMNS: dict[str, Any] = {
    "norm": lambda norm: Cell(norm.name, "name"),
    "layer": lambda norm: norm.layer,
    "channels": lambda norm: str(norm.channels),
    "eps": lambda norm: f"{norm.eps:.4g}",
    "momentum": lambda norm: "None" if norm.momentum is None else f"{norm.momentum:.4g}",
    "flags": lambda norm: _flags(norm),
    "tracked": lambda norm: "-" if norm.tracked is None else str(norm.tracked),
}
MEASURED: dict[str, Any] = {
    "distance": lambda norm: _number(norm.distance),
    "mean_error": lambda norm: _number(norm.mean_error),
    "var_error": lambda norm: _number(norm.var_error),
}
UNMEASURED: dict[str, Any] = {"digest": lambda norm: norm.digest[:8]}


def document(record: Passport | PassportCheck) -> Document:
    """Show a passport; of a check, first what is not as it says."""
    own = record if isinstance(record, Passport) else record.passport
    mismatches = () if isinstance(record, Passport) else record.mismatches
    name = own.model if isinstance(record, Passport) else record.subject
    key = "bad" if mismatches else "made" if isinstance(record, Passport) else "ok"
    count = len({found.norm for found in mismatches})
    verdict = tr(f"passport.verdict.{key}", count=count, norms=len(own.norms))
    answer = Finding("error" if mismatches else "good", None, (verdict,))
    sections = [Section(tr("passport.section.verdict"), (answer,), "verdict")]
    if isinstance(record, PassportCheck) and mismatches:
        title = tr("passport.section.mismatches")
        sections.append(Section(title, (_mismatches(record),), "mismatches"))
    data = tr("passport.data.none")
    if own.data is not None:
        sizes = ", ".join(map(str, own.data.sizes))
        data = tr("passport.data.measured", **{**vars(own.data), "sizes": sizes})
    measured = UNMEASURED if own.data is None else MEASURED
    norms = columns("passport.caption.norms", "passport.column", own.norms, {**COLUMNS, **measured})
    sections.append(Section(tr("passport.section.data"), (Paragraph(data),), "data"))
    sections.append(Section(tr("passport.section.norms"), (norms,), "norms"))
    facts = tuple(
        (tr(f"passport.fact.{key}"), getattr(own, key)) for key in ("model", "torch", "normscope")
    )
    return Document(tr("passport.title", name=name), tuple(sections), facts=facts)


def _mismatches(record: PassportCheck) -> Table:
    return columns(
        "passport.caption.mismatches",
        "passport.column",
        record.mismatches,
        {
            "norm": lambda found: Cell(found.norm, "name"),
            "what": lambda found: Cell(tr(f"passport.code.{found.code}"), "wrong"),
            "passport": lambda found: found.passport[:12],
            "found": lambda found: found.found[:12],
            "amount": lambda found: _number(found.amount),
        },
        keys=2,
    )


def _flags(norm: NormPassport) -> Words:
    flags = [key for key in ("training", "frozen") if getattr(norm, key)]
    return joined(tr(f"passport.flag.{key}") for key in flags) if flags else "-"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2g}"
