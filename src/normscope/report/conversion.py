"""A conversion as a document: what was proved, every layer, and what was compared."""

from normscope.records import Converted
from normscope.report import document as doc
from normscope.report.bilingual import Words, tr

Row = tuple[Words, ...]


def document(record: Converted) -> doc.Document:
    """Show what became of the layers of a model, and the proof of it."""
    verdict = tr(f"convert.verdict.{_verdict(record)}", count=len(record.changed), to=record.to)
    answer = doc.Finding("good" if record.ok else "error", None, (verdict,))
    layers: list[Row] = [
        (c.name, c.before, c.after, tr(f"convert.equal.{c.equal}"), c.note) for c in record.changed
    ]
    layers += [(c.name, c.layer, tr("convert.kept"), "", c.reason) for c in record.kept]
    layers += [(c.name, c.layer, tr("convert.refused"), "", c.reason) for c in record.refused]
    none, total = tr("convert.fused.none"), tr("convert.fused.sum")
    fused: list[Row] = [
        (f.name, f.act or none, f.place, total if f.residual else "", "") for f in record.fused
    ]
    fused += [(c.name, tr("convert.unfused"), "", "", c.reason) for c in record.unfused]
    sections: dict[str, tuple[doc.Block, ...]] = {
        "verdict": (answer,),
        "layers": _listed("layers", ("layer", "before", "after", "equal", "note"), layers),
        "fused": _listed("fused", ("layer", "act", "place", "residual", "note"), fused),
        "proof": (_proof(record),) if record.comparisons else (),
    }
    title = tr("convert.title", model=record.model, to=record.to)
    return doc.assembled("convert", title, sections)


def _verdict(record: Converted) -> str:
    """Choose the sentence by what was proved."""
    must = {check.mode for check in record.comparisons if check.allowed is not None}
    if not record.comparisons:
        return "unverified"
    if not record.ok:
        return "unequal"
    return "other" if not must else "equal" if "train" in must else "eval"


def _listed(section: str, names: tuple[str, ...], rows: list[Row]) -> tuple[doc.Table, ...]:
    """List layers, if any: the name, what is said of it in words, and a sentence."""
    cells = [
        (doc.Cell(name, "name"), *words, doc.Cell(note, "text")) for name, *words, note in rows
    ]
    heads = [tr(f"convert.column.{name}") for name in names]
    return (doc.table(tr(f"convert.section.{section}"), heads, cells, keys=4),) if rows else ()


def _proof(record: Converted) -> doc.Table:
    """List what was compared, and by how much it may differ."""
    free = tr("convert.free")
    return doc.columns(
        "convert.section.proof",
        "convert.column",
        record.comparisons,
        {
            "what": lambda c: doc.Cell(tr(f"convert.what.{c.what}"), "name"),
            "mode": lambda c: f"{c.mode}()",
            "difference": lambda c: doc.Cell(f"{c.difference:.1e}", "" if c.ok else "wrong"),
            "allowed": lambda c: free if c.allowed is None else f"{c.allowed:.0e}",
        },
        keys=2,
    )
