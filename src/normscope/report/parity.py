"""Two forms of a network as a document: the same or not, the first norm that differs, and why."""

import math

from normscope.records import NormPair, Parity, Reason
from normscope.report.bilingual import Text, Words, said, several
from normscope.report.charts.base import Chart, Spec, by_series, spec, x_axis, y_axis
from normscope.report.document import Block, Cell, Document, Finding, Paragraph, Section, Table

NAMES = 5  # of further norms in one sentence
LOOK = {"differs": "wrong", "missing": "wrong"}


def document(record: Parity) -> Document:
    """Show the verdict, the outputs and every norm of two forms of a network."""
    sections = [
        Section(said("parity.section.verdict"), (*_answer(record), *_passports(record)), "verdict"),
        Section(said("parity.section.outputs"), (_outputs(record),), "outputs"),
    ]
    if record.norms:
        picture: tuple[Block, ...] = (_picture(record),) if len(record.norms) > 1 else ()
        blocks = (_norms(record), *picture)
        sections.append(Section(said("parity.section.norms"), blocks, "norms"))
    first, second = record.names
    forms = Text(*(f"{a}, {b}" for a, b in zip(*(_form(f) for f in record.forms), strict=True)))
    return Document(
        said("parity.title", first=first, second=second),
        tuple(sections),
        facts=(
            (said("parity.fact.forms"), forms.en),
            (said("parity.fact.norms"), str(len(record.norms))),
            (said("parity.fact.forwards"), "{} + {}".format(*record.forwards)),
        ),
    )


def reason_text(reason: Reason) -> Text:
    """Say why a norm is not the same, and what to do."""
    which: Words = reason.detail
    if reason.code == "compiled_code":
        which = said(f"parity.which.{reason.detail}")
    return said(
        f"parity.reason.{reason.code}", first=reason.first, second=reason.second, detail=which
    )


def _form(kind: str) -> tuple[str, str]:
    text = said(f"parity.form.{kind}")
    return text.en, text.zh


def _passports(record: Parity) -> list[Block]:
    """Say which side is not what its own passport says."""
    found: list[Block] = []
    for which, mismatches in zip(("first", "second"), record.passports, strict=True):
        if mismatches is None:
            continue
        side = said(f"parity.which.{which}")
        if not mismatches:
            found.append(Paragraph(said("parity.passport.ok", which=side), "quiet"))
            continue
        first = mismatches[0]
        text = said(
            "parity.passport.bad",
            which=side,
            count=len({m.norm for m in mismatches}),
            norm=first.norm,
            what=said(f"passport.code.{first.code}"),
            passport=first.passport[:12],
            found=first.found[:12],
        )
        found.append(Paragraph(text, "notice"))
    return found


def _answer(record: Parity) -> list[Block]:
    fused = sum(n.status == "fused" for n in record.norms)
    if record.ok:
        key = "same" if record.norms else "same_plain"
        parts = [said(f"parity.verdict.{key}", norms=len(record.norms))]
        if fused:
            parts.append(said("parity.verdict.fused", count=fused))
        return [Finding("good", None, (several(parts),))]
    first = record.first
    if first is None:
        details = [reason_text(reason) for reason in record.reasons]
        if record.extra:
            names = ", ".join(record.extra[:NAMES])
            details.append(said("parity.verdict.extra", names=names))
        key = "no_norm" if details else "unknown"
        return [Finding("error", said(f"parity.verdict.{key}"), tuple(details))]
    details = [reason_text(reason) for reason in first.reasons]
    headline = said("parity.verdict.first", name=first.name)
    blocks: list[Block] = [Finding("error", headline, tuple(details))]
    others = [n.name for n in record.norms if n.status == "differs" and n is not first]
    rest = []
    if others:
        names = ", ".join(others[:NAMES]) + (" ..." if len(others) > NAMES else "")
        rest.append(said("parity.verdict.more", count=len(others), names=names))
    carried = sum(n.status == "carried" for n in record.norms)
    if carried:
        rest.append(said("parity.verdict.carried", count=carried))
    if all(mode.ok for mode in record.modes):
        rest.append(said("parity.verdict.harmless"))
    if rest:
        blocks.append(Paragraph(several(rest)))
    return blocks


def _outputs(record: Parity) -> Table:
    trained = any(math.isfinite(mode.statistics) for mode in record.modes)
    columns = ["mode", "outputs", "allowed", *(["statistics"] if trained else [])]
    rows = []
    for mode in record.modes:
        cells = [
            Cell(f"{mode.mode}()", "name"),
            Cell(_size(mode.outputs), "" if mode.ok else "wrong"),
            Cell(_size(mode.allowed)),
        ]
        rows.append((*cells, Cell(_size(mode.statistics))) if trained else tuple(cells))
    head = [said(f"parity.column.{column}") for column in columns]
    return Table(said("parity.caption.outputs"), head, tuple(rows))


def _norms(record: Parity) -> Table:
    columns = ("norm", "other", "channels", "status", "inputs", "outputs", "allowed", "why")
    head = [said(f"parity.column.{column}") for column in columns]
    rows = tuple(_row(pair) for pair in record.norms)
    return Table(said("parity.caption.norms"), head, rows)


def _row(pair: NormPair) -> tuple[Cell, ...]:
    look = LOOK.get(pair.status, "")
    why: Words = several([reason_text(r) for r in pair.reasons[:2]]) if pair.reasons else ""
    same = pair.other == pair.name
    return (
        Cell(pair.name, "name"),
        Cell("=" if same else pair.other or "-"),
        Cell(str(pair.channels)),
        Cell(said(f"parity.status.{pair.status}"), look),
        Cell(_size(pair.inputs)),
        Cell(_size(pair.outputs), look),
        Cell(_size(pair.allowed)),
        Cell(why, "text"),
    )


def _picture(record: Parity) -> Chart:
    names = (said("parity.chart.difference"), said("parity.chart.allowed"))
    least = min((n.allowed for n in record.norms), default=1e-8) / 100
    rows: list[Spec] = []
    for place, pair in enumerate(record.norms, 1):
        for name, value in zip(names, (pair.outputs, pair.allowed), strict=True):
            if math.isfinite(value):
                shown = max(value, least)  # a logarithm has no place for 0
                rows.append({"at": place, "series": name, "value": shown, "norm": pair.name})
    axis = {"format": ".0e", "tickCount": 5}
    picture = spec(
        rows,
        220,
        mark={"type": "line", "point": True},
        encoding={
            "x": x_axis("at", said("parity.chart.order"), axis={"grid": False, "tickMinStep": 1}),
            "y": y_axis("value", None, scale={"type": "log"}, axis=axis),
            **by_series(names),
            "tooltip": [{"field": "norm"}, {"field": "value", "format": ".2e"}],
        },
    )
    head = [said(f"parity.column.{column}") for column in ("norm", "outputs", "allowed")]
    body = tuple(
        (Cell(n.name, "name"), Cell(_size(n.outputs)), Cell(_size(n.allowed))) for n in record.norms
    )
    table = Table(said("parity.chart.title"), head, body)
    return Chart(said("parity.chart.title"), said("parity.chart.note"), picture, table, across=True)


def _size(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "0" if value == 0 else "inf" if math.isinf(value) else f"{value:.1e}"
