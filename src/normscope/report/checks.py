"""What a check found, in sentences: for every record that names checks."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from normscope.records import Finding
from normscope.report.bilingual import Text, Words, few, read, tr
from normscope.report.document import Cell, Table, columns
from normscope.report.format import number, percent
from normscope.report.messages import catalogue

WORDS = 24  # characters; what is longer is a sentence and may break
Item = TypeVar("Item")


def grouped(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Put findings of the same code, severity and evidence sentence together."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for f in findings:
        groups.setdefault((f.code, f.severity, f.facts.get("kind", "")), []).append(f)
    return list(groups.values())


def evidence(finding: Finding) -> Text:
    """Say what was found, in one sentence with its numbers."""
    key = f"doctor.{finding.code}.found"
    kind = finding.facts.get("kind", "")
    if kind and f"{key}.{kind}" in catalogue():
        key = f"{key}.{kind}"
    values: dict[str, object] = dict(finding.facts)
    values["measured"] = number(finding.measured, digits=3)
    values["share"] = percent(finding.measured) if math.isfinite(finding.measured) else "-"
    return tr(key, **values)


def title(code: str) -> Text:
    """Say what a check looks for, as a phrase."""
    return tr(f"doctor.{code}.title")


def advice(code: str, kind: str = "") -> Text:
    """Say what to do about it."""
    key = f"doctor.{code}.do.{kind}"
    return tr(key if kind and key in catalogue() else f"doctor.{code}.do")


def source(finding: Finding) -> Words:
    """Say where the threshold of a check comes from; that of another version stays as it is."""
    known = catalogue().get(f"doctor.{finding.code}.source", {})
    return Text(**known) if known.get("en") == finding.source else finding.source


def place(group: list[Finding]) -> Words:
    """Name the layers of a group, the first few."""
    names = [f.layer for f in group if f.layer]
    return few(names) if names else tr("doctor.whole")


def listed(
    caption: str | Text,
    items: Iterable[Item],
    of: Mapping[str, Callable[[Item], Words]],
    keys: int = 1,
) -> Table:
    """Make a table; numbers are narrow, only sentences need the room of a text column."""
    found = columns(caption, "doctor.column", items, of, keys)
    rows = tuple(tuple(map(_roomy, row)) for row in found.rows)
    return replace(found, rows=rows)


def _roomy(cell: Cell) -> Cell:
    return replace(cell, style="text") if len(read(cell.text, "en")) > WORDS else cell
