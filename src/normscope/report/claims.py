"""Published statements and what became of them here, as a document that can be handed out."""

import re
from collections import Counter

from normscope.records import ClaimResult, Claims
from normscope.report import document as doc
from normscope.report.bilingual import Text, labelled, tr
from normscope.report.charts import spec
from normscope.report.format import number, percent

LOOK: dict[str, doc.FindingStyle] = {"agrees": "good", "direction": "note", "no": "warn"}


def document(record: Claims) -> doc.Document:
    """Show a summary, then each statement with its source, rule, numbers and picture."""
    counts = dict.fromkeys(LOOK, 0) | Counter(result.verdict for result in record.results)
    blocks = (
        doc.Paragraph(tr("claims.summary", all=len(record.results), **counts), "lead"),
        _summary(record),
        doc.Paragraph(tr("claims.note"), "quiet"),
    )
    sections = [doc.Section(tr("claims.section.summary"), blocks, "summary")]
    sections += [_statement(result) for result in record.results]
    seconds = sum(result.seconds for result in record.results)
    facts = [(tr("claims.fact.seconds"), f"{seconds:.0f}")]
    facts += [(tr("claims.fact.torch"), result.torch) for result in record.results[:1]]
    return doc.Document(tr("claims.title"), tuple(sections), facts=tuple(facts))


def _summary(record: Claims) -> doc.Table:
    return doc.columns(
        "claims.caption.summary",
        "claims.column",
        record.results,
        {
            "statement": lambda r: doc.Cell(tr(f"claims.{r.name}.name"), "name", link=r.name),
            "verdict": lambda r: doc.Cell(
                tr(f"claims.verdict.{r.verdict}"), "wrong" if r.verdict == "no" else ""
            ),
            "data": lambda r: r.data,
            "seeds": lambda r: str(r.seeds),
            "seconds": lambda r: f"{r.seconds:.1f}",
        },
    )


def _statement(result: ClaimResult) -> doc.Section:
    own = f"claims.{result.name}"
    verdict = tr(f"claims.verdict.{result.verdict}")
    headline = Text(verdict.en[0].upper() + verdict.en[1:] + ".", verdict.zh + "。")
    parts = ("said", "ran", "rule")
    details = (labelled(tr(f"claims.{part}"), tr(f"{own}.{part}")) for part in parts)
    end = "" if result.source.endswith("?") else "."
    where = f"{result.source}{end} arXiv:{result.link}"
    numbers = doc.columns(
        "claims.caption.numbers",
        "claims.column",
        result.numbers,
        {
            "number": lambda m: doc.Cell(tr(f"{own}.number.{m.name}"), "name"),
            "mean": lambda m: percent(m.mean) if m.percent else number(m.mean, digits=3),
            "spread": lambda m: (
                "-"
                if result.seeds < 2
                else percent(m.spread)
                if m.percent
                else number(m.spread, digits=2)
            ),
        },
    )
    blocks = (
        doc.Finding(LOOK[result.verdict], headline, tuple(details)),
        doc.Paragraph(labelled(tr("claims.source"), where), "quiet"),
        numbers,
        _picture(result),
    )
    # the first author and the year, for the list of contents
    year = re.search(r"\b(19|20)\d\d\b", result.source)
    author = re.split(r",| &| et al| (?:19|20)\d\d", result.source)[0]
    nav = f"{author} {year[0] if year else ''}".strip()
    return doc.Section(tr(f"{own}.name"), blocks, result.name, nav=Text(nav, nav))


def _picture(result: ClaimResult) -> doc.Chart:
    own = f"claims.{result.name}"
    names = {curve.name: tr(f"{own}.curve.{curve.name}") for curve in result.curves}
    rows: list[doc.Spec] = [
        {
            "x": x,
            "y": y,
            "low": y - s,
            "high": y + s,
            "spread": None if curve.points else s,
            "series": names[curve.name],
        }
        for curve in result.curves
        for x, y, s in zip(curve.x, curve.mean, curve.spread, strict=True)
    ]
    points = any(curve.points for curve in result.curves)
    picture = spec(
        "claim_points" if points else "claim_lines",
        rows,
        list(names.values()),
        title=tr(f"{own}.x"),
        band=result.seeds > 1 and not result.log_y,
        x_scale="log" if result.log_x else "linear",
        y_scale="log" if result.log_y else "linear",
    )
    body = [
        (
            doc.Cell(row["series"], "name"),
            number(row["x"], digits=3),
            number(row["y"], digits=3),
            "-" if row["spread"] is None else number(row["spread"], digits=2),
        )
        for row in rows
    ]
    head = [tr("claims.column.curve"), tr(f"{own}.x")]
    head += [tr(f"claims.column.{name}") for name in ("mean", "spread")]
    numbers = doc.table(tr("claims.chart"), head, body, keys=2)
    return doc.Chart(tr("claims.chart"), tr(f"{own}.note"), picture, numbers, across=True)
