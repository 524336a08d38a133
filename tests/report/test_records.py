"""Records show themselves: as a repr, in a notebook, as a page, as a table, as charts."""

import base64
import importlib.util
import json
import os
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

import normscope
import normscope.report
from normscope.errors import FileError, InputError, MissingExtraError
from normscope.records import KINDS, Inspection, Record
from normscope.report import document_of, html
from normscope.report.charts import STYLES
from normscope.report.charts.lanes import lanes
from normscope.report.charts.still import drawing
from normscope.report.document import ChannelPlot, Chart, parts
from normscope.report.messages import catalogue
from tests.report import pages

HOSTILE = ("</svg><script>alert(1)</script>", '" onload=x', "<b>&amp;")
BYTES = 300_000


@cache
def records() -> dict[str, Record]:
    """One of every kind."""
    found, repaired = pages.faulty()
    return {
        record.kind: record
        for record in (
            pages.converted(), found, repaired, pages.digits_inspection(), pages.compared(),
            pages.made_up_bench(), pages.worked_lesson(), pages.made_up_run(None, domains=("a", "b")),
            *pages.equivalences(), pages.made_up_claims(),
        )
    }  # fmt: skip


@cache
def large() -> Inspection:
    """As many layers, channels and classes as a ResNet-50 over ImageNet has."""
    seen = pages.digits_inspection()
    layer, times = seen.layers[0], 86
    many = {
        name: getattr(layer, name) * times
        for name in (
            "gamma", "beta", "running_mean", "running_var", "gate", "information",
            "gate_information", "best_information",
        )
    }  # fmt: skip
    wide: dict[str, Any] = {
        name: np.tile(getattr(layer, name), (100, times))
        for name in ("class_mean", "class_var", "firing")
    }
    stages = tuple(replace(stage, eta2=stage.eta2 * times) for stage in layer.stages)
    wide |= {"histogram": np.tile(layer.histogram, (100, 1, 1)), "stages": stages}
    layer = replace(layer, channels=layer.channels * times, **many, **wide)
    return replace(
        seen,
        layers=tuple(replace(layer, name=f"layer3.{i}.bn{i % 3}") for i in range(53)),
        classes=tuple(f"class {i} of a thousand" for i in range(1000)),
        counts=(50,) * 1000,
        separation=tuple(float(i % 97) for i in range(1000)),
    )


def pictures(text: str) -> list[str]:
    """The drawings in the images of what a notebook shows."""
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', text)
    return [base64.b64decode(source).decode() for source in found]


