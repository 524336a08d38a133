"""A benchmark in sentences and tables."""

import math
from statistics import median

from normscope.records import Bench, Race, Setting, Spread
from normscope.report.bilingual import Text, Words, said
from normscope.report.messages import catalogue
from normscope.report.story import number
from normscope.report.tables import Table, table
from normscope.report.verdict import Finding

MINE, PLAIN = "normscope", "torch"
LEAN = "normscope_recompute"
LEAST = 0.95  # of torch's speed; below it a setting is named in the verdict


def of_bench(bench: Bench) -> list[Finding]:
    """The verdict: speed beside torch, the price of groups, memory, accuracy."""
    found = [_models(bench), _speed(bench), _groups(bench), _memory(bench), _accuracy(bench)]
    findings = [finding for finding in found if finding is not None]
    if not bench.complete:
        findings.append(Finding("warn", None, said("bench.verdict.stopped")))
    return findings


def races(bench: Bench, *parts: str) -> list[Race]:
    """The races of some parts."""
    return [race for race in bench.races if race.setting.part in parts]


def _speed(bench: Bench) -> Finding | None:
    found = [(t.speed, r) for r in races(bench, "shapes", "formats", "sweep") if (t := r.of(MINE))]
    if not found:
        return None
    slowest, fastest = (f(found, key=lambda pair: pair[0]) for f in (min, max))
    values = {
        "middle": number(median(s for s, _ in found), digits=3),
        "count": len(found),
        "least": number(slowest[0], digits=3),
        "least_at": setting_name(slowest[1].setting),
        "most": number(fastest[0], digits=3),
        "most_at": setting_name(fastest[1].setting),
    }
    verdict = said("bench.verdict.speed", **values)
    slower = [setting_name(race.setting) for speed, race in found if speed < LEAST]
    if not slower:
        return Finding("good", None, verdict)
    named = said("bench.verdict.slower", slower="; ".join(slower))
    return Finding("warn", None, Text(f"{verdict.en} {named.en}", verdict.zh + named.zh))


def _models(bench: Bench) -> Finding | None:
    """Whole networks beside torch's, in training and in inference."""
    found = races(bench, "models")
    speeds = {
        training: [t.speed for r in found if r.setting.training is training and (t := r.of(MINE))]
        for training in (True, False)
    }
    if not all(speeds.values()):
        return None
    values = {
        f"{name}_{end}": number(f(speeds[training]), digits=3)
        for name, training in (("train", True), ("infer", False))
        for end, f in (("least", min), ("most", max))
    }
    slower = any(speed < LEAST for both in speeds.values() for speed in both)
    return Finding("warn" if slower else "good", None, said("bench.verdict.models", **values))


def _groups(bench: Bench) -> Finding | None:
    sentences = []
    for race in races(bench, "groups"):
        mine, one, loop = (race.of(name) for name in (MINE, "normscope_one", "mask_loop"))
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
    joined = Text(" ".join(s.en for s in sentences), "".join(s.zh for s in sentences))
    return Finding("note", None, joined)


def _memory(bench: Bench) -> Finding | None:
    for race in races(bench, "network"):
        mine, theirs = race.of(LEAN), race.of(PLAIN)
        if mine and theirs and mine.memory and theirs.memory:
            less = 100 * (1 - mine.memory / theirs.memory)
            memory = {
                "mine": number(mine.memory, digits=3),
                "theirs": number(theirs.memory, digits=3),
            }
            if less < 0.5:
                return Finding("note", None, said("bench.verdict.memory.not_less", **memory))
            share = f"{less:.0f}%"
            return Finding("note", None, said("bench.verdict.memory", share=share, **memory))
    return None


def _accuracy(bench: Bench) -> Finding | None:
    worst: dict[str, float] = {}
    for one in bench.accuracies:
        for error in one.errors:
            if math.isfinite(error.var) and one.setting.dtype == "float32":
                worst[error.peer] = max(worst.get(error.peer, 0.0), error.var)
    if MINE not in worst or PLAIN not in worst:
        return None
    values = {"mine": f"{worst[MINE]:.0e}", "theirs": f"{worst[PLAIN]:.0e}"}
    style = "good" if worst[MINE] < 1e-5 else "warn"
    return Finding(style, None, said("bench.verdict.accuracy", **values))  # type: ignore[arg-type]


def setting_name(setting: Setting) -> str:
    """What is measured, as 64,64,56,56 channels_last bfloat16 K=8."""
    parts = [setting.model] * bool(setting.model) + [",".join(map(str, setting.shape))]
    parts += [setting.layout] * (setting.layout != "contiguous")
    parts += [setting.dtype] * (setting.dtype != "float32")
    parts += ["eval()"] * (not setting.training)
    parts += [f"K={setting.groups}"] * (setting.groups > 1)
    return " ".join(parts)


