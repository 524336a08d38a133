"""An inspection as a document: what every layer did to every class."""

import math
from collections.abc import Iterator

from normscope.records import Inspection, Layer
from normscope.report import channels, findings, measures, unlabelled
from normscope.report import document as doc
from normscope.report.bilingual import Words, joined, labelled, sentences, tr
from normscope.report.channels import told
from normscope.report.charts import layers as charts
from normscope.report.format import figure, signed

LAYERS = 24  # with pictures of their own; all others have their numbers


def document(inspection: Inspection) -> doc.Document:
    """Show the answer, the measures layer by layer, and single channels with their gate."""
    layers = (doc.Only("page", pictures(inspection)),)
    return _opened(
        inspection,
        (*verdict(inspection), doc.Only("page", carried(inspection))),
        doc.Section(tr("page.section.evidence"), evidence(inspection), "evidence"),
        doc.Section(told(inspection, "page.layers.title"), layers, "layers", tr("page.nav.layers")),
    )


def opening(inspection: Inspection) -> doc.Document:
    """Show the answer alone."""
    return _opened(inspection, verdict(inspection))


def _opened(
    inspection: Inspection, answer: tuple[doc.Block, ...], *sections: doc.Section
) -> doc.Document:
    known = {"classes": len(inspection.classes)} if inspection.labels != "none" else {}
    known |= {"images": inspection.images, "layers": len(inspection.layers)}
    facts = tuple((tr(f"page.fact.{name}"), f"{count:,}") for name, count in known.items())
    about = {"model": inspection.model, "data": inspection.data}
    title = told(inspection, "page.inspection.title", **about)
    first = doc.Section(tr("page.section.verdict"), answer, "verdict")
    return doc.Document(title, (first, *sections), facts)


def brief(inspection: Inspection) -> doc.Document:
    """Show the answer, all layers in one picture and one table, and the layer that gains most."""
    if not inspection.layers:
        return opening(inspection)
    layer = inspection.layers[measures.pictured(inspection, 1)[0]]
    blocks: list[doc.Block] = [
        *((charts.separability(inspection),) if inspection.compared else ()),
        doc.Details(told(inspection, "page.rank.title"), (measures.ranking(inspection),)),
    ]
    plots = [part for part in _channels(layer, inspection, []) if isinstance(part, doc.ChannelPlot)]
    if plots:
        best_and_worst = doc.Figures((plots[0], plots[-1]))
        blocks.append(doc.Section(labelled(layer.name, layer.norm), (best_and_worst,)))
    shown = doc.Section(told(inspection, "page.layers.title"), tuple(blocks), "layers")
    return _opened(inspection, verdict(inspection), shown)


def verdict(inspection: Inspection) -> tuple[doc.Finding, ...]:
    """Tell what normalisation and non-linearity did to the classes, or to all samples together."""
    if not inspection.compared:
        texts = unlabelled.verdict(inspection)
        return tuple(doc.Finding("note", None, (text,)) for text in texts)
    first, *others = findings.verdict(inspection)
    kept = (
        not math.isnan(inspection.invariance)
        and not any(layer.invariance > findings.tolerance(layer) for layer in inspection.layers)
        and not findings.too_few(list(inspection.layers))
    )
    conclusions = (doc.Finding("note", None, (text,)) for text in others)
    return (doc.Finding("good" if kept else "warn", None, (first,)), *conclusions)


def evidence(inspection: Inspection) -> tuple[doc.Block, ...]:
    """Show every measure of every layer, the self-test, and what to know about some layers."""
    layers = inspection.layers
    if not layers:
        return (doc.Paragraph(tr("page.no_layers"), "notice"), *_remarks(inspection))
    legend = {
        "lens.legend": True,
        "lens.legend.pre": any(layer.pre_activation for layer in layers),
        "lens.legend.per_sample": any(layer.maps == "per_sample" for layer in layers),
        "lens.positions": inspection.labels == "positions",
    }
    blocks: list[doc.Block] = [
        doc.Paragraph(sentences(*(tr(key) for key, needed in legend.items() if needed)), "quiet")
    ]
    if len(layers) > 1:
        how = doc.Only("page", (doc.Paragraph(told(inspection, "page.rank.how"), "quiet"),))
        blocks.append(
            doc.Section(told(inspection, "page.rank.title"), (how, measures.ranking(inspection)))
        )
    stages: tuple[doc.Block, ...] = (measures.by_stage(layers),)
    if len(layers) > LAYERS:
        many = doc.Paragraph(tr("page.index.many"), "quiet")
        stages = (doc.Only("terminal", stages), doc.Only("page", (many,)))
    legends = [doc.Paragraph(tr("page.index.alone"), "quiet", icon="scale")]
    if inspection.compared:
        locked = doc.Paragraph(tr("page.index.locked"), "quiet", icon="lock")
        legends = [locked, doc.Paragraph(tr("page.index.geometry"), "quiet", icon="scale")]
    registered = (
        doc.Paragraph(tr(f"page.measure.{name}.how"), "quiet", icon="scale")
        for name in layers[0].stages[0].more
    )
    blocks.append(doc.Section(tr("page.index.title"), (*legends, *registered, *stages)))
    if inspection.compared:
        blocks.append(doc.Section(tr("lens.gate.title"), (measures.gates(inspection),)))
    if any(math.isfinite(layer.stages[0].condition_eta2) for layer in layers):
        blocks.append(doc.Section(tr("lens.domain.title"), (_domains(inspection),)))
    if inspection.work:
        blocks.append(doc.Section(tr("lens.work.title"), (_work(inspection),)))
    return (*blocks, *_remarks(inspection))


