"""A conversion as text."""

from rich.console import Console
from rich.text import Text

from normscope.records import Converted
from normscope.report.messages import Lang, say
from normscope.report.text.prose import grid, paragraph, title


def print_conversion(record: Converted, lang: Lang, console: Console) -> None:
    """The verdict, then every layer, then what was compared."""
    text = say(lang, f"convert.verdict.{_verdict(record)}", count=len(record.changed), to=record.to)
    paragraph(console, text, "bold")
    title(console, say(lang, "convert.layers"))
    layers = grid(_heads(lang, "layer", "before", "after", "equal", "note"), texts=5)
    for c in record.changed:
        equal = say(lang, f"convert.equal.{c.equal}")
        layers.add_row(Text(c.name), c.before, c.after, equal, c.note)
    for key, group in (("kept", record.kept), ("refused", record.refused)):
        what = say(lang, f"convert.{key}")
        for left in group:
            layers.add_row(Text(left.name), left.layer, what, "", Text(left.reason))
    console.print(layers)
    if record.fused or record.unfused:
        _print_fused(record, lang, console)
    if not record.comparisons:
        return
    title(console, say(lang, "convert.proof"))
    proof = grid(_heads(lang, "what", "mode", "difference", "allowed"), texts=2)
    for check in record.comparisons:
        free = check.allowed is None
        allowed = say(lang, "convert.free") if free else f"{check.allowed:.0e}"
        what = say(lang, f"convert.what.{check.what}")
        cells = (what, f"{check.mode}()", f"{check.difference:.1e}", allowed)
        proof.add_row(*cells, style="" if check.ok else "red")
    console.print(proof)
    console.print()


def _print_fused(record: Converted, lang: Lang, console: Console) -> None:
    """What norm layers do for the modules behind them, and which do nothing."""
    title(console, say(lang, "convert.fused"))
    table = grid(_heads(lang, "layer", "act", "place", "residual", "note"), texts=5)
    for fusion in record.fused:
        act = fusion.act or say(lang, "convert.fused.none")
        residual = say(lang, "convert.fused.sum") if fusion.residual else ""
        table.add_row(Text(fusion.name), act, Text(fusion.place), residual, "")
    for left in record.unfused:
        table.add_row(Text(left.name), say(lang, "convert.unfused"), "", "", Text(left.reason))
    console.print(table)


def _verdict(record: Converted) -> str:
    """Which sentence: what was proved."""
    must = {check.mode for check in record.comparisons if check.allowed is not None}
    if not record.comparisons:
        return "unverified"
    if not record.ok:
        return "unequal"
    return "other" if not must else "equal" if "train" in must else "eval"


def _heads(lang: Lang, *columns: str) -> list[str]:
    return [say(lang, f"convert.column.{column}") for column in columns]