def peer_name(peer: str) -> Text:
    """What a peer is called."""
    key = f"bench.peer.{peer}"
    return said(key) if key in catalogue() else Text(peer, peer)


def timings(bench: Bench) -> Table:
    """Every peer at every setting."""
    rows: list[list[Words]] = []
    for race in bench.races:
        network = race.setting.part in ("models", "network")
        for t in race.timings:
            name: Words = said(f"bench.part.{race.setting.part}")
            shares = (t.share_forward, t.share_backward)
            rows.append(
                [
                    name,
                    setting_name(race.setting),
                    str(race.setting.threads),
                    peer_name(t.peer),
                    milliseconds(t.forward),
                    milliseconds(t.backward),
                    _with_spread(t.total),
                    number(t.speed, digits=3),
                    "-" if network else number(t.gb_per_s, digits=3),
                    *("-" if network else f"{100 * s:.0f}%" for s in shares),
                    "-" if t.memory is None else number(t.memory, digits=3),
                ]
            )
        for peer in race.absent:
            name = said(f"bench.part.{race.setting.part}")
            where, threads = setting_name(race.setting), str(race.setting.threads)
            rows.append([name, where, threads, peer_name(peer), *["-"] * 8])
    names: tuple[str, ...] = (
        "part",
        "setting",
        "threads",
        "peer",
        "forward",
        "backward",
        "total",
        "speed",
    )
    names += ("bandwidth", "share_forward", "share_backward", "memory")
    return table(said("bench.times.caption"), [said(f"bench.head.{n}") for n in names], rows)


def by_part(bench: Bench) -> list[Table]:
    """The same for a narrow screen: a table for each part, or for each race of many peers."""
    found = []
    for part in dict.fromkeys(race.setting.part for race in bench.races):
        here = races(bench, part)
        if all({t.peer for t in race.timings} == {MINE, PLAIN} for race in here):
            found.append(_pairs(here))
        else:
            found += [_race(race) for race in here]
    return found


def _pairs(here: list[Race]) -> Table:
    """normscope beside torch, a row for each setting."""
    rows: list[list[Words]] = []
    for race in here:
        by_peer = {t.peer: t for t in race.timings}
        times = [_with_spread(by_peer[peer].total) for peer in (MINE, PLAIN)]
        rows.append([setting_name(race.setting), *times, number(by_peer[MINE].speed, digits=3)])
    part = said(f"bench.part.{here[0].setting.part}")
    names = ("setting", "mine", "plain", "speed_short")
    return table(said("bench.pairs", part=part), [said(f"bench.head.{n}") for n in names], rows)


def _race(race: Race) -> Table:
    """One setting, a row for each peer."""
    rows: list[list[Words]] = [
        [
            peer_name(t.peer),
            f"{milliseconds(t.forward)} + {milliseconds(t.backward)}",
            _with_spread(t.total),
            number(t.speed, digits=3),
            f"{100 * t.share_forward:.0f} / {100 * t.share_backward:.0f}%",
        ]
        for t in race.timings
    ]
    rows += [[peer_name(peer), *["-"] * 4] for peer in race.absent]
    caption = said(
        "bench.race",
        part=said(f"bench.part.{race.setting.part}"),
        setting=setting_name(race.setting),
        threads=race.setting.threads,
    )
    names = ("peer", "both_ways", "total_short", "speed_short", "share")
    return table(caption, [said(f"bench.head.{n}") for n in names], rows)


def absent(bench: Bench) -> list[Text]:
    """Who was not measured where, and why."""
    where: dict[tuple[str, str], list[str]] = {}
    for race in bench.races:
        for peer, reason in race.absent.items():
            where.setdefault((peer, reason), []).append(setting_name(race.setting))
    return [
        said("bench.absent", peer=peer_name(peer), where="; ".join(dict.fromkeys(s)), reason=reason)
        for (peer, reason), s in where.items()
    ]


def milliseconds(spread: Spread) -> str:
    """The median."""
    return number(spread.median, digits=3)


def _with_spread(spread: Spread) -> str:
    return (
        f"{milliseconds(spread)} ({number(spread.low, digits=3)}–{number(spread.high, digits=3)})"
    )


def errors(bench: Bench) -> Table:
    """Mean and variance of every peer against float64."""
    rows: list[list[Words]] = [
        [
            one.setting.dtype + f" {one.setting.layout}" * (one.setting.layout != "contiguous"),
            str(one.setting.threads),
            number(one.ratio),
            peer_name(error.peer),
            _error(error.mean),
            _error(error.var),
        ]
        for one in bench.accuracies
        for error in one.errors
    ]
    names = ("setting", "threads", "ratio", "peer", "mean_error", "var_error")
    return table(said("bench.errors.caption"), [said(f"bench.head.{n}") for n in names], rows)


def _error(value: float) -> Words:
    return f"{value:.1e}" if math.isfinite(value) else "-"