def _remarks(inspection: Inspection) -> tuple[doc.Block, ...]:
    """Tell how exact the measures are, and what to know about some layers."""
    conclusions = (findings.composition(inspection), findings.collapsed(inspection))
    items = (*filter(None, conclusions), *findings.remarks(inspection))
    tested = (doc.Paragraph(findings.self_test(inspection)),) if inspection.layers else ()
    return (*tested, *((doc.Listing(items),) if items else ()))


def carried(inspection: Inspection) -> tuple[doc.Block, ...]:
    """Draw what can be told apart through the layers, where there are classes."""
    drawn = inspection.compared and inspection.layers
    return (doc.Figures((charts.separability(inspection),)),) if drawn else ()


def pictures(inspection: Inspection) -> tuple[doc.Block, ...]:
    """Draw single channels with their gates."""
    if not inspection.layers:
        return ()
    classes = channels.shown_classes(inspection)
    left = sum(n > 0 for n in inspection.counts) - len(classes)
    rule = [told(inspection, "page.channels.rule")]
    if left > 0:
        rule.append(tr("page.classes_left_out", count=left))
    places = range(len(inspection.layers))
    drawn = measures.pictured(inspection, LAYERS)
    each = (_layer(inspection, place, drawn, classes) for place in places)
    how = (doc.Paragraph(tr("page.channels.how")), doc.Paragraph(sentences(*rule), "quiet"))
    blocks: list[doc.Block] = [doc.Section(tr("page.channels.title"), (*how, *each))]
    if len(places) > LAYERS:
        text = told(inspection, "page.layers_left_out", count=len(places) - LAYERS)
        blocks.append(doc.Paragraph(text, "notice"))
    return tuple(blocks)


def _layer(inspection: Inspection, place: int, drawn: list[int], classes: list[int]) -> doc.Details:
    layer = inspection.layers[place]
    count = tr("page.layer.channels", channels=layer.channels)
    acts = [findings.follows(layer)] if layer.activation or layer.input_activation else []
    inside: tuple[doc.Block, ...] = (measures.by_stage([layer]),)
    if place in drawn:
        inside = (doc.Figures(tuple(_channels(layer, inspection, classes))),)
    aside = joined((layer.norm, count, *acts))
    return doc.Details(layer.name, inside, aside, f"layer-{place}", open=place == drawn[0])


def _channels(layer: Layer, inspection: Inspection, classes: list[int]) -> Iterator[doc.Block]:
    if layer.activation is not None and classes and len(layer.firing):
        yield charts.firing(layer, inspection, classes)
    for chosen in channels.choose(layer):
        key = "page.channel.best" if chosen.best else "page.channel.worst"
        yield doc.ChannelPlot(
            told(inspection, key, channel=chosen.channel),
            channels.drawing(layer, chosen, inspection),
            channels.numbers(layer, inspection, chosen.channel, classes),
        )


def _domains(inspection: Inspection) -> doc.Table:
    """Put eta squared of the class beside that of the condition."""
    names = [n for n in measures.ORDER if any(findings.stage(la, n) for la in inspection.layers)]
    kinds = {"class": "eta2_mean"} if inspection.compared else {}
    kinds["condition"] = "condition_eta2"
    signs = [charts.STAGE_SIGNS[name] for name in names]
    head = [joined((tr(f"lens.domain.{of}"), sign), " ", " ") for of in kinds for sign in signs]
    rows: list[list[Words]] = [
        [
            layer.name,
            *(
                figure(getattr(findings.stage(layer, name), field, None), 3)
                for field in kinds.values()
                for name in names
            ),
        ]
        for layer in inspection.layers
    ]
    return doc.table(tr("lens.domain.caption"), [tr("page.head.layer"), *head], rows)


def _work(inspection: Inspection) -> doc.Table:
    """Sum what each kind of step changed."""
    rows: list[list[Words]] = [
        [
            tr(f"lens.work.{by}"),
            *(signed(v) for v in (total.eta2, total.lda, total.nearest_mean)),
            *(signed(v, 2) for v in (total.separation, total.condition)),
        ]
        for by, total in findings.work(inspection).items()
    ]
    head: list[Words] = [tr("lens.work.by"), "Δη²", "ΔJ", "ΔNCM", "Δlog D", "Δlog κ"]
    return doc.table(tr("lens.work.caption"), head, rows)
