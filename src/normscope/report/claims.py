"""Published statements and what became of them here, as a document that can be handed out."""

import re

from normscope.records import ClaimResult, Claims, Curve
from normscope.report.bilingual import Text, said
from normscope.report.charts.base import Chart, Spec, by_series, spec, x_axis, y_axis
from normscope.report.document import (
    Block,
    Cell,
    Document,
    Finding,
    FindingStyle,
    Paragraph,
    Section,
    Table,
)
from normscope.report.format import number, percent

LOOK: dict[str, FindingStyle] = {"agrees": "good", "direction": "note", "no": "warn"}


def document(record: Claims) -> Document:
    """Show a summary, then each statement with its source, rule, numbers and picture."""
    counts = dict.fromkeys(LOOK, 0)
    for result in record.results:
        counts[result.verdict] += 1
    summary = said("claims.summary", all=len(record.results), **counts)
    blocks: tuple[Block, ...] = (
        Paragraph(summary, "lead"),
        _summary(record),
        Paragraph(said("claims.note"), "quiet"),
    )
    sections = [Section(said("claims.section.summary"), blocks, "summary")]
    sections += [_statement(result) for result in record.results]
    seconds = sum(result.seconds for result in record.results)
    facts = [(said("claims.fact.seconds"), f"{seconds:.0f}")]
    if record.results:
        facts.append((said("claims.fact.torch"), record.results[0].torch))
    return Document(said("claims.title"), tuple(sections), facts=tuple(facts))


def _summary(record: Claims) -> Table:
    head = [
        said(f"claims.column.{c}") for c in ("statement", "verdict", "data", "seeds", "seconds")
    ]
    rows = tuple(
        (
            Cell(said(f"claims.{r.name}.name"), "name", link=r.name),
            Cell(said(f"claims.verdict.{r.verdict}"), "wrong" if r.verdict == "no" else ""),
            Cell(r.data),
            Cell(str(r.seeds)),
            Cell(f"{r.seconds:.1f}"),
        )
        for r in record.results
    )
    return Table(said("claims.caption.summary"), head, rows)


def _statement(result: ClaimResult) -> Section:
    own = f"claims.{result.name}"
    verdict = said(f"claims.verdict.{result.verdict}")
    headline = Text(verdict.en[0].upper() + verdict.en[1:] + ".", verdict.zh + "。")
    details = tuple(
        Text(f"{label.en}: {text.en}", f"{label.zh}：{text.zh}")
        for label, text in (
            (said("claims.said"), said(f"{own}.said")),
            (said("claims.ran"), said(f"{own}.ran")),
            (said("claims.rule"), said(f"{own}.rule")),
        )
    )
    label = said("claims.source")
    end = "" if result.source.endswith("?") else "."
    where = f"{result.source}{end} arXiv:{result.link}"
    source = Text(f"{label.en}: {where}", f"{label.zh}：{where}")
    blocks: tuple[Block, ...] = (
        Finding(LOOK[result.verdict], headline, details),
        Paragraph(source, "quiet"),
        _numbers(result),
        _picture(result),
    )
    return Section(said(f"{own}.name"), blocks, result.name, nav=_author(result.source))


def _author(source: str) -> Text:
    """The first author and the year, for the list of contents."""
    year = re.search(r"\b(19|20)\d\d\b", source)
    name = re.split(r",| &| et al", source)[0]
    return Text(*(f"{name} {year[0] if year else ''}".strip(),) * 2)


def _numbers(result: ClaimResult) -> Table:
    head = [said(f"claims.column.{c}") for c in ("number", "mean", "spread")]
    rows = tuple(
        (
            Cell(said(f"claims.{result.name}.number.{m.name}"), "name"),
            Cell(percent(m.mean) if m.percent else number(m.mean, digits=3)),
            Cell("-" if result.seeds < 2 else _spread(m.spread, m.percent)),
        )
        for m in result.numbers
    )
    return Table(said("claims.caption.numbers"), head, rows)


def _spread(value: float, share: bool) -> str:
    return percent(value) if share else number(value, digits=2)


def _picture(result: ClaimResult) -> Chart:
    names = [said(f"claims.{result.name}.curve.{c.name}") for c in result.curves]
    rows: list[Spec] = []
    for name, curve in zip(names, result.curves, strict=True):
        rows += [
            {"x": x, "y": y, "low": y - s, "high": y + s, "series": name}
            for x, y, s in zip(curve.x, curve.mean, curve.spread, strict=True)
        ]
    log: Spec = {"scale": {"type": "log"}}
    encoding: Spec = {
        "x": x_axis("x", said(f"claims.{result.name}.x"), **(log if result.log_x else {})),
        "y": y_axis("y", None, **(log if result.log_y else {})),
        **by_series(names),
    }
    points = any(curve.points for curve in result.curves)
    marks: list[Spec] = [{"mark": "point" if points else {"type": "line", "point": True}}]
    if points:
        del encoding["strokeDash"]
        legend = {"symbolType": "circle", "symbolOpacity": 1}
        encoding["color"] = {**encoding["color"], "legend": legend}
        ends = [{"x": 0, "y": 0}, {"x": 1, "y": 1}]
        dashed: Spec = {"type": "line", "strokeDash": [4, 3], "color": "var(--quiet)"}
        flat = {key: {"field": key, "type": "quantitative"} for key in ("x", "y")}
        marks.append({"data": {"values": ends}, "mark": dashed, "encoding": flat})
    elif result.seeds > 1 and not result.log_y:
        band = {"mark": {"type": "errorband", "opacity": 0.18}}
        low = {"field": "low", "type": "quantitative", "title": None}
        marks.insert(0, {**band, "encoding": {"y": low, "y2": {"field": "high"}}})
    whole = {k: v for k, v in encoding.items() if len(marks) == 1 or k != "strokeDash"}
    first = {**marks[0], "encoding": {**whole, **marks[0].get("encoding", {})}}
    others = [m if "data" in m else {**m, "encoding": encoding} for m in marks[1:]]
    picture = spec(rows, 240, layer=[first, *others])
    note = said(f"claims.{result.name}.note")
    return Chart(said("claims.chart"), note, picture, _table(result), across=True)


def _table(result: ClaimResult) -> Table:
    axis = said(f"claims.{result.name}.x")
    head = [
        said("claims.column.curve"),
        axis,
        *(said(f"claims.column.{c}") for c in ("mean", "spread")),
    ]
    rows = tuple(row for curve in result.curves for row in _rows(result.name, curve))
    return Table(said("claims.chart"), head, rows, keys=2)


def _rows(name: str, curve: Curve) -> list[tuple[Cell, ...]]:
    label = said(f"claims.{name}.curve.{curve.name}")
    return [
        (
            Cell(label, "name"),
            Cell(number(x, digits=3)),
            Cell(number(y, digits=3)),
            Cell("-" if curve.points else number(s, digits=2)),
        )
        for x, y, s in zip(curve.x, curve.mean, curve.spread, strict=True)
    ]
