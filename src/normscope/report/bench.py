"""A benchmark as a document: speed, memory and accuracy beside other ways."""

import math
from statistics import median

from normscope.records import Bench
from normscope.report import speed
from normscope.report.bilingual import said, several
from normscope.report.charts import speed as charts
from normscope.report.document import (
    Document,
    Figures,
    Finding,
    FindingStyle,
    Only,
    Paragraph,
    Section,
)
from normscope.report.format import number

LEAST = 0.95  # of torch's speed; below it a setting is named in the verdict


def document(bench: Bench) -> Document:
    """Show the verdict, every time, every error, and how it was measured."""
    facts = ", ".join(f"{name} {value}" for name, value in bench.environment.items())
    how = said("bench.how", checked=bench.checked, repeats=bench.repeats)
    numbers = [*speed.by_part(bench)]
    if bench.accuracies:
        numbers.append(speed.errors(bench))
    missing = tuple(Paragraph(text, "quiet") for text in speed.absent(bench))
    sections = (
        Section(said("page.nav.verdict"), (*verdict(bench), Paragraph(how, "quiet")), "verdict"),
        Section(
            said("page.nav.evidence"),
            (
                Only("page", (Figures(tuple(charts.drawn(bench))),)),
                Only("terminal", (*numbers, *missing)),
            ),
            "evidence",
        ),
        Section(
            said("bench.nav.figures"), (Only("page", (*missing, speed.timings(bench))),), "figures"
        ),
    )
    return Document(said("bench.title"), sections, footer=(facts,))


def verdict(bench: Bench) -> list[Finding]:
    """Tell the speed beside torch, the price of groups, memory, accuracy."""
    found = (_models(bench), _speed(bench), _groups(bench), _memory(bench), _accuracy(bench))
    stopped = None if bench.complete else Finding("warn", None, (said("bench.verdict.stopped"),))
    return [finding for finding in (*found, stopped) if finding is not None]


def _speed(bench: Bench) -> Finding | None:
    found = [
        (t.speed, r)
        for r in speed.races(bench, "shapes", "formats", "sweep")
        if (t := r.of(speed.MINE))
    ]
    if not found:
        return None
    slowest, fastest = (f(found, key=lambda pair: pair[0]) for f in (min, max))
    values = {
        "middle": number(median(s for s, _ in found), digits=3),
        "count": len(found),
        "least": number(slowest[0], digits=3),
        "least_at": speed.setting_name(slowest[1].setting),
        "most": number(fastest[0], digits=3),
        "most_at": speed.setting_name(fastest[1].setting),
    }
    told = said("bench.verdict.speed", **values)
    slower = [speed.setting_name(race.setting) for ratio, race in found if ratio < LEAST]
    if not slower:
        return Finding("good", None, (told,))
    named = said("bench.verdict.slower", slower="; ".join(slower))
    return Finding("warn", None, (told, named))


def _models(bench: Bench) -> Finding | None:
    """Compare whole networks with torch's, in training and in inference."""
    found = speed.races(bench, "models")
    ratios = {
        training: [
            t.speed
            for race in found
            if race.setting.training is training and (t := race.of(speed.MINE))
        ]
        for training in (True, False)
    }
    if not all(ratios.values()):
        return None
    values = {
        f"{name}_{end}": number(f(ratios[training]), digits=3)
        for name, training in (("train", True), ("infer", False))
        for end, f in (("least", min), ("most", max))
    }
    slower = any(ratio < LEAST for both in ratios.values() for ratio in both)
    return Finding("warn" if slower else "good", None, (said("bench.verdict.models", **values),))


def _groups(bench: Bench) -> Finding | None:
    sentences = []
    for race in speed.races(bench, "groups"):
        mine, one, loop = (race.of(name) for name in (speed.MINE, "normscope_one", "mask_loop"))
        if mine and one and loop:
            times = mine.total.median
            sentences.append(
                said(
                    "bench.verdict.groups",
                    groups=race.setting.groups,
                    price=number(times / one.total.median, digits=3),
                    loop=number(loop.total.median / times, digits=3),
                )
            )
    if not sentences:
        return None
    return Finding("note", None, (several(sentences),))


def _memory(bench: Bench) -> Finding | None:
    for race in speed.races(bench, "network"):
        mine, theirs = race.of(speed.LEAN), race.of(speed.PLAIN)
        if mine and theirs and mine.memory and theirs.memory:
            less = 100 * (1 - mine.memory / theirs.memory)
            memory = {
                "mine": number(mine.memory, digits=3),
                "theirs": number(theirs.memory, digits=3),
            }
            if less < 0.5:
                return Finding("note", None, (said("bench.verdict.memory.not_less", **memory),))
            share = f"{less:.0f}%"
            return Finding("note", None, (said("bench.verdict.memory", share=share, **memory),))
    return None


def _accuracy(bench: Bench) -> Finding | None:
    worst: dict[str, float] = {}
    for one in bench.accuracies:
        for error in one.errors:
            if math.isfinite(error.var) and one.setting.dtype == "float32":
                worst[error.peer] = max(worst.get(error.peer, 0.0), error.var)
    if speed.MINE not in worst or speed.PLAIN not in worst:
        return None
    values = {"mine": f"{worst[speed.MINE]:.0e}", "theirs": f"{worst[speed.PLAIN]:.0e}"}
    style: FindingStyle = "good" if worst[speed.MINE] < 1e-5 else "warn"
    return Finding(style, None, (said("bench.verdict.accuracy", **values),))
