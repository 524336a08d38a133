"""What a check found, in sentences: for every record that names checks."""

import math
from collections.abc import Iterable, Sequence

from normscope.records import Finding
from normscope.report.bilingual import Text, Words, said
from normscope.report.document import Cell, Table
from normscope.report.format import number, percent
from normscope.report.messages import catalogue

NAMED = 3  # layers that are listed for one finding; the others are counted
WORDS = 24  # characters; what is longer is a sentence and may break
Rows = list[list[Words]]


def grouped(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Findings of the same code, severity and evidence sentence together."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for f in findings:
        groups.setdefault((f.code, f.severity, f.facts.get("kind", "")), []).append(f)
    return list(groups.values())


def evidence(finding: Finding) -> Text:
    """What was found, in one sentence with its numbers."""
    key = f"doctor.{finding.code}.found"
    kind = finding.facts.get("kind", "")
    if kind and f"{key}.{kind}" in catalogue():
        key = f"{key}.{kind}"
    values: dict[str, object] = dict(finding.facts)
    values["measured"] = number(finding.measured, digits=3)
    values["share"] = percent(finding.measured) if math.isfinite(finding.measured) else "-"
    return said(key, **values)


def title(code: str) -> Text:
    """What a check looks for, as a phrase."""
    return said(f"doctor.{code}.title")


def advice(code: str, kind: str = "") -> Text:
    """What to do about it."""
    key = f"doctor.{code}.do.{kind}"
    return said(key if kind and key in catalogue() else f"doctor.{code}.do")


def place(group: list[Finding]) -> Words:
    """Name the layers of a group, the first few."""
    names = tuple(f.layer for f in group if f.layer)
    return few(names) if names else said("doctor.whole")


def few(names: tuple[str, ...]) -> Words:
    """List the first few names, and count the others."""
    shown = ", ".join(names[:NAMED])
    if len(names) <= NAMED:
        return shown
    more = said("doctor.more", count=len(names) - NAMED)
    return Text(f"{shown} {more.en}", f"{shown} {more.zh}")


def worded(caption: Text, names: Sequence[str], rows: Rows, keys: int = 1) -> Table:
    """Make a table; numbers are narrow, only sentences need the room of a text column."""
    cells = tuple(tuple(Cell(w, "text" if _is_sentence(w) else "") for w in row) for row in rows)
    return Table(caption, [said(f"doctor.column.{name}") for name in names], cells, keys=keys)


def _is_sentence(text: Words) -> bool:
    return len(text.en if isinstance(text, Text) else text) > WORDS
