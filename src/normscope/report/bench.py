"""A benchmark as a document: speed, memory and accuracy beside other ways."""

import math
from collections.abc import Iterator
from statistics import median

from normscope.records import Bench, Race, Setting, Spread
from normscope.report import document as doc
from normscope.report.bilingual import Text, Words, known, sentences, tr
from normscope.report.charts import spec
from normscope.report.format import number, three

MINE, PLAIN = "normscope", "torch"
LEAN = "normscope_recompute"
LEAST = 0.95  # of torch's speed; below it a setting is named in the verdict
PICTURED = ("models", "shapes", "formats", "dtypes", "groups")


def document(bench: Bench) -> doc.Document:
    """Show the verdict, every time, every error, and how it was measured."""
    facts = ", ".join(f"{name} {value}" for name, value in bench.environment.items())
    how = tr("bench.how", checked=bench.checked, repeats=bench.repeats)
    numbers = [*_by_part(bench), *([_errors(bench)] if bench.accuracies else [])]
    missing = tuple(doc.Paragraph(text, "quiet") for text in _absent(bench))
    figures = doc.Only("page", (doc.Figures(tuple(_pictures(bench))),))
    sections: dict[str, tuple[doc.Block, ...]] = {
        "verdict": (*verdict(bench), doc.Paragraph(how, "quiet")),
        "evidence": (figures, doc.Only("terminal", (*numbers, *missing))),
        "figures": (doc.Only("page", (*missing, _timings(bench))),),
    }
    return doc.assembled("bench", tr("bench.title"), sections, footer=(facts,))


def races(bench: Bench, *parts: str) -> list[Race]:
    """Return the races of some parts."""
    return [race for race in bench.races if race.setting.part in parts]


def setting_name(setting: Setting) -> str:
    """Name what is measured, as 64,64,56,56 channels_last bfloat16 K=8."""
    parts = [setting.model] * bool(setting.model) + [",".join(map(str, setting.shape))]
    parts += [setting.layout] * (setting.layout != "contiguous")
    parts += [setting.dtype] * (setting.dtype != "float32")
    parts += ["eval()"] * (not setting.training)
    parts += [f"K={setting.groups}"] * (setting.groups > 1)
    return " ".join(parts)


def peer_name(peer: str) -> Text:
    """Name a peer."""
    key = known(f"bench.peer.{peer}", "")
    return tr(key) if key else Text(peer, peer)


# --- the verdict ------------------------------------------------------------------------------


def verdict(bench: Bench) -> list[doc.Finding]:
    """Tell the speed beside torch, the price of groups, memory, accuracy."""
    found = (_models(bench), _speed(bench), _groups(bench), _memory(bench), _accuracy(bench))
    stopped = None if bench.complete else doc.Finding("warn", None, (tr("bench.verdict.stopped"),))
    return [finding for finding in (*found, stopped) if finding is not None]


def _speeds(found: list[Race]) -> list[tuple[float, str]]:
    """Return how many times as fast as torch, and where."""
    return [(mine.speed, setting_name(r.setting)) for r in found if (mine := r.of(MINE))]


def _speed(bench: Bench) -> doc.Finding | None:
    found = _speeds(races(bench, "shapes", "formats", "sweep"))
    if not found:
        return None
    slowest, fastest = (f(found, key=lambda pair: pair[0]) for f in (min, max))
    texts = tr(
        "bench.verdict.speed",
        middle=three(median(ratio for ratio, _ in found)),
        count=len(found),
        least=three(slowest[0]),
        least_at=slowest[1],
        most=three(fastest[0]),
        most_at=fastest[1],
    )
    slower = "; ".join(name for ratio, name in found if ratio < LEAST)
    if not slower:
        return doc.Finding("good", None, (texts,))
    return doc.Finding("warn", None, (texts, tr("bench.verdict.slower", slower=slower)))


def _models(bench: Bench) -> doc.Finding | None:
    """Compare whole networks with torch's, in training and in inference."""
    found = races(bench, "models")
    modes = {"train": True, "infer": False}
    ratios = {
        name: [ratio for ratio, _ in _speeds([r for r in found if r.setting.training is training])]
        for name, training in modes.items()
    }
    if not all(ratios.values()):
        return None
    values = {
        f"{name}_{end}": three(f(known))
        for name, known in ratios.items()
        for end, f in (("least", min), ("most", max))
    }
    slower = any(ratio < LEAST for known in ratios.values() for ratio in known)
    return doc.Finding("warn" if slower else "good", None, (tr("bench.verdict.models", **values),))


