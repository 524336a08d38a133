"""An inspection as a document: what every layer did to every class."""

import math
from collections.abc import Iterator
from dataclasses import replace

from normscope.records import Inspection, Layer
from normscope.report import channels, findings, measures
from normscope.report.bilingual import Text, Words, said, several
from normscope.report.charts import layers as charts
from normscope.report.document import (
    Block,
    ChannelPlot,
    Details,
    Document,
    Figures,
    Finding,
    Listing,
    Only,
    Paragraph,
    Section,
    Table,
    table,
)
from normscope.report.format import figure, signed

LAYERS = 24  # with pictures of their own; all others have their numbers


def document(inspection: Inspection) -> Document:
    """Show the answer, the measures layer by layer, and single channels with their gate."""
    sections = (
        Section(said("page.nav.evidence"), evidence(inspection), "evidence"),
        Section(
            said("page.layers.title"),
            (Only("page", pictures(inspection)),),
            "layers",
            said("page.nav.layers"),
        ),
    )
    short = answer(inspection)
    return replace(short, sections=(*short.sections, *sections))


def answer(inspection: Inspection) -> Document:
    """Show the answer alone."""
    facts = (
        (said("page.fact.classes"), str(len(inspection.classes))),
        (said("page.fact.images"), f"{sum(inspection.counts):,}"),
        (said("page.fact.layers"), str(len(inspection.layers))),
    )
    title = said("page.inspection.title", model=inspection.model, data=inspection.data)
    found = Section(said("page.nav.verdict"), verdict(inspection), "verdict")
    return Document(title, (found,), facts)


def brief(inspection: Inspection) -> Document:
    """Show the answer, all layers in one picture and one table, and the layer that gains most."""
    short = answer(inspection)
    if not inspection.layers:
        return short
    (place,) = measures.pictured(inspection, 1)
    layer = inspection.layers[place]
    plots = [part for part in _channels(layer, inspection, []) if isinstance(part, ChannelPlot)]
    title = said("page.layers.title")
    blocks: tuple[Block, ...] = (
        charts.separability(inspection),
        Details(said("page.rank.title"), (measures.ranking(inspection),)),
    )
    if plots:
        name = Text(f"{layer.name}: {layer.norm}", f"{layer.name}：{layer.norm}")
        best_and_worst = (Figures((plots[0], plots[-1])),)
        blocks = (*blocks, Section(name, best_and_worst))
    return replace(short, sections=(*short.sections, Section(title, blocks, "layers")))


def verdict(inspection: Inspection) -> tuple[Finding, ...]:
    """Tell what normalisation and non-linearity did to the classes."""
    first, *others = findings.verdict(inspection)
    kept = all(
        math.isnan(layer.invariance) or layer.invariance <= findings.tolerance(layer)
        for layer in inspection.layers
    ) and not math.isnan(inspection.invariance)
    kept = kept and not findings.too_few(list(inspection.layers))
    return (
        Finding("good" if kept else "warn", None, (first,)),
        *(Finding("note", None, (text,)) for text in others),
    )


def evidence(inspection: Inspection) -> tuple[Block, ...]:
    """Show every measure of every layer, the self-test, and what to know about some layers."""
    if not inspection.layers:
        return (Paragraph(said("page.no_layers"), "notice"), *remarks(inspection))
    blocks: list[Block] = [Paragraph(legend(inspection), "quiet")]
    if len(inspection.layers) > 1:
        how = Only("page", (Paragraph(said("page.rank.how"), "quiet"),))
        title = said("page.rank.title")
        blocks.append(Section(title, (how, measures.ranking(inspection))))
    stages = measures.by_stage(inspection.layers)
    few = len(inspection.layers) <= LAYERS
    many = Paragraph(said("page.index.many"), "quiet")
    blocks.append(
        Section(
            said("page.index.title"),
            (
                Paragraph(said("page.index.locked"), "quiet", icon="lock"),
                Paragraph(said("page.index.geometry"), "quiet", icon="scale"),
                *(
                    Paragraph(said(f"page.measure.{name}.how"), "quiet", icon="scale")
                    for name in inspection.layers[0].stages[0].more
                ),
                *((stages,) if few else (Only("terminal", (stages,)), Only("page", (many,)))),
            ),
        )
    )
    blocks.append(Section(said("lens.gate.title"), (measures.gates(inspection),)))
    if any(math.isfinite(layer.stages[0].condition_eta2) for layer in inspection.layers):
        blocks.append(Section(said("lens.domain.title"), (_domains(inspection),)))
    if inspection.work:
        blocks.append(Section(said("lens.work.title"), (_work(inspection),)))
    return (*blocks, *remarks(inspection))