def test_every_kind_is_here() -> None:
    assert set(records()) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_repr_is_the_verdict_in_a_few_lines(
    kind: str, lang: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NORMSCOPE_LANG", lang)
    record = records()[kind]
    text = repr(record)
    lines = text.splitlines()
    assert 3 <= len(lines) <= 12
    assert max(map(len, lines)) <= 96
    assert len(text) < 1500
    title = document_of(record).title.read("zh" if lang == "zh" else "en")
    assert "".join(lines).replace(" ", "").startswith(title.replace(" ", ""))


def test_what_the_verdicts_say() -> None:
    assert "in all 2 layers η² and J" in repr(records()["inspection"]).replace("\n", " ")
    assert "NS003" in repr(records()["diagnosis"])
    assert "recalibrate" in repr(records()["repair"])
    assert len(repr(large())) < 1500
    assert len(repr(large().layers[0])) < 3000, "parts are short too"


def test_a_repr_never_fails() -> None:
    strange = replace(pages.digits_inspection(), layers=(None,))
    assert "<inspection record that cannot be shown" in repr(strange)


@pytest.mark.parametrize("kind", KINDS)
def test_a_notebook_shows_it_without_scripts(kind: str) -> None:
    record = records()[kind]
    text = record._repr_html_()
    assert len(text.encode()) < BYTES
    assert "<script" not in text
    assert not re.search(r"\son\w+=", text)
    assert "http" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert all(target in ids for target in re.findall(r'href="#([^"]+)"', text))
    drawn = pictures(text)
    for part in (text, *drawn):
        for name in re.findall(r"var\((--[\w-]+)\)", part):
            assert f"{name}:" in part, f"{name} has no value"
    if kind in ("inspection", "diagnosis", "repair", "run", "bench"):
        assert drawn
    for picture in drawn:
        tree = ET.fromstring(picture)
        assert tree.tag == "{http://www.w3.org/2000/svg}svg"
        known = set(re.findall(r"\.([\w-]+)", tree[0].text or ""))
        used = {name for mark in tree.iter() for name in mark.get("class", "").split()}
        assert used <= known, f"no style for {used - known}"
        inside = "".join(picture.split("</style>")[1:])
        assert "nan" not in inside
        assert "inf" not in inside


@pytest.mark.parametrize("kind", KINDS)
def test_a_notebook_that_is_not_trusted_keeps_the_pictures(kind: str) -> None:
    """JupyterLab then takes out svg and style, whose texts stay behind as words without space."""
    text = records()[kind]._repr_html_()
    icon = r'<svg class="icon"[^>]*>(?:<(?:path|rect)[^>]*/>)*</svg>'
    assert "<svg" not in re.sub(icon, "", text)
    for image in re.findall(r"<img[^>]*>", text):
        assert "width" in image, "its size does not depend on a style sheet"
        assert 'alt=""' in image, "the numbers are in the table beside it"


def test_that_of_a_large_network_is_small() -> None:
    text = large()._repr_html_()
    assert len(text.encode()) < BYTES
    assert text.count("layer3.") >= 53, "one index of all layers"


def test_hostile_names_stay_text() -> None:
    seen = pages.digits_inspection()
    names = (HOSTILE * 4)[:10]
    layers = tuple(replace(layer, name=n) for layer, n in zip(seen.layers, HOSTILE, strict=False))
    evil = replace(seen, model=HOSTILE[0], classes=tuple(map(str, names)), layers=layers)
    text = evil._repr_html_()
    assert "<script" not in text
    assert "<b>&amp;" not in text
    assert text.count("<img") == seen._repr_html_().count("<img") == len(pictures(text)) > 0
    for picture in pictures(text):
        assert "script" not in {mark.tag for mark in ET.fromstring(picture).iter()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_and_the_files(kind: str, tmp_path: Path) -> None:
    record = records()[kind]
    frame = record.to_frame()
    assert len(frame) == len(record.to_rows()) > 0
    assert all(isinstance(v, (str, int, float, type(None))) for v in record.to_rows()[0].values())
    page = record.save_html(tmp_path / "page.html", lang="zh").read_text(encoding="utf-8")
    assert page == html.page(document_of(record), "zh")
    again = normscope.load(record.save(str(tmp_path / "record.json")))
    assert type(again) is type(record)
    assert json.loads(again.to_json()) == json.loads(record.to_json())
    assert repr(again) == repr(record)


def test_rows_of_an_inspection_are_the_measures_of_every_stage() -> None:
    seen = pages.digits_inspection()
    frame = seen.to_frame().set_index(["layer", "stage", "measure"])["value"]
    assert frame.index.is_unique
    for layer in seen.layers:
        for stage in layer.every_stage:
            assert frame[layer.name, stage.name, "eta2_mean"] == stage.eta2_mean
            assert frame[layer.name, stage.name, "lda_fraction"] == stage.lda_fraction
        assert frame[layer.name, "", "firing_spread"] == layer.firing_spread
        bits = np.nanmean(layer.gate_information)
        assert frame[layer.name, "", "gate_information"] == pytest.approx(bits)


def test_rows_of_the_others() -> None:
    found, repaired = pages.faulty()
    assert list(found.to_frame()["code"]) == [f.code for f in found.findings]
    assert list(repaired.to_frame()["accuracy_after"]) == [
        trial.after.accuracy for trial in repaired.trials
    ]
    changes = pages.compared().to_frame().dropna(subset="first")
    assert (changes["second"] - changes["first"] == changes["change"]).all()
    bench = pages.made_up_bench()
    assert bench.to_frame()["total_ms"][0] == bench.races[0].timings[0].total.median
    run = pages.made_up_run(None, domains=("a", "b"))
    assert run.to_frame()["accuracy_b"][1] == run.members[1].accuracy_by_domain["b"]


# --- drawings without scripts ---


def every_chart() -> list[Any]:
    run = pages.made_up_run(pages.digits_inspection(), domains=("clean", "invert"))
    shown = (*records().values(), run)
    return [
        part for record in shown for part in parts(document_of(record)) if isinstance(part, Chart)
    ]


def test_every_chart_has_a_drawing_with_all_its_marks() -> None:
    charts = every_chart()
    assert len(charts) > 15
    for chart in charts:
        for lang in ("en", "zh"):
            tree = ET.fromstring(drawing(chart.spec, lang))
            x0, y0, wide, high = map(float, tree.attrib["viewBox"].split())
            assert (x0, y0) == (0, 0)
            for mark in tree.iter("circle"):
                assert -20 <= float(mark.attrib["cx"]) <= wide + 20, chart.title
                assert -20 <= float(mark.attrib["cy"]) <= high + 20, chart.title
            assert len(list(tree)) > 3, chart.title


def test_statements_are_drawn_as_lines_with_a_band_or_as_points() -> None:
    """A band only where its axis is not logarithmic, points with the line of equal values."""
    charts = [p for p in parts(document_of(pages.made_up_claims())) if isinstance(p, Chart)]
    marks = [[layer["mark"]["type"] for layer in chart.spec["layer"]] for chart in charts]
    assert marks == [["line"], ["area", "line"], ["point", "line"]]
    for chart in charts:
        assert len(list(ET.fromstring(drawing(chart.spec, "en")).iter("circle"))) >= 3
    spreads = [[row[-1].text for row in chart.table.rows] for chart in charts]
    assert spreads == [["0", "0.1", "0.1"], ["0", "0.1", "0.1"], ["-", "-", "-"]]


def test_templates_of_charts_are_whole() -> None:
    """Every template is asked for, and every message in it exists."""
    folder = Path(normscope.report.__file__).parent
    code = "\n".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.py"))
    found = sorted((folder / "assets/charts").glob("*.json"))
    assert len(found) > 15
    for path in found:
        assert f'"{path.stem}"' in code, f"{path.name} is not used"
        text = path.read_text(encoding="utf-8")
        for key in re.findall(r'"\$([^"]+)"', text):
            assert key in catalogue(), f"{path.name}: {key} has no text"
        assert set(re.findall(r'"series": "([^"]+)"', text)) <= set(STYLES)


def test_a_line_stands_where_its_numbers_are() -> None:
    rows = [{"x": x, "y": x * x, "s": "a"} for x in range(5)] + [{"x": 2, "y": None, "s": "a"}]
    axis = {"type": "quantitative"}
    spec = {
        "height": 100,
        "data": {"values": rows},
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {"field": "x", **axis, "scale": {"nice": False}},
            "y": {"field": "y", **axis, "scale": {"domain": [0, 16]}},
            "color": {"field": "s", "type": "nominal"},
        },
    }
    tree = ET.fromstring(drawing(spec, "en"))
    dots = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in tree.iter("circle")]
    assert len(dots) == 5
    xs, ys = zip(*dots, strict=True)
    assert np.allclose(np.diff(xs), (xs[4] - xs[0]) / 4, atol=0.11)
    assert np.allclose((ys[0] - np.array(ys)) / 100, np.arange(5) ** 2 / 16, atol=0.002)
    log = json.loads(json.dumps(spec))
    log["encoding"]["y"]["scale"] = {"type": "log"}
    log["data"]["values"] = [{"x": x, "y": 10.0**x, "s": "a"} for x in range(4)]
    tree = ET.fromstring(drawing(log, "en"))
    heights = [float(c.attrib["cy"]) for c in tree.iter("circle")]
    assert np.allclose(np.diff(heights), (heights[3] - heights[0]) / 3, atol=0.11)
    assert {"1", "10", "100", "1000"} <= {t.text for t in tree.iter("text")}