def _groups(bench: Bench) -> doc.Finding | None:
    texts = []
    for race in races(bench, "groups"):
        mine, one, loop = (race.of(name) for name in (MINE, "normscope_one", "mask_loop"))
        if mine and one and loop:
            price = three(mine.total.median / one.total.median)
            ratio = three(loop.total.median / mine.total.median)
            groups = race.setting.groups
            texts.append(tr("bench.verdict.groups", groups=groups, price=price, loop=ratio))
    return doc.Finding("note", None, (sentences(*texts),)) if texts else None


def _memory(bench: Bench) -> doc.Finding | None:
    for race in races(bench, "network"):
        mine, theirs = race.of(LEAN), race.of(PLAIN)
        if mine and theirs and mine.memory and theirs.memory:
            less = 100 * (1 - mine.memory / theirs.memory)
            text = tr(
                "bench.verdict.memory.not_less" if less < 0.5 else "bench.verdict.memory",
                share=f"{less:.0f}%",
                mine=three(mine.memory),
                theirs=three(theirs.memory),
            )
            return doc.Finding("note", None, (text,))
    return None


def _accuracy(bench: Bench) -> doc.Finding | None:
    worst: dict[str, float] = {}
    for one in bench.accuracies:
        for error in one.errors:
            if math.isfinite(error.var) and one.setting.dtype == "float32":
                worst[error.peer] = max(worst.get(error.peer, 0.0), error.var)
    if MINE not in worst or PLAIN not in worst:
        return None
    style: doc.FindingStyle = "good" if worst[MINE] < 1e-5 else "warn"
    mine, theirs = (number(worst[peer], digits=1) for peer in (MINE, PLAIN))
    return doc.Finding(style, None, (tr("bench.verdict.accuracy", mine=mine, theirs=theirs),))


def _absent(bench: Bench) -> Iterator[Text]:
    """Say who was not measured where, and why."""
    where: dict[tuple[str, str], dict[str, None]] = {}
    for race in bench.races:
        for peer, reason in race.absent.items():
            where.setdefault((peer, reason), {})[setting_name(race.setting)] = None
    for (peer, reason), names in where.items():
        values = {"where": "; ".join(names), "reason": reason}
        yield tr("bench.absent", peer=peer_name(peer), **values)


# --- tables -----------------------------------------------------------------------------------


def _table(caption: Text, names: str, rows: list[list[Words]], keys: int = 1) -> doc.Table:
    return doc.table(caption, [tr(f"bench.head.{name}") for name in names.split()], rows, keys)


def _timings(bench: Bench) -> doc.Table:
    """List every peer at every setting."""
    rows: list[list[Words]] = []
    for race in bench.races:
        network = race.setting.part in ("models", "network")  # of which bandwidth is not known
        where: list[Words] = [tr(f"bench.part.{race.setting.part}"), setting_name(race.setting)]
        for t in race.timings:
            shares = [f"{100 * s:.0f}%" for s in (t.share_forward, t.share_backward)]
            bandwidth = ["-"] * 3 if network else [three(t.gb_per_s), *shares]
            times = [three(t.forward.median), three(t.backward.median), _with_spread(t.total)]
            memory = "-" if t.memory is None else three(t.memory)
            measured = [*times, three(t.speed), *bandwidth, memory]
            rows.append([*where, str(race.setting.threads), peer_name(t.peer), *measured])
        absent = map(peer_name, race.absent)
        rows += [[*where, str(race.setting.threads), peer, *["-"] * 8] for peer in absent]
    names = "part setting threads peer forward backward total speed bandwidth"
    names += " share_forward share_backward memory"
    return _table(tr("bench.times.caption"), names, rows, 4)


def _by_part(bench: Bench) -> Iterator[doc.Table]:
    """Make a table for each part, or for each race of many peers."""
    for part in dict.fromkeys(race.setting.part for race in bench.races):
        found = races(bench, part)
        if all({t.peer for t in race.timings} == {MINE, PLAIN} for race in found):
            yield _pairs(found, tr("bench.pairs", part=tr(f"bench.part.{part}")))
        else:
            yield from map(_race, found)


def _pairs(found: list[Race], caption: Text) -> doc.Table:
    """Put normscope beside torch, a row for each setting."""
    rows: list[list[Words]] = []
    for race in found:
        by_peer = {t.peer: t for t in race.timings}
        times = [_with_spread(by_peer[peer].total) for peer in (MINE, PLAIN)]
        rows.append([setting_name(race.setting), *times, three(by_peer[MINE].speed)])
    return _table(caption, "setting mine plain speed_short", rows)


