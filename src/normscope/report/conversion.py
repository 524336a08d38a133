"""A conversion as a document: what was proved, every layer, and what was compared."""

from normscope.records import Converted
from normscope.report.bilingual import Words, tr
from normscope.report.document import Cell, Document, Finding, Section, columns, table


def document(record: Converted) -> Document:
    """Show what became of the layers of a model, and the proof of it."""
    verdict = tr(f"convert.verdict.{_verdict(record)}", count=len(record.changed), to=record.to)
    answer = Finding("good" if record.ok else "error", None, (verdict,))
    layers: list[tuple[Words, ...]] = [
        (c.name, c.before, c.after, tr(f"convert.equal.{c.equal}"), c.note) for c in record.changed
    ]
    layers += [(c.name, c.layer, tr("convert.kept"), "", c.reason) for c in record.kept]
    layers += [(c.name, c.layer, tr("convert.refused"), "", c.reason) for c in record.refused]
    sections = [
        Section(tr("convert.section.verdict"), (answer,), "verdict"),
        _section("layers", ("layer", "before", "after", "equal", "note"), layers),
    ]
    fused: list[tuple[Words, ...]] = [
        (
            f.name,
            f.act or tr("convert.fused.none"),
            f.place,
            tr("convert.fused.sum") if f.residual else "",
            "",
        )
        for f in record.fused
    ]
    fused += [(c.name, tr("convert.unfused"), "", "", c.reason) for c in record.unfused]
    if fused:
        sections.append(_section("fused", ("layer", "act", "place", "residual", "note"), fused))
    if record.comparisons:
        proof = columns(
            "convert.proof",
            "convert.column",
            record.comparisons,
            {
                "what": lambda c: Cell(tr(f"convert.what.{c.what}"), "name"),
                "mode": lambda c: f"{c.mode}()",
                "difference": lambda c: Cell(f"{c.difference:.1e}", "" if c.ok else "wrong"),
                "allowed": lambda c: (
                    tr("convert.free") if c.allowed is None else f"{c.allowed:.0e}"
                ),
            },
            keys=2,
        )
        sections.append(Section(tr("convert.proof"), (proof,), "proof"))
    title = tr("convert.title", model=record.model, to=record.to)
    return Document(title, tuple(sections))


def _verdict(record: Converted) -> str:
    """Choose the sentence by what was proved."""
    must = {check.mode for check in record.comparisons if check.allowed is not None}
    if not record.comparisons:
        return "unverified"
    if not record.ok:
        return "unequal"
    return "other" if not must else "equal" if "train" in must else "eval"


def _section(key: str, names: tuple[str, ...], rows: list[tuple[Words, ...]]) -> Section:
    """List layers: the name, what is said of it in words, and a sentence."""
    cells = [(Cell(name, "name"), *words, Cell(note, "text")) for name, *words, note in rows]
    heads = [tr(f"convert.column.{name}") for name in names]
    title = tr(f"convert.{key}")
    return Section(title, (table(title, heads, cells, keys=4),), key)
