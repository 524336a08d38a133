"""Pages without a browser: what is in the file, and what the sentences are computed from."""

import base64
import hashlib
import json
import math
import re
import string
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import normscope.report
from normscope.lesson import lesson
from normscope.records import Inspection, Layer, Member, Run, StageMeasures
from normscope.report import channels, format, html, measures, verdict
from normscope.report.inspection import document as inspection_document
from normscope.report.lesson import document as lesson_document
from normscope.report.messages import LANGUAGES, Lang, catalogue
from tests.report.pages import (
    HOSTILE,
    digits_inspection,
    documents,
    made_up_run,
    run_page,
    worked_lesson,
)

FOLDER = Path(normscope.report.__file__).parent
CHINESE = re.compile("[\u4e00-\u9fff]")


class Parsed(HTMLParser):
    """Elements with their attributes, scripts and styles with their text, and what is read."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[tuple[dict[str, str | None], str]]] = {
            "script": [],
            "style": [],
        }
        self.text = ""
        self._open = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag in self.inside:
            self.inside[tag].append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in self.inside:
            attributes, text = self.inside[self._open][-1]
            self.inside[self._open][-1] = attributes, text + data
        else:
            self.text += data

    @property
    def data(self) -> Any:
        (text,) = [t for a, t in self.inside["script"] if a.get("type") == "application/json"]

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        return json.loads(text, parse_constant=refuse)


@cache
def pages(lang: Lang = "en") -> dict[str, str]:
    inspection = digits_inspection()
    run = made_up_run(inspection)
    shown = made_up_run(None, ("batch", "conditional", "separate"), 5, ("clean", "invert"))
    return {
        "lesson": html.page(lesson_document(worked_lesson()), lang),
        "inspection": html.page(inspection_document(inspection), lang),
        "run": run_page(run, lang),
        "domains": run_page(shown, lang),
    }


@pytest.fixture(scope="module")
def parsed() -> dict[str, Parsed]:
    return {name: Parsed(page) for name, page in pages().items()}


def renamed(inspection: Inspection, names: tuple[str, ...]) -> Inspection:
    layers = tuple(
        replace(layer, name=name, norm=name, notes=("lens.note.mixed",))
        for layer, name in zip(inspection.layers, names, strict=False)
    )
    classes = tuple(names[k % len(names)] + str(k) for k in range(len(inspection.classes)))
    skipped = {names[0]: "lens.skip.not_called"}
    return replace(
        inspection, layers=layers, classes=classes, model=names[0], data=names[1], skipped=skipped
    )


# --- one file, closed to the outside ---


@pytest.mark.parametrize("name", ["lesson", "inspection", "run", "domains"])
def test_nothing_is_loaded_from_anywhere(parsed: dict[str, Parsed], name: str) -> None:
    for tag, attributes in parsed[name].elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
        assert not [a for a in attributes if a.startswith("on") or a == "style"]
    style = parsed[name].inside["style"][0][1]
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize("name", ["lesson", "inspection", "run", "domains"])
def test_the_policy_allows_exactly_what_is_in_the_file(
    parsed: dict[str, Parsed], name: str
) -> None:
    page = parsed[name]
    policies = [a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a]
    assert policies[0] is not None
    rules = dict(part.strip().split(" ", 1) for part in policies[0].split(";"))

    def hashes(kind: str) -> set[str]:
        texts = [t for a, t in page.inside[kind] if a.get("type") != "application/json"]
        digests = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in texts]
        return {f"'sha256-{d}'" for d in digests}

    assert rules["default-src"] == "'none'"
    assert set(rules["script-src"].split()) == hashes("script")
    assert set(rules["style-src"].split()) == hashes("style")


def test_sizes() -> None:
    sizes = {name: len(page.encode()) for name, page in pages().items()}
    assert sizes["lesson"] < 500_000  # no chart bundle in it
    assert max(sizes.values()) < 2_000_000


def test_ids_are_unique_and_what_is_referred_to_exists(parsed: dict[str, Parsed]) -> None:
    others = (Parsed(html.page(d, "en")) for name, d in documents().items() if name not in parsed)
    for page in (*parsed.values(), *others):
        ids = [a["id"] for _, a in page.elements if a.get("id")]
        assert len(ids) == len(set(ids))
        for _, attributes in page.elements:
            for name in ("aria-labelledby", "aria-describedby"):
                for target in (attributes.get(name) or "").split():
                    assert target in ids
            if (attributes.get("href") or "").startswith("#"):
                assert str(attributes["href"])[1:] in ids


# --- two languages ---


def test_every_text_is_in_both_languages(parsed: dict[str, Parsed]) -> None:
    for page in parsed.values():
        for _, attributes in page.elements:
            english, chinese = attributes.get("data-en"), attributes.get("data-zh")
            assert (english is None) == (chinese is None)
            if english is None or chinese is None:
                continue
            assert english
            assert chinese
            assert not CHINESE.search(english)
            words = re.search(r"[a-z]{4,}", english.replace("norm", ""))
            assert CHINESE.search(chinese) or english == chinese or not words


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_page_starts_in_its_language(lang: Lang) -> None:
    for page in pages(lang).values():
        document = Parsed(page)
        assert document.data["lang"] == lang
        assert bool(CHINESE.search(document.text.replace("中文", ""))) == (lang == "zh")


def test_messages_are_whole_and_used() -> None:
    sources = [*FOLDER.rglob("*.py"), *FOLDER.rglob("*.j2"), *FOLDER.rglob("scripts/*.js")]
    sources += FOLDER.rglob("charts/*.json")
    code = "\n".join(p.read_text(encoding="utf-8") for p in sources)
    own = {k: v for k, v in catalogue().items() if k.startswith(("page.", "live."))}
    # how keys begin that are put together, and those of the heads of columns
    built = (*re.findall(r'["`](page\.[a-z_.]+\.)(?:\{|" [+~])', code), "live.")
    built = (*built, "page.head.", "page.rank.")
    ends = tuple(re.findall(r'["`]page\.\{\w+\}(\.\w+)"', code))  # of what has a name in between
    for key, texts in own.items():
        assert set(texts) == set(LANGUAGES)
        fields = [
            {name for _, name, _, _ in string.Formatter().parse(text) if name}
            for text in texts.values()
        ]
        assert fields[0] == fields[1], key
        # `told` takes the text of a record without classes
        base = key.removesuffix(".alone")
        used = any(f'"{name}"' in code or f'"${name}"' in code for name in (key, base))
        assert used or key.startswith(built) or key.endswith(ends), f"{key} is not used"
    for key in re.findall(r'say\w*\(\s*"((?:page|live)\.[a-z0-9_.]+[a-z0-9])"', code):
        assert key in own, f"{key} has no text"


# --- hostile, missing and too much ---


def test_hostile_names_stay_text() -> None:
    plain, hostile = digits_inspection(), renamed(digits_inspection(), HOSTILE)
    norms = ("batch", *HOSTILE[:2])
    run = replace(made_up_run(hostile, norms), classes=hostile.classes)
    run = replace(
        run,
        config=replace(run.config, data=HOSTILE[0], net=HOSTILE[1]),
        environment={HOSTILE[0]: HOSTILE[1]},
    )
    expected = Parsed(run_page(made_up_run(plain, ("batch", "none", "x")), "en"))
    for page in (
        Parsed(run_page(run, "en")),
        Parsed(html.page(inspection_document(hostile), "en")),
    ):
        assert len(page.inside["script"]) == len(expected.inside["script"])
        assert not [a for _, attributes in page.elements for a in attributes if a[:2] == "on"]
        for name in HOSTILE[:2]:
            assert name in page.text
        assert any("{{7*7}}" in name for name in page.data["channels"][0]["classes"])
    raw = run_page(run, "en")
    assert raw.count("</script>") == len(expected.inside["script"])
    assert "\u2028" not in raw.split('type="application/json">')[1].split("</script>")[0]


def nan_everywhere(value: Any) -> Any:
    """The same record with every float NaN."""
    if isinstance(value, float):
        return math.nan
    if isinstance(value, np.ndarray):
        return value * math.nan
    if isinstance(value, tuple):
        return tuple(map(nan_everywhere, value))
    if isinstance(value, dict):
        return {k: nan_everywhere(v) for k, v in value.items()}
    if isinstance(value, Layer | StageMeasures | Member | Run | Inspection):
        return replace(value, **{k: nan_everywhere(v) for k, v in vars(value).items()})
    return value


def test_not_finite_numbers_are_said() -> None:
    run = made_up_run(digits_inspection())
    broken = replace(
        run,
        inspection=nan_everywhere(run.inspection),
        members=tuple(
            replace(nan_everywhere(m), status="diverged", curve=m.curve[:0]) for m in run.members
        ),
        rows=tuple(
            replace(r, mean=math.nan, spread=math.nan, diverged=r.seeds, epochs_to_95=math.nan)
            for r in run.rows
        ),
        sweeps=tuple(
            replace(s, accuracy=nan_everywhere(s.accuracy), lowest=None, highest=None)
            for s in run.sweeps
        ),
    )
    page = Parsed(run_page(broken, "en"))
    assert page.data["charts"]  # and is JSON
    assert "not finite" in page.text
    assert "nan" not in page.text.lower().split("normalisation")[0]
    assert "No network finished" in page.text


def test_empty_states() -> None:
    run = made_up_run(None, ("batch",), seeds=1)
    bare = replace(run, members=(), traces=(), sweeps=(), rows=(), complete=False)
    for record in (run, bare):
        page = Parsed(run_page(record, "zh"))
        assert "没有对网络做逐层检查" in page.text
    nothing = replace(digits_inspection(), layers=(), invariance=math.nan)
    page = Parsed(html.page(inspection_document(nothing), "en"))
    assert "no normalisation layer with running statistics" in page.text


def test_one_class_and_no_activation() -> None:
    inspection = digits_inspection()
    one = tuple(
        replace(
            layer,
            activation=None,
            stages=layer.stages[:3],
            histogram=layer.histogram[:1],
            firing=layer.firing[:1],
        )
        for layer in inspection.layers
    )
    single = replace(inspection, layers=one, classes=("only",), counts=(3,))
    page = Parsed(html.page(inspection_document(single), "en"))
    assert page.data["channels"][0]["classes"] == ["only"]


def test_many_classes_and_layers_are_sampled_and_it_says_so() -> None:
    layer, names = digits_inspection().layers[0], 10_000
    few = replace(
        layer,
        channels=2,
        histogram_channels=(0, 1),
        gamma=layer.gamma[:2],
        stages=tuple(replace(s, eta2=s.eta2[:2]) for s in layer.stages),
        bin_edges=(-1.0, 0.0, 1.0),
        histogram=np.array([[[1, 2], [3, 4]]] * names),
        class_mean=np.array([[0.1, 0.2]] * names),
        class_var=np.array([[1.0, 1.0]] * names),
        firing=np.array([[0.5, 0.25]] * names),
    )
    crowd = replace(
        digits_inspection(),
        layers=tuple(replace(few, name=f"layer{i}") for i in range(60)),
        classes=tuple(f"class {k}" for k in range(names)),
        counts=(1,) * names,
        separation=tuple(float((k * 7919) % names) for k in range(names)),
    )
    text = html.page(inspection_document(crowd), "en")
    page = Parsed(text)
    assert len(text) < 2_500_000
    assert "9980 more classes" in page.text
    assert "36 more layers" in page.text
    assert "The stages of each layer are listed in its details below" in page.text
    order = sorted(range(names), key=lambda k: crowd.separation[k])
    ends = [*order[: channels.CLASSES // 2], *order[-channels.CLASSES // 2 :]]
    assert page.data["channels"][0]["classes"] == [f"class {k}" for k in ends]
    unknown = replace(crowd, separation=())
    assert channels.shown_classes(unknown)[::19] == [0, names - 1]


def test_160_layers_stay_usable() -> None:
    """As many layers as a large network has, wide ones, ten classes."""
    layer = digits_inspection().layers[0]
    draw = np.random.default_rng(0)
    wide = tuple(
        replace(
            layer,
            name=f"stage{i // 40}.block{i % 40}.norm",
            stages=tuple(
                replace(s, lda_fraction=float(draw.uniform()), separation=float(draw.uniform()))
                for s in layer.stages
            ),
        )
        for i in range(160)
    )
    deep = replace(digits_inspection(), layers=wide)
    text = html.page(inspection_document(deep), "en")
    page = Parsed(text)
    assert len(text.encode()) < 5_000_000
    assert "136 more layers" in page.text
    details = [a["id"] for tag, a in page.elements if tag == "details" and a.get("id")]
    assert details == [f"layer-{i}" for i in range(160)]
    links = [a["href"] for tag, a in page.elements if tag == "a" and "layer-" in str(a.get("href"))]
    worst = sorted(range(160), key=lambda i: measures.gained(wide[i]))
    assert links[:160] == [f"#layer-{i}" for i in worst]
    assert links[160:] == [f"#layer-{i}" for i in range(160)]
    assert measures.pictured(deep, 24) == sorted([*worst[:12], *worst[-12:]])
    assert len(page.data["channels"]) == 24 * 2 * channels.EACH


def test_the_rank_counts_idle_gates_and_leaves_the_unknown_last() -> None:
    inspection = digits_inspection()
    layer = inspection.layers[0]
    idle = replace(layer, channels=3, firing=np.array([[0.0, 0.5, 1.0], [5e-4, 0.5, 0.9995]]))
    assert measures.idle(idle) == pytest.approx(2 / 3)
    unknown = replace(layer, stages=tuple(nan_everywhere(s) for s in layer.stages))
    lost, won = (
        replace(layer, stages=(replace(layer.stages[0], lda_fraction=j), *layer.stages[1:]))
        for j in (1.0, 0.0)
    )
    three = replace(inspection, layers=(unknown, won, lost))
    assert measures.worst_first(three) == [2, 1, 0]
    rows = measures.ranking(three).rows
    assert [row[3].style for row in rows] == ["changed", "", ""]
    assert rows[2][3].text == "-"


def test_a_lesson_of_many_classes() -> None:
    rng = np.random.default_rng(0)
    record = lesson(rng.normal(size=(12, 5)).tolist(), None, None, eps=1e-5, seeds=2, steps=20)
    page = Parsed(html.page(lesson_document(record), "en"))
    assert len(page.data["lesson"]["stages"][0]["classes"]) == 12


# --- numbers and sentences ---


def with_accuracies(run: Run, accuracies: dict[str, list[float]]) -> Run:
    members = tuple(
        replace(m, accuracy=accuracies[m.norm][m.seed]) for m in run.members if m.norm in accuracies
    )
    rows = tuple(
        replace(
            row,
            mean=float(np.mean(accuracies[row.norm])),
            spread=float(np.std(accuracies[row.norm], ddof=1)),
        )
        for row in run.rows
        if row.norm in accuracies
    )
    return replace(run, members=members, rows=rows)


def test_the_paired_difference_and_its_interval() -> None:
    run = with_accuracies(
        made_up_run(None), {"batch": [0.97, 0.98, 0.99], "none": [0.93, 0.96, 0.95]}
    )
    found = verdict.difference(run, "batch", "none")
    assert found is not None
    # differences .04, .02, .04: mean .0333, deviation .011547, t(2) = 4.303
    assert found.mean == pytest.approx(0.1 / 3)
    assert found.margin == pytest.approx(4.303 * 0.011547 / math.sqrt(3), rel=1e-3)
    assert found.clear
    assert verdict.difference(run, "batch", "noaffine") is None


# quantiles of Student's t at 97.5 %, from printed tables
@pytest.mark.parametrize(("seeds", "t"), [(2, 12.706), (17, 2.1199), (41, 2.0211)])
def test_the_interval_is_as_wide_as_the_number_of_seeds_asks(seeds: int, t: float) -> None:
    scores = [0.9 + 0.01 * (seed % 2) for seed in range(seeds)]
    run = made_up_run(None, ("batch", "none"), seeds=seeds)
    found = verdict.difference(
        with_accuracies(run, {"batch": scores, "none": [0.9] * seeds}), "batch", "none"
    )
    assert found is not None
    deviation = np.std(np.array(scores) - 0.9, ddof=1)
    assert found.margin == pytest.approx(t * deviation / math.sqrt(seeds), rel=1e-4)


@pytest.mark.parametrize(
    ("other", "expected"),
    [([0.93, 0.96, 0.95], "batch wins with 98%"), ([0.99, 0.96, 0.97], "level within the noise")],
)
def test_the_winner_is_named_with_its_noise(other: list[float], expected: str) -> None:
    scores = {"batch": [0.97, 0.98, 0.99], "none": other, "per_class": [1.0, 1.0, 1.0]}
    run = with_accuracies(made_up_run(None), scores)
    first = verdict.winner(run)
    assert first.headline is not None
    assert expected in first.headline.en  # and not the norm that was given the labels
    assert [f.headline and "The trap" in f.headline.en for f in verdict.trap(run)] == [True]


def test_a_stopped_run_says_so() -> None:
    run = replace(made_up_run(None), complete=False)
    headlines = [f.headline.en for f in verdict.stopped(run) if f.headline]
    assert "The run was stopped before its end" in headlines


def test_one_seed_is_no_evidence() -> None:
    first = verdict.winner(made_up_run(None, ("batch", "none"), seeds=1))
    assert first.headline is not None
    assert "from a single seed" in first.details[0].en
    assert first.headline.en.startswith("One seed decides nothing: ")
    assert first.style == "note"


def test_gate_information_is_mutual_information() -> None:
    layer, counts = digits_inspection().layers[0], digits_inspection().counts
    for c in range(3):
        open_share = np.array([row[c] for row in layer.firing])
        joint = np.array(counts) / sum(counts) * np.stack([open_share, 1 - open_share])
        apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        expected = sum(joint[joint > 0] * np.log2((joint / apart)[joint > 0]))
        assert layer.gate_information[c] == pytest.approx(expected, abs=1e-6)


def test_the_chosen_channels_are_the_ends_of_the_ranking() -> None:
    layer = digits_inspection().layers[0]
    scores = [layer.gate_information[c] for c in range(layer.channels)]
    chosen = channels.choose(layer)
    assert sorted(scores)[-2:] == sorted(c.score for c in chosen if c.best)
    assert sorted(scores)[:2] == sorted(c.score for c in chosen if not c.best)
    one = replace(layer, channels=1, histogram_channels=(0,))
    assert [c.channel for c in channels.choose(one)] == [0]


def test_the_index_locks_what_an_affine_map_cannot_change() -> None:
    index = measures.by_stage(digits_inspection().layers)
    locked = {row[1].icon for row in index.rows for cell in row if cell.style == "locked"}
    assert locked == {"lock"}
    first = index.rows[0]
    assert first[2].text == first[3].text == first[4].text  # eta squared at x, z and y
    assert first[5].style == "changed"


def test_magnitudes() -> None:
    assert format.magnitude(7_650_774.0) == "7.7 × 10⁶"
    assert format.magnitude(354.2) == "354"
    assert format.share(0.95) == "95.0%"
    assert format.share(1.0) == "100%"
    assert format.share(None) == "-"


def test_the_lesson_page_carries_the_numbers_of_the_record(parsed: dict[str, Parsed]) -> None:
    record = worked_lesson()
    stage = next(s for s in record.stages if s.name == "scaled_shifted")
    carried = {s["name"]: s for s in parsed["lesson"].data["lesson"]["stages"]}
    assert carried["scaled_shifted"]["classes"][0]["values"] == list(stage.classes[0].values)
    assert "7/8" in parsed["lesson"].text
