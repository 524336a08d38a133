"""A passport as a document, and what was found where a checkpoint was held against it."""

import math

from normscope.records import NormPassport, Passport, PassportCheck
from normscope.report.bilingual import Text, Words, said
from normscope.report.document import Block, Cell, Document, Finding, Paragraph, Section, Table


def document(record: Passport | PassportCheck) -> Document:
    """Show a passport; of a check, first what is not as it says."""
    own = record if isinstance(record, Passport) else record.passport
    name = own.model if isinstance(record, Passport) else record.subject
    sections = [Section(said("passport.section.verdict"), (_answer(record),), "verdict")]
    if isinstance(record, PassportCheck) and record.mismatches:
        title = said("passport.section.mismatches")
        sections.append(Section(title, (_mismatches(record),), "mismatches"))
    data: Text = said("passport.data.none")
    if own.data is not None:
        sizes = ", ".join(map(str, own.data.sizes))
        values = {key: getattr(own.data, key) for key in ("batches", "samples", "count", "norm")}
        data = said("passport.data.measured", sizes=sizes, **values)
    sections.append(Section(said("passport.section.data"), (Paragraph(data),), "data"))
    sections.append(Section(said("passport.section.norms"), (_norms(own),), "norms"))
    facts = tuple(
        (said(f"passport.fact.{key}"), getattr(own, key)) for key in ("model", "torch", "normscope")
    )
    return Document(said("passport.title", name=name), tuple(sections), facts=facts)


def _answer(record: Passport | PassportCheck) -> Block:
    if isinstance(record, Passport):
        return Finding("good", None, (said("passport.verdict.made", norms=len(record.norms)),))
    norms = len(record.passport.norms)
    if record.ok:
        return Finding("good", None, (said("passport.verdict.ok", norms=norms),))
    count = len({found.norm for found in record.mismatches})
    return Finding("error", None, (said("passport.verdict.bad", count=count, norms=norms),))


def _mismatches(record: PassportCheck) -> Table:
    head = [said(f"passport.column.{c}") for c in ("norm", "what", "passport", "found", "amount")]
    rows = tuple(
        (
            Cell(found.norm, "name"),
            Cell(said(f"passport.code.{found.code}"), "wrong"),
            Cell(found.passport[:12]),
            Cell(found.found[:12]),
            Cell(_number(found.amount)),
        )
        for found in record.mismatches
    )
    return Table(said("passport.caption.mismatches"), head, rows, keys=2)


def _norms(own: Passport) -> Table:
    columns = ["norm", "layer", "channels", "eps", "momentum", "flags", "tracked"]
    measured = own.data is not None
    columns += ["distance", "mean_error", "var_error"] if measured else ["digest"]
    head = [said(f"passport.column.{column}") for column in columns]
    rows = []
    for norm in own.norms:
        cells = [
            Cell(norm.name, "name"),
            Cell(norm.layer),
            Cell(str(norm.channels)),
            Cell(f"{norm.eps:.4g}"),
            Cell("None" if norm.momentum is None else f"{norm.momentum:.4g}"),
            Cell(_flags(norm)),
            Cell("-" if norm.tracked is None else str(norm.tracked)),
        ]
        numbers = (norm.distance, norm.mean_error, norm.var_error)
        cells += [Cell(_number(v)) for v in numbers] if measured else [Cell(norm.digest[:8])]
        rows.append(tuple(cells))
    return Table(said("passport.caption.norms"), head, tuple(rows))


def _flags(norm: NormPassport) -> Words:
    flags = [key for key in ("training", "frozen") if getattr(norm, key)]
    texts = [said(f"passport.flag.{key}") for key in flags]
    if not texts:
        return "-"
    return Text(", ".join(t.en for t in texts), "，".join(t.zh for t in texts))


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2g}"
