"""A run as a document: the answer beside its picture, three cards, what carries it on, training."""

import math
from collections.abc import Iterator
from typing import Any

from normscope.records import ChannelHistory, Inspection, Row, Run
from normscope.report import document as doc
from normscope.report import findings, glossary, verdict
from normscope.report import inspection as inspections
from normscope.report.bilingual import Text, known, labelled, sentences, tr
from normscope.report.charts import cards, training
from normscope.report.format import number, percent, share
from normscope.report.html import asset

LAYERS = 24  # with pictures of their own; all others have their numbers
NO_BATCH_NORM = ("none", "layer")


def document(run: Run) -> doc.Document:
    """Show a run; what it did not train or measure is left out."""
    sections = (
        _cards(run),
        _carries_on(run.inspection),
        _training(run),
        doc.Section(tr("page.contest.title"), (doc.Only("terminal", tuple(_contest(run))),)),
        _numbers(run),
    )
    histories = [drawing(history, run) for history in run.histories if history.x]
    picture = doc.Interactive(
        "journey.html.j2",
        data={"histories": histories},
        scripts=(asset("scripts/journey.js"),),
    )
    config = run.config
    facts = {
        "data": config.data,
        "net": config.net,
        "train": f"{run.train_size:,}",
        "test": f"{run.test_size:,}",
        "classes": str(len(run.classes)),
        "seeds": str(config.seeds),
        "epochs": str(config.epochs),
        "batch": str(config.batch_size),
        "lr": number(config.lr),
    }
    asks = any(norm not in NO_BATCH_NORM for norm in config.norms)
    title = tr("page.run.title", data=config.data, net=config.net)
    footer = tr("page.run.footer", seed=config.seed, every=config.every)
    environment = ", ".join(f"{name} {value}" for name, value in run.environment.items())
    return doc.Document(
        title=tr("page.lesson.title") if asks else title,
        sections=tuple(section for section in sections if section.blocks),
        facts=tuple((tr(f"page.fact.{name}"), value) for name, value in facts.items()),
        footer=(tr("page.run.next"), sentences(footer, environment)),
        opening=tuple(_opening(run)),
        picture=picture if histories else None,
    )


# --- the first screen -------------------------------------------------------------------------


def _opening(run: Run) -> Iterator[doc.Block]:
    """Yield the answer in one sentence, what gamma and beta do alone, and what went wrong."""
    answered = answer(run)
    if answered is not None:
        yield doc.Paragraph(answered, "lead")
    row = next((r for r in run.rows if r.norm == "affine_only"), None)
    if row is not None and math.isfinite(row.mean + row.before):
        key = "page.answer.alone" if run.config.freeze_head else "page.answer.alone.head"
        yield doc.Paragraph(tr(key, before=percent(row.before), after=percent(row.mean)))
    if run.histories:
        how = [tr("page.answer.how"), tr("page.answer.how.alone")][: len(run.histories)]
        yield doc.Only("page", (doc.Paragraph(sentences(*how), "quiet"),))
    if answered is None:
        yield verdict.winner(run)
    yield from verdict.stopped(run)


def answer(run: Run) -> Text | None:
    """Answer the question in one sentence with the numbers of the run; None without batch norm."""
    rows = {
        row.norm: row
        for row in run.rows
        if row.norm not in NO_BATCH_NORM and not row.leaks and math.isfinite(row.mean)
    }
    # the network of the picture answers, else the first of batch norm
    followed = [rows[h.norm] for h in run.histories if h.norm in rows]
    row: Row | None = next(iter([*followed, *rows.values()]), None)
    if row is None:
        return None
    history = next((h for h in run.histories if h.norm == row.norm and h.passing), None)
    return tr(
        "page.answer",
        kept=_kept(run.inspection),
        gate="" if history is None else _gate(run, history),
        norm=row.norm,
        accuracy=percent(row.mean),
    )


def _kept(inspection: Inspection | None) -> Text | str:
    """Say that J and eta squared stayed, where that was measured and is so."""
    layers = () if inspection is None else inspection.layers
    known = [layer for layer in layers if math.isfinite(layer.invariance)]
    held = known and all(layer.invariance <= findings.tolerance(layer) for layer in known)
    key = "page.answer.kept.one" if len(known) == 1 else "page.answer.kept"
    return tr(key, layers=len(known)) if held else ""