def legend(inspection: Inspection) -> Text:
    """Name the stages."""
    lines = [said("lens.legend")]
    if any(layer.pre_activation for layer in inspection.layers):
        lines.append(said("lens.legend.pre"))
    if any(layer.maps == "per_sample" for layer in inspection.layers):
        lines.append(said("lens.legend.per_sample"))
    return several(lines)


def remarks(inspection: Inspection) -> tuple[Block, ...]:
    """Tell how exact the measures are, and what to know about some layers."""
    told = (findings.composition(inspection), findings.collapsed(inspection))
    items = (*filter(None, told), *findings.remarks(inspection))
    tested = (Paragraph(findings.self_test(inspection)),) if inspection.layers else ()
    return (*tested, *((Listing(items),) if items else ()))


def pictures(inspection: Inspection) -> tuple[Block, ...]:
    """Draw what can be told apart through the layers, then single channels with their gates."""
    if not inspection.layers:
        return ()
    classes = channels.shown_classes(inspection)
    left = sum(n > 0 for n in inspection.counts) - len(classes)
    rule = [said("page.channels.rule")]
    if left > 0:
        rule.append(said("page.classes_left_out", count=left))
    drawn = measures.pictured(inspection, LAYERS)
    blocks: list[Block] = [
        Figures((charts.separability(inspection),)),
        Section(
            said("page.channels.title"),
            (
                Paragraph(said("page.channels.how")),
                Paragraph(several(rule), "quiet"),
                *(
                    _layer(inspection, place, drawn, classes)
                    for place in range(len(inspection.layers))
                ),
            ),
        ),
    ]
    if len(inspection.layers) > LAYERS:
        count = len(inspection.layers) - LAYERS
        blocks.append(Paragraph(said("page.layers_left_out", count=count), "notice"))
    return tuple(blocks)


def _layer(inspection: Inspection, place: int, drawn: list[int], classes: list[int]) -> Details:
    layer = inspection.layers[place]
    count = said("page.layer.channels", channels=layer.channels)
    about = [Text(layer.norm, layer.norm), count]
    if layer.activation or layer.input_activation:
        about.append(findings.follows(layer))
    aside = Text(", ".join(t.en for t in about), "，".join(t.zh for t in about))
    inside: tuple[Block, ...] = (measures.by_stage([layer]),)
    if place in drawn:
        inside = (Figures(tuple(_channels(layer, inspection, classes))),)
    return Details(layer.name, inside, aside, f"layer-{place}", open=place == drawn[0])


def _channels(layer: Layer, inspection: Inspection, classes: list[int]) -> Iterator[Block]:
    if layer.activation is not None and classes and len(layer.firing):
        yield charts.firing(layer, inspection, classes)
    for chosen in channels.choose(layer):
        key = "page.channel.best" if chosen.best else "page.channel.worst"
        yield ChannelPlot(
            said(key, channel=chosen.channel),
            channels.drawing(layer, chosen, inspection),
            channels.numbers(layer, inspection, chosen.channel, classes),
        )


def _domains(inspection: Inspection) -> Table:
    """Put eta squared of the class beside that of the condition."""
    names = [n for n in measures.ORDER if any(findings.stage(la, n) for la in inspection.layers)]
    rows: list[list[Words]] = []
    for layer in inspection.layers:
        stages = [findings.stage(layer, name) for name in names]
        values = [None if s is None else s.eta2_mean for s in stages]
        values += [None if s is None else s.condition_eta2 for s in stages]
        rows.append([layer.name, *(figure(v, 3) for v in values)])
    head: list[Words] = [said("page.head.layer")]
    for of in ("class", "condition"):
        what = said(f"lens.domain.{of}")
        signs = [charts.STAGE_SIGNS[name] for name in names]
        head += [Text(f"{what.en} {sign}", f"{what.zh} {sign}") for sign in signs]
    return table(said("lens.domain.caption"), head, rows)


def _work(inspection: Inspection) -> Table:
    """Sum what each kind of step changed."""
    rows: list[list[Words]] = [
        [
            said(f"lens.work.{by}"),
            *(signed(v) for v in (total.eta2, total.lda, total.nearest_mean)),
            *(signed(v, 2) for v in (total.separation, total.condition)),
        ]
        for by, total in findings.work(inspection).items()
    ]
    head: list[Words] = [said("lens.work.by"), "Δη²", "ΔJ", "ΔNCM", "Δlog D", "Δlog κ"]
    return table(said("lens.work.caption"), head, rows)
