"""A run as a document: the answer beside its picture, three cards, what carries it on, training."""

import math
from collections.abc import Iterator

from normscope.records import ChannelHistory, Inspection, Row, Run
from normscope.report import findings, glossary, journey, tables, verdict
from normscope.report import inspection as inspections
from normscope.report.bilingual import Text, said, several
from normscope.report.charts import cards, training
from normscope.report.document import (
    Block,
    Chart,
    Details,
    Document,
    Figures,
    Finding,
    Interactive,
    Listing,
    Only,
    Paragraph,
    Section,
)
from normscope.report.format import number, percent
from normscope.report.html import asset

LAYERS = 24  # with pictures of their own; all others have their numbers
NO_BATCH_NORM = ("none", "layer")


def document(run: Run) -> Document:
    """Show a run; what it did not train or measure is left out."""
    sections = [
        _cards(run),
        _carries_on(run.inspection),
        _training(run),
        _contest(run),
        _numbers(run),
    ]
    drawings = journey.drawings(run)
    script = asset("scripts/journey.js")
    picture = Interactive("journey.html.j2", data={"histories": drawings}, scripts=(script,))
    title = _title(run)
    return Document(
        title=title,
        sections=tuple(section for section in sections if section.blocks),
        facts=tuple((said(f"page.fact.{name}"), value) for name, value in _facts(run)),
        footer=(said("page.run.next"), _footer(run)),
        opening=tuple(_opening(run)),
        picture=picture if drawings else None,
    )


def _title(run: Run) -> Text:
    if any(norm not in NO_BATCH_NORM for norm in run.config.norms):
        return said("page.lesson.title")
    return said("page.run.title", data=run.config.data, net=run.config.net)


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    yield "data", run.config.data
    yield "net", run.config.net
    yield "train", f"{run.train_size:,}"
    yield "test", f"{run.test_size:,}"
    yield "classes", str(len(run.classes))
    yield "seeds", str(run.config.seeds)
    yield "epochs", str(run.config.epochs)
    yield "batch", str(run.config.batch_size)
    yield "lr", number(run.config.lr)


def _footer(run: Run) -> Text:
    facts = ", ".join(f"{name} {value}" for name, value in run.environment.items())
    text = said("page.run.footer", seed=run.config.seed, every=run.config.every)
    return several([text, Text(facts, facts)])


# --- the first screen -------------------------------------------------------------------------


def _opening(run: Run) -> Iterator[Block]:
    """Yield the answer in one sentence, what gamma and beta do alone, and what went wrong."""
    answered = answer(run)
    if answered is not None:
        yield Paragraph(answered, "lead")
    row = next((r for r in run.rows if r.norm == "affine_only"), None)
    if row is not None and math.isfinite(row.mean + row.before):
        key = "page.answer.alone" if run.config.freeze_head else "page.answer.alone.head"
        yield Paragraph(said(key, before=percent(row.before), after=percent(row.mean)))
    if run.histories:
        how = [said("page.answer.how")]
        if len(run.histories) > 1:
            how.append(said("page.answer.how.alone"))
        yield Only("page", (Paragraph(several(how), "quiet"),))
    if answered is None:
        yield verdict.winner(run)
    yield from verdict.stopped(run)


def answer(run: Run) -> Text | None:
    """Answer the question in one sentence with the numbers of the run; None without batch norm."""
    row = _answering(run)
    if row is None:
        return None
    kept = _kept(run.inspection)
    history = next((h for h in run.histories if h.norm == row.norm and h.passing), None)
    return said(
        "page.answer",
        kept="" if kept is None else kept,
        gate="" if history is None else _gate(run, history),
        norm=row.norm,
        accuracy=percent(row.mean),
    )


def _answering(run: Run) -> Row | None:
    """Choose the row that answers: the network of the picture, else the first of batch norm."""
    rows = {
        row.norm: row
        for row in run.rows
        if row.norm not in NO_BATCH_NORM and not row.leaks and math.isfinite(row.mean)
    }
    followed = [rows[h.norm] for h in run.histories if h.norm in rows]
    return next(iter([*followed, *rows.values()]), None)


def _kept(inspection: Inspection | None) -> Text | None:
    """Say that J and eta squared stayed, where that was measured and is so."""
    if inspection is None:
        return None
    known = [la for la in inspection.layers if math.isfinite(la.invariance)]
    held = known and all(la.invariance <= findings.tolerance(la) for la in known)
    return said("page.answer.kept", layers=len(known)) if held else None


def _gate(run: Run, history: ChannelHistory) -> Text:
    known = [
        (-share, k)
        for share, k in zip(history.passing[-1], history.classes, strict=True)
        if math.isfinite(share)
    ]
    if not known:
        return Text("", "")
    (high, first), (low, last) = min(known), max(known)
    return said(
        "page.answer.gate",
        channel=history.channel,
        layer=history.layer,
        high=percent(round(-high, 2)),
        first=run.classes[first],
        low=percent(round(-low, 2)),
        last=run.classes[last],
    )


# --- sections ---------------------------------------------------------------------------------