def _gate(run: Run, history: ChannelHistory) -> Text | str:
    """Name the classes of which a channel passes most and least."""
    shares = zip(history.passing[-1], history.classes, strict=True)
    known = [(-passing, k) for passing, k in shares if math.isfinite(passing)]
    if not known:
        return ""
    (high, first), (low, last) = min(known), max(known)
    return tr(
        "page.answer.gate",
        channel=history.channel,
        layer=history.layer,
        high=percent(round(-high, 2)),
        first=run.classes[first],
        low=percent(round(-low, 2)),
        last=run.classes[last],
    )


def drawing(history: ChannelHistory, run: Run) -> dict[str, Any]:
    """Collect what the page's script needs to draw one channel through training.

    The lanes are in the order of their pass rates, so that the picture reads as a slope.
    """
    last = history.passing[-1]
    rates = [rate if math.isfinite(rate) else 0.0 for rate in last]
    lanes = sorted(range(len(last)), key=lambda k: (-rates[k], k))
    at = {history.classes[k]: place for place, k in enumerate(lanes)}
    only = "some" if run.config.freeze_head else "head"
    same = "layer channel channels eps epoch x gamma beta running_mean running_var information"
    return {
        **{name: getattr(history, name) for name in (*same.split(), "accuracy")},
        "learns": only if history.norm == "affine_only" else "all",
        "classes": [run.classes[history.classes[k]] for k in lanes],
        "label": [at[k] for k in history.label],
        "passing": [[row[k] for k in lanes] for row in history.passing],
    }


# --- sections ---------------------------------------------------------------------------------


def _cards(run: Run) -> doc.Section:
    """Draw the experiments; a terminal tells them."""
    kept = None if run.inspection is None else cards.kept(run.inspection)
    alone, trap = cards.alone(run), cards.trap(run)
    found = [chart for chart in (kept, alone, trap) if chart is not None]
    blocks: list[doc.Block] = []
    if found:
        conclusions = [doc.Finding("note", labelled(c.title, c.value), (c.note,)) for c in found]
        blocks = [doc.Only("terminal", tuple(conclusions)), doc.Figures(tuple(found), small=True)]
    if trap is None:
        blocks += verdict.trap(run)
    return doc.Section(
        tr("page.cards.title"), tuple(blocks), "evidence", tr("page.section.evidence")
    )


def _carries_on(inspection: Inspection | None) -> doc.Section:
    """Show how far the classes can be told apart through the layers; the layers are folded."""
    blocks: list[doc.Block] = [doc.Paragraph(tr("page.no_inspection"), "notice")]
    if inspection is not None:
        folded = [
            doc.Details(b.title, b.blocks) if isinstance(b, doc.Section) else b
            for b in inspections.pictures(inspection)
        ]
        blocks = [*inspections.carried(inspection), *inspections.verdict(inspection), *folded]
    shown = (doc.Only("page", tuple(blocks)),)
    return doc.Section(tr("page.carries.title"), shown, "layers", tr("page.nav.layers"))


def _training(run: Run) -> doc.Section:
    """Show learning curves, the rates that train, and how much the inputs of layers move."""
    charts = training.learning_curves(run)
    if run.sweeps:
        charts.append(training.sweep(run))
    blocks: list[doc.Block] = [doc.Figures(tuple(charts), small=True)] if charts else []
    blocks += [*verdict.rates(run), *verdict.drift(run)]
    drifts = tuple(_drifts(run))
    if drifts:
        how = doc.Paragraph(tr("page.drift.how"))
        blocks.append(doc.Details(tr("page.drift.title"), (how, doc.Figures(drifts, small=True))))
    moving = [t for t in run.traces if any(t.gamma) and any(t.beta)]
    pairs = [
        doc.Figures((training.parameter(trace, "γ"), training.parameter(trace, "β")))
        for trace in [t for t in moving if t.norm == moving[0].norm][:LAYERS]
    ]
    if pairs:
        how = doc.Paragraph(tr("page.parameters.how"))
        blocks.append(doc.Details(tr("page.parameters.title", norm=moving[0].norm), (how, *pairs)))
    nav = tr("page.nav.training")
    return doc.Section(tr("page.training.title"), tuple(blocks), "training", nav)