def test_lanes_part_at_the_gate_and_show_the_counts() -> None:
    channel = {
        "gamma": 2.0, "beta": -1.0, "edges": [-2.0, -1.0, 0.0, 1.0, 2.0],
        "counts": [[0, 4, 2, 0], [0, 0, 1, 3]], "firing": [0.1, 0.9], "classes": ["a", "b"],
    }  # fmt: skip
    tree = ET.fromstring(lanes(channel, "en"))
    ends: dict[str, list[float]] = {"passes": [], "blocked": []}
    heights = []
    for path in tree.iter("path"):
        style = path.attrib.get("class", "")
        if style in ends:
            text = path.attrib["d"]
            ends[style] += [float(x) for x in re.findall(r"[MH]([\d.]+)", text)]
            heights += [float(y) for y in re.findall(r"V([\d.]+)H", text)]
    assert max(ends["blocked"]) == min(ends["passes"]), "both meet at the gate, z = 0.5"
    # one bin before the gate and one that it parts, for a; one that it parts and one behind, for b
    assert sorted(heights) == [13.0, 24.5, 24.5, 39.0, 54.3, 54.3]
    assert "10%" in {t.text for t in tree.iter("text")}
    closed = lanes(channel | {"gamma": 0.0}, "en")
    assert 'class="passes"' not in closed, "with gamma 0 and beta below 0 nothing passes"


