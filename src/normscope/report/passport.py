"""A passport as a document, and what was found where a checkpoint was held against it."""

from typing import Any

from normscope.records import Mismatch, NormPassport, Passport, PassportCheck
from normscope.report import document as doc
from normscope.report.bilingual import Words, joined, tr
from normscope.report.format import or_dash

COLUMNS: dict[str, Any] = {
    "norm": lambda norm: doc.Cell(norm.name, "name"),
    "layer": lambda norm: norm.layer,
    "channels": lambda norm: str(norm.channels),
    "eps": lambda norm: f"{norm.eps:.4g}",
    "momentum": lambda norm: "None" if norm.momentum is None else f"{norm.momentum:.4g}",
    "flags": lambda norm: _flags(norm),
    "tracked": lambda norm: "-" if norm.tracked is None else str(norm.tracked),
}
MEASURED: dict[str, Any] = {
    "distance": lambda norm: or_dash(norm.distance, "{:.2g}".format),
    "mean_error": lambda norm: or_dash(norm.mean_error, "{:.2g}".format),
    "var_error": lambda norm: or_dash(norm.var_error, "{:.2g}".format),
}
UNMEASURED: dict[str, Any] = {"digest": lambda norm: norm.digest[:8]}


def document(record: Passport | PassportCheck) -> doc.Document:
    """Show a passport; of a check, first what is not as it says."""
    own = record if isinstance(record, Passport) else record.passport
    mismatches = () if isinstance(record, Passport) else record.mismatches
    name = own.model if isinstance(record, Passport) else record.subject
    key = "bad" if mismatches else "made" if isinstance(record, Passport) else "ok"
    count = len({found.norm for found in mismatches})
    verdict = tr(f"passport.verdict.{key}", count=count, norms=len(own.norms))
    answer = doc.Finding("error" if mismatches else "good", None, (verdict,))
    data = tr("passport.data.none")
    if own.data is not None:
        sizes = ", ".join(map(str, own.data.sizes))
        data = tr("passport.data.measured", **{**vars(own.data), "sizes": sizes})
    measured = UNMEASURED if own.data is None else MEASURED
    norms = doc.columns(
        "passport.caption.norms", "passport.column", own.norms, {**COLUMNS, **measured}
    )
    sections: dict[str, tuple[doc.Block, ...]] = {
        "verdict": (answer,),
        "mismatches": (_mismatches(mismatches),) if mismatches else (),
        "data": (doc.Paragraph(data),),
        "norms": (norms,),
    }
    facts = {key: getattr(own, key) for key in ("model", "torch", "normscope")}
    return doc.assembled("passport", tr("passport.title", name=name), sections, facts)


def _mismatches(mismatches: tuple[Mismatch, ...]) -> doc.Table:
    return doc.columns(
        "passport.caption.mismatches",
        "passport.column",
        mismatches,
        {
            "norm": lambda found: doc.Cell(found.norm, "name"),
            "what": lambda found: doc.Cell(tr(f"passport.code.{found.code}"), "wrong"),
            "passport": lambda found: found.passport[:12],
            "found": lambda found: found.found[:12],
            "amount": lambda found: or_dash(found.amount, "{:.2g}".format),
        },
        keys=2,
    )


def _flags(norm: NormPassport) -> Words:
    flags = [key for key in ("training", "frozen") if getattr(norm, key)]
    return joined(tr(f"passport.flag.{key}") for key in flags) if flags else "-"