def _drifts(run: Run) -> Iterator[doc.Chart]:
    """Draw the drift with and without batch norm where both were trained, else of what was."""
    norms = list(dict.fromkeys(t.norm for t in run.traces))
    compared = [n for n in ("batch", "none") if n in norms] if "batch" in norms else norms[:2]
    traces = [t for t in run.traces if t.norm in compared]
    for name in list(dict.fromkeys(t.layer for t in traces))[:LAYERS]:
        yield training.drift([t for t in traces if t.layer == name], name)


def _contest(run: Run) -> list[doc.Block]:
    """Compare the accuracies in a terminal; a page has them folded among its numbers."""
    if not run.rows:
        return []
    return [verdict.winner(run), *verdict.domains(run), *_comparisons(run)]


def _comparisons(run: Run) -> list[doc.Block]:
    by_domain = [training.domains(run).table] if any(row.by_domain for row in run.rows) else []
    return [comparison(run), _costs(run), *by_domain]


def _numbers(run: Run) -> doc.Section:
    """Fold the accuracy contest, every measure at every stage, and what the symbols mean."""
    folded: list[doc.Block] = []
    if run.rows:
        names = doc.Listing(tuple(norm_name(row.norm) for row in run.rows))
        charts = [training.comparison(run)]
        if any(row.by_domain for row in run.rows):
            charts.append(training.domains(run))
        conclusions = (verdict.winner(run), *verdict.domains(run))
        inside = (*conclusions, doc.Figures(tuple(charts)), *_comparisons(run), names)
        folded.append(doc.Details(tr("page.contest.open"), inside, id="contest"))
    if run.inspection is not None:
        evidence = inspections.evidence(run.inspection)
        folded.append(doc.Details(tr("page.advanced.open"), evidence, id="measures"))
    folded.append(glossary.folded())
    blocks = (doc.Only("page", tuple(folded)),)
    return doc.Section(tr("page.numbers.title"), blocks, "numbers", tr("page.nav.numbers"))


def norm_name(norm: str) -> Text:
    """Name a normalisation as on the command line and in words."""
    key = known(f"page.norm.{norm}", "")
    return labelled(norm, tr(key) if key else norm)


# --- tables -----------------------------------------------------------------------------------


def comparison(run: Run) -> doc.Table:
    """List accuracy with its spread, before training, without the label, by normalisation."""
    honest = [row.mean for row in run.rows if not row.leaks and math.isfinite(row.mean)]
    best = [not row.leaks and bool(honest) and row.mean == max(honest) for row in run.rows]

    def name(row: Row) -> doc.Cell:
        tag = tr("page.tag.leaks") if row.leaks else None
        if row.diverged:
            tag = tr("page.tag.diverged", count=row.diverged, seeds=row.seeds)
        return doc.Cell(row.norm, "name", tag)

    def spread(row: Row) -> Text | str:
        points = f"{100 * row.spread:.2f}"
        return "-" if math.isnan(row.spread) else tr("page.points", points=points)

    of: dict[str, Any] = {"norm": name, "accuracy": lambda row: share(row.mean), "spread": spread}
    if any(math.isfinite(row.before) for row in run.rows):
        of["before"] = lambda row: share(row.before) if math.isfinite(row.before) else "-"
    if any(row.without_label is not None for row in run.rows):
        of["without_label"] = lambda row: share(row.without_label)
    key = "page.comparison.caption" if run.config.seeds > 1 else "page.comparison.caption.one"
    styles = tuple("best" if b else "" for b in best)
    values = {"seeds": run.config.seeds, "test": run.test_size}
    return doc.columns(tr(key, **values), "page.head", run.rows, of, styles=styles)


def _costs(run: Run) -> doc.Table:
    """List how fast each normalisation learns, which rates train it, what it takes."""

    def rates(row: Row) -> str:
        low, high = row.lr_lowest, row.lr_highest
        return "-" if low is None or high is None else f"{number(low)} – {number(high)}"

    def parameters(row: Row) -> Text | str:
        facts = {"learning": f"{row.learning or 0:,}", "all": f"{row.parameters:,}"}
        all_learn = row.learning in (None, row.parameters)
        return facts["all"] if all_learn else tr("page.learning", **facts)

    of: dict[str, Any] = {
        "norm": lambda row: row.norm,
        "to_95": lambda row: "-" if math.isnan(row.epochs_to_95) else number(row.epochs_to_95),
        **({"rates": rates} if run.sweeps else {}),
        "parameters": parameters,
        "seconds": lambda row: number(row.seconds, digits=3),
    }
    return doc.columns("page.costs.caption", "page.head", run.rows, of)
