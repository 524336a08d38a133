"""A conversion as a document: what was proved, every layer, and what was compared."""

from normscope.records import Converted
from normscope.report.bilingual import said
from normscope.report.document import Cell, Document, Finding, Section, Table


def document(record: Converted) -> Document:
    """Show what became of the layers of a model, and the proof of it."""
    verdict = said(f"convert.verdict.{_verdict(record)}", count=len(record.changed), to=record.to)
    answer = Finding("good" if record.ok else "error", None, (verdict,))
    sections = [
        Section(said("convert.section.verdict"), (answer,), "verdict"),
        Section(said("convert.layers"), (_layers(record),), "layers"),
    ]
    if record.fused or record.unfused:
        sections.append(Section(said("convert.fused"), (_fused(record),), "fused"))
    if record.comparisons:
        sections.append(Section(said("convert.proof"), (_proof(record),), "proof"))
    title = said("convert.title", model=record.model, to=record.to)
    return Document(title, tuple(sections))


def _verdict(record: Converted) -> str:
    """Choose the sentence by what was proved."""
    must = {check.mode for check in record.comparisons if check.allowed is not None}
    if not record.comparisons:
        return "unverified"
    if not record.ok:
        return "unequal"
    return "other" if not must else "equal" if "train" in must else "eval"


def _layers(record: Converted) -> Table:
    names = ("layer", "before", "after", "equal", "note")
    rows = [
        (
            Cell(c.name, "name"),
            Cell(c.before),
            Cell(c.after),
            Cell(said(f"convert.equal.{c.equal}")),
            Cell(c.note, "text"),
        )
        for c in record.changed
    ]
    rows += [
        (
            Cell(left.name, "name"),
            Cell(left.layer),
            Cell(said(f"convert.{key}")),
            Cell(""),
            Cell(left.reason, "text"),
        )
        for key, group in (("kept", record.kept), ("refused", record.refused))
        for left in group
    ]
    head = [said(f"convert.column.{name}") for name in names]
    return Table(said("convert.layers"), head, tuple(rows), keys=4)


def _fused(record: Converted) -> Table:
    """List what norm layers do for the modules behind them, and which do nothing."""
    rows = [
        (
            Cell(fusion.name, "name"),
            Cell(fusion.act or said("convert.fused.none")),
            Cell(fusion.place),
            Cell(said("convert.fused.sum") if fusion.residual else ""),
            Cell(""),
        )
        for fusion in record.fused
    ]
    rows += [
        (
            Cell(left.name, "name"),
            Cell(said("convert.unfused")),
            Cell(""),
            Cell(""),
            Cell(left.reason, "text"),
        )
        for left in record.unfused
    ]
    names = ("layer", "act", "place", "residual", "note")
    head = [said(f"convert.column.{name}") for name in names]
    return Table(said("convert.fused"), head, tuple(rows), keys=4)


def _proof(record: Converted) -> Table:
    names = ("what", "mode", "difference", "allowed")
    rows = tuple(
        (
            Cell(said(f"convert.what.{check.what}"), "name"),
            Cell(f"{check.mode}()"),
            Cell(f"{check.difference:.1e}", "" if check.ok else "wrong"),
            Cell(said("convert.free") if check.allowed is None else f"{check.allowed:.0e}"),
        )
        for check in record.comparisons
    )
    head = [said(f"convert.column.{name}") for name in names]
    return Table(said("convert.proof"), head, rows, keys=2)
