"""What a benchmark measured, named and in tables."""

import math

from normscope.records import Bench, Race, Setting, Spread
from normscope.report.bilingual import Text, Words, said
from normscope.report.document import Table, table
from normscope.report.format import number
from normscope.report.messages import catalogue

MINE, PLAIN = "normscope", "torch"
LEAN = "normscope_recompute"


def races(bench: Bench, *parts: str) -> list[Race]:
    """The races of some parts."""
    return [race for race in bench.races if race.setting.part in parts]


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
    """List every peer at every setting."""
    rows: list[list[Words]] = []
    for race in bench.races:
        network = race.setting.part in ("models", "network")
        setting = (said(f"bench.part.{race.setting.part}"), setting_name(race.setting))
        where: list[Words] = [*setting, str(race.setting.threads)]
        for t in race.timings:
            shares = [f"{100 * s:.0f}%" for s in (t.share_forward, t.share_backward)]
            bandwidth = [number(t.gb_per_s, digits=3), *shares]
            memory = "-" if t.memory is None else number(t.memory, digits=3)
            times = [milliseconds(t.forward), milliseconds(t.backward), _with_spread(t.total)]
            measured = [*times, number(t.speed, digits=3), *(["-"] * 3 if network else bandwidth)]
            rows.append([*where, peer_name(t.peer), *measured, memory])
        rows += [[*where, peer_name(peer), *["-"] * 8] for peer in race.absent]
    names = ["part", "setting", "threads", "peer", "forward", "backward", "total", "speed"]
    names += ["bandwidth", "share_forward", "share_backward", "memory"]
    return table(said("bench.times.caption"), [said(f"bench.head.{n}") for n in names], rows, 4)


def by_part(bench: Bench) -> list[Table]:
    """Make a table for each part, or for each race of many peers."""
    found = []
    for part in dict.fromkeys(race.setting.part for race in bench.races):
        here = races(bench, part)
        if all({t.peer for t in race.timings} == {MINE, PLAIN} for race in here):
            found.append(_pairs(here))
        else:
            found += [_race(race) for race in here]
    return found


def _pairs(here: list[Race]) -> Table:
    """Put normscope beside torch, a row for each setting."""
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
    return table(said("bench.errors.caption"), [said(f"bench.head.{n}") for n in names], rows, 4)


def _error(value: float) -> Words:
    return f"{value:.1e}" if math.isfinite(value) else "-"
