"""Charts of a benchmark: speed beside torch, the price of groups, errors of the statistics."""

import math

from normscope.records import Bench, Race
from normscope.report import speed
from normscope.report.bilingual import Text, said
from normscope.report.charts.base import SHAPES, Chart, Spec, by_series, spec, x_axis, y_axis
from normscope.report.document import Table, table

LOG: Spec = {"scale": {"type": "log"}}


def drawn(bench: Bench) -> list[Chart]:
    """The charts for which there are numbers."""
    found = []
    for part in ("models", "shapes", "formats", "dtypes", "groups"):
        races = speed.races(bench, part)
        if races:
            found.append(_speeds(races, part))
    if speed.races(bench, "sweep"):
        found.append(_sweep(speed.races(bench, "sweep")))
    if bench.accuracies:
        found.append(_errors(bench))
    return found


def _names(peers: list[str]) -> dict[str, Text]:
    return {peer: speed.peer_name(peer) for peer in dict.fromkeys(peers)}


def _speeds(races: list[Race], part: str) -> Chart:
    """One dot per peer and setting: how many times as fast as torch's plain layer."""
    names = _names([t.peer for race in races for t in race.timings])
    rows = [
        {
            "series": names[t.peer],
            "setting": speed.setting_name(race.setting),
            "speed": t.speed,
            "ms": t.total.median,
        }
        for race in races
        for t in race.timings
    ]
    where = [speed.setting_name(race.setting) for race in races]
    y: Spec = {"field": "setting", "type": "nominal", "sort": where, "title": None}
    y["axis"] = {"grid": True, "labelLimit": 260}
    picture = spec(
        rows,
        40 * len(set(where)) + 20,
        mark={"type": "point", "size": 90},
        encoding={
            "x": x_axis("speed", said("bench.axis.speed"), **LOG),
            "y": y,
            **_look(list(names.values())),
            "tooltip": [
                {"field": "series", "title": said("bench.head.peer")},
                {"field": "setting", "title": said("bench.head.setting")},
                {"field": "speed", "title": said("bench.head.speed"), "format": ".3~g"},
                {"field": "ms", "title": said("bench.head.total"), "format": ".3~g"},
            ],
        },
    )
    note = said("bench.speeds.note")
    return Chart(said(f"bench.part.{part}"), note, picture, _numbers(races), across=True)


def _sweep(races: list[Race]) -> Chart:
    """How many times as fast as torch, by the number of values."""
    rows = [
        {
            "values": race.setting.values,
            "speed": mine.speed,
            "setting": speed.setting_name(race.setting),
        }
        for race in races
        if (mine := race.of(speed.MINE))
    ]
    picture = spec(
        rows,
        240,
        layer=[
            {
                "mark": {"type": "point", "size": 60},
                "encoding": {
                    "x": x_axis("values", said("bench.axis.values"), **LOG),
                    "y": y_axis("speed", said("bench.axis.speed"), **LOG),
                    "tooltip": [
                        {"field": "setting", "title": said("bench.head.setting")},
                        {"field": "speed", "title": said("bench.head.speed"), "format": ".3~g"},
                    ],
                },
            },
            {"mark": {"type": "rule"}, "encoding": {"y": {"datum": 1}}},
        ],
    )
    title, note = said("bench.part.sweep"), said("bench.sweep.note")
    return Chart(title, note, picture, _numbers(races), across=True)


def _errors(bench: Bench) -> Chart:
    """Error of the variance by mean / standard deviation, in float32."""
    names = _names([e.peer for one in bench.accuracies for e in one.errors])
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
    picture = spec(
        rows,
        260,
        mark={"type": "point", "size": 70},
        encoding={
            "x": {"field": "ratio", "type": "ordinal", "title": said("bench.head.ratio")},
            "xOffset": {"field": "series", "type": "nominal"},
            "y": y_axis("error", said("bench.head.var_error"), **LOG, axis={"format": ".0e"}),
            **_look(list(names.values())),
            "tooltip": [
                {"field": "series", "title": said("bench.head.peer")},
                {"field": "setting", "title": said("bench.head.setting")},
                {"field": "error", "title": said("bench.head.var_error"), "format": ".1e"},
            ],
        },
    )
    title, note = said("bench.part.accuracy"), said("bench.errors.note")
    return Chart(title, note, picture, speed.errors(bench), across=True)


def _look(names: list[Text]) -> Spec:
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(names))]
    colour = by_series(names)["color"] | {"legend": {}}
    shape = {
        "field": "series",
        "type": "nominal",
        "scale": {"domain": names, "range": shapes},
    }
    return {"color": colour, "shape": shape}


def _numbers(races: list[Race]) -> Table:
    names = _names([t.peer for race in races for t in race.timings])
    rows: list[list[str | Text]] = []
    for race in races:
        found = {t.peer: speed.milliseconds(t.total) for t in race.timings}
        setting = speed.setting_name(race.setting)
        rows.append([setting, *(found.get(p, "-") for p in names)])
    head: list[str | Text] = [said("bench.head.setting"), *names.values()]
    return table(said("bench.total.caption"), head, rows)