# --- what is not installed ---


def test_without_pandas_or_altair_one_sentence_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("pandas", "altair"):
        monkeypatch.setitem(sys.modules, name, None)
    seen = pages.digits_inspection()
    with pytest.raises(MissingExtraError, match=r"pip install 'normscope\[tables\]'"):
        seen.to_frame()
    with pytest.raises(MissingExtraError, match=r"pip install 'normscope\[plot\]'"):
        seen.plot()
    assert seen.to_rows()


def test_plot_is_an_altair_chart_of_the_picture_of_the_page() -> None:
    if importlib.util.find_spec("altair") is None:
        assert "CI" not in os.environ, "CI needs altair"
        pytest.skip("altair is not installed")
    seen = pages.digits_inspection()
    found = seen.plot().to_dict()  # validated against the schema of Vega-Lite
    assert "var(--" not in json.dumps(found)
    (chart, *_) = [p for p in parts(document_of(seen)) if isinstance(p, Chart)]
    assert found["height"] == chart.spec["height"]
    values = [row["value"] for data in found["datasets"].values() for row in data if "value" in row]
    assert values == [row["value"] for row in chart.spec["data"]["values"]]
    for record in records().values():
        if any(isinstance(p, Chart) for p in parts(document_of(record))):
            record.plot().to_dict()
    records()["diagnosis"].plot().to_dict()
    with pytest.raises(InputError, match="there is no picture 99; there are 0: What can be told"):
        seen.plot(99)
    with pytest.raises(InputError, match="a conversion has no pictures"):
        records()["conversion"].plot()


# --- files of any kind ---


def test_what_is_no_record_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, message in (
        ("{", "is no record: "),
        ("[1]", "it has no kind; there are bench, claims"),
        ('{"kind": "song"}', "it has the kind 'song'; there are bench"),
        ('{"kind": "run", "schema": 99}', "this run record has schema 99"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=re.escape(message)):
            normscope.load(path)
    with pytest.raises(FileError, match="there is no record"):
        normscope.load(tmp_path / "missing.json")


def test_channel_plots_are_drawn_with_every_class() -> None:
    plots = [p for p in parts(document_of(pages.digits_inspection())) if isinstance(p, ChannelPlot)]
    assert plots
    for plot in plots:
        tree = ET.fromstring(lanes(plot.data, "en"))
        told = {t.text for t in tree.iter("text")}
        assert set(plot.data["classes"]) <= told