def _cards(run: Run) -> Section:
    drawn = [
        None if run.inspection is None else cards.kept(run.inspection),
        cards.alone(run),
        cards.trap(run),
    ]
    found = [chart for chart in drawn if chart is not None]
    told = [Finding("note", _named(chart), (chart.note,)) for chart in found]
    trapped = [] if any(c.title == said("page.card.trap") for c in found) else verdict.trap(run)
    blocks: list[Block] = [Only("terminal", tuple(told))] if told else []
    if found:
        blocks.append(Figures(tuple(found), small=True))
    blocks += [*trapped]
    return Section(said("page.cards.title"), tuple(blocks), "evidence", said("page.nav.evidence"))


def _named(chart: Chart) -> Text:
    value = chart.value if isinstance(chart.value, Text) else Text(chart.value, chart.value)
    title = chart.title if isinstance(chart.title, Text) else Text(chart.title, chart.title)
    return Text(f"{title.en}: {value.en}", f"{title.zh}：{value.zh}")


def _carries_on(inspection: Inspection | None) -> Section:
    """Show how far the classes can be told apart through the layers; the layers are folded."""
    title, nav = said("page.carries.title"), said("page.nav.layers")
    if inspection is None:
        missing = Paragraph(said("page.no_inspection"), "notice")
        return Section(title, (Only("page", (missing,)),), "layers", nav)
    figures, *others = inspections.pictures(inspection) or (None,)
    blocks: list[Block] = [] if figures is None else [figures]
    blocks += inspections.verdict(inspection)
    for block in others:
        folded = Details(block.title, block.blocks) if isinstance(block, Section) else block
        blocks.append(folded)
    return Section(title, (Only("page", tuple(blocks)),), "layers", nav)


def _training(run: Run) -> Section:
    """Show learning curves, the rates that train, and how much the inputs of layers move."""
    charts = training.learning_curves(run)
    if run.sweeps:
        charts.append(training.sweep(run))
    blocks: list[Block] = [*verdict.rates(run), *verdict.drift(run)]
    if charts:
        blocks.insert(0, Figures(tuple(charts), small=True))
    drifts = _drifts(run)
    if drifts:
        how = Paragraph(said("page.drift.how"))
        blocks.append(Details(said("page.drift.title"), (how, Figures(tuple(drifts), small=True))))
    blocks += _parameters(run)
    return Section(
        said("page.training.title"), tuple(blocks), "training", said("page.nav.training")
    )


def _parameters(run: Run) -> list[Block]:
    """Show gamma and beta of every layer, of the first normalisation that has them."""
    moving = [t for t in run.traces if any(t.gamma) and any(t.beta)]
    shown = [t for t in moving if t.norm == moving[0].norm][:LAYERS] if moving else []
    if not shown:
        return []
    pairs = [
        Figures((training.parameter(trace, "γ"), training.parameter(trace, "β"))) for trace in shown
    ]
    how = Paragraph(said("page.parameters.how"))
    return [Details(said("page.parameters.title", norm=shown[0].norm), (how, *pairs))]


def _drifts(run: Run) -> list[Chart]:
    """Draw the drift with and without batch norm where both were trained, else of what was."""
    norms = list(dict.fromkeys(t.norm for t in run.traces))
    compared = [n for n in ("batch", "none") if n in norms] if "batch" in norms else norms[:2]
    traces = [t for t in run.traces if t.norm in compared]
    names = list(dict.fromkeys(t.layer for t in traces))[:LAYERS]
    return [training.drift([t for t in traces if t.layer == name], name) for name in names]


def _contest(run: Run) -> Section:
    """Compare the accuracies in a terminal; a page has them folded among its numbers."""
    found: list[Block] = [verdict.winner(run), *verdict.domains(run)]
    found += _comparisons(run)
    blocks = (Only("terminal", tuple(found)),) if run.rows else ()
    return Section(said("page.contest.title"), blocks)


def _comparisons(run: Run) -> list[Block]:
    by_domain = [tables.domains(run)] if any(row.by_domain for row in run.rows) else []
    return [tables.comparison(run), tables.costs(run), *by_domain]


def _numbers(run: Run) -> Section:
    """Fold the accuracy contest, every measure at every stage, and what the symbols mean."""
    folded: list[Block] = []
    if run.rows:
        told = [verdict.winner(run), *verdict.domains(run)]
        names = [
            several([Text(f"{r.norm}: ", f"{r.norm}："), tables.norm_name(r.norm)])
            for r in run.rows
        ]
        charts: list[Block] = [training.comparison(run)]
        if any(row.by_domain for row in run.rows):
            charts.append(training.domains(run))
        inside = (*told, Figures(tuple(charts)), *_comparisons(run), Listing(tuple(names)))
        folded.append(Details(said("page.contest.open"), inside, id="contest"))
    if run.inspection is not None:
        folded.append(_measures(run.inspection))
    folded.append(glossary.folded())
    blocks = (Only("page", tuple(folded)),)
    return Section(said("page.numbers.title"), blocks, "numbers", said("page.nav.numbers"))


def _measures(inspection: Inspection) -> Details:
    """Fold every measure at every stage, and what to know about single layers."""
    return Details(said("page.advanced.open"), inspections.evidence(inspection), id="measures")