def _race(race: Race) -> doc.Table:
    """List one setting, a row for each peer."""
    rows: list[list[Words]] = [
        [
            peer_name(t.peer),
            f"{three(t.forward.median)} + {three(t.backward.median)}",
            _with_spread(t.total),
            three(t.speed),
            f"{100 * t.share_forward:.0f} / {100 * t.share_backward:.0f}%",
        ]
        for t in race.timings
    ]
    rows += [[peer_name(peer), *["-"] * 4] for peer in race.absent]
    setting, part = race.setting, tr(f"bench.part.{race.setting.part}")
    values = {"part": part, "setting": setting_name(setting), "threads": setting.threads}
    return _table(tr("bench.race", **values), "peer both_ways total_short speed_short share", rows)


def _errors(bench: Bench) -> doc.Table:
    """List mean and variance of every peer against float64."""
    rows: list[list[Words]] = [
        [
            one.setting.dtype + f" {one.setting.layout}" * (one.setting.layout != "contiguous"),
            str(one.setting.threads),
            number(one.ratio),
            peer_name(error.peer),
            *(f"{v:.1e}" if math.isfinite(v) else "-" for v in (error.mean, error.var)),
        ]
        for one in bench.accuracies
        for error in one.errors
    ]
    names = "setting threads ratio peer mean_error var_error"
    return _table(tr("bench.errors.caption"), names, rows, 4)


def _totals(found: list[Race]) -> doc.Table:
    """List the total times of every setting, a column for each peer."""
    names = {t.peer: peer_name(t.peer) for race in found for t in race.timings}
    rows: list[list[Words]] = []
    for race in found:
        times = {t.peer: three(t.total.median) for t in race.timings}
        rows.append([setting_name(race.setting), *(times.get(peer, "-") for peer in names)])
    head = [tr("bench.head.setting"), *names.values()]
    return doc.table(tr("bench.total.caption"), head, rows)


def _with_spread(spread: Spread) -> str:
    return f"{three(spread.median)} ({three(spread.low)}–{three(spread.high)})"


# --- pictures ---------------------------------------------------------------------------------


def _pictures(bench: Bench) -> Iterator[doc.Chart]:
    """Draw speed beside torch, by part and by size, and errors of the statistics."""
    for part in PICTURED:
        if found := races(bench, part):
            yield _speed_picture(found, part)
    if found := races(bench, "sweep"):
        rows = [
            {"values": r.setting.values, "speed": mine.speed, "setting": setting_name(r.setting)}
            for r in found
            if (mine := r.of(MINE))
        ]
        title, note = tr("bench.part.sweep"), tr("bench.sweep.note")
        yield doc.Chart(title, note, spec("speed_by_size", rows), _totals(found), across=True)
    if bench.accuracies:
        yield _error_picture(bench)


def _speed_picture(found: list[Race], part: str) -> doc.Chart:
    """Draw one dot per peer and setting: how many times as fast as torch's plain layer."""
    names = {t.peer: peer_name(t.peer) for race in found for t in race.timings}
    where = [setting_name(race.setting) for race in found]
    rows = [
        {"series": names[t.peer], "setting": name, "speed": t.speed, "ms": t.total.median}
        for race, name in zip(found, where, strict=True)
        for t in race.timings
    ]
    height = 40 * len(set(where)) + 20
    picture = spec("speeds", rows, list(names.values()), height=height, settings=where)
    title, note = tr(f"bench.part.{part}"), tr("bench.speeds.note")
    return doc.Chart(title, note, picture, _totals(found), across=True)


def _error_picture(bench: Bench) -> doc.Chart:
    """Draw the error of the variance by mean / standard deviation, in float32."""
    names = {e.peer: peer_name(e.peer) for one in bench.accuracies for e in one.errors}
    rows = [
        {
            "series": names[error.peer],
            "setting": f"{one.setting.dtype} {one.setting.layout}",
            "ratio": one.ratio,
            "error": error.var,
        }
        for one in bench.accuracies
        for error in one.errors
        if math.isfinite(error.var) and error.var > 0
    ]
    picture = spec("errors", rows, list(names.values()))
    title, note = tr("bench.part.accuracy"), tr("bench.errors.note")
    return doc.Chart(title, note, picture, _errors(bench), across=True)
