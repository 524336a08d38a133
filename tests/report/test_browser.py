"""Pages in Chromium, from a file and without a network: they draw, switch, move and agree."""

import importlib.util
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.resources import files as files_of
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

import normscope.report
from normscope.lesson import best_thresholds, lesson
from normscope.records import Lesson, Recovery
from normscope.report import channels, html, measures, playground, presentation, story
from tests.report.chromium import chromium
from tests.report.pages import (
    HOSTILE,
    NORMS,
    digits_inspection,
    documents,
    made_up_run,
    run_page,
    worked_lesson,
)
from tests.report.test_page import renamed

SCRIPTS = Path(normscope.report.__file__).parent / "assets/scripts"
# words that are the same in both languages
SHARED = {*NORMS, "normscope", "English", "JavaScript", "Vega", "ReLU", "relu", "torch", "threads"}
SHARED |= {"digits", "mlp", "BatchNorm", "NCM", "CDNV", "act", "per", "class", "log", "max"}
SHARED |= {"affine", "only", "train", "eval"}

Open = Callable[..., Page]
PAGES = (
    "lesson",
    "run",
    "hostile",
    "inspection",
    "diagnosis",
    "conversion",
    "difference",
    "bench",
    "parity",
    "passport",
    "claims",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    hostile = renamed(digits_inspection(), HOSTILE)
    shown = {
        **{name: html.page(document, "en") for name, document in documents().items()},
        "domains": run_page(made_up_run(None, ("batch", "conditional"), 2, ("clean", "invert"))),
        "hostile": run_page(made_up_run(hostile, ("batch", *HOSTILE[:2]))),
    }
    seen = digits_inspection()
    names = [replace(layer, name="backbone_" * 9 + layer.name) for layer in seen.layers]
    shown["long names"] = presentation.page(replace(seen, layers=tuple(names)), "en")
    shown["playground"] = playground.page("en")
    sounds = dict.fromkeys(digits_inspection().classes[:2], (np.sin(np.arange(4000) / 5), 16000))
    shown["sound"] = presentation.page(digits_inspection(), "en", sounds)
    for name, text in shown.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in shown}


@pytest.fixture(scope="module")
def axe() -> str:
    """The script of axe-core."""
    if importlib.util.find_spec("axe_playwright_python") is None and not os.environ.get("CI"):
        pytest.skip("axe-core is not installed: pip install axe-playwright-python")
    return (files_of("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture
def open_page(browser: Browser, files: dict[str, Path]) -> Iterator[Open]:
    """Open a page offline; afterwards there was no console message and no request."""
    complaints: list[str] = []
    contexts = []

    def start(name: str, fragment: str = "", **options: Any) -> Page:
        options = {"viewport": {"width": 1200, "height": 900}, "color_scheme": "light"} | options
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda m: complaints.append(f"console {m.type}: {m.text}"))
        page.on("pageerror", lambda e: complaints.append(f"error: {e}"))
        page.on("dialog", lambda d: complaints.append(f"dialog: {d.message}"))
        address = files[name].as_uri()
        page.on(
            "request",
            lambda r: None if r.url.startswith(address) else complaints.append(f"request: {r.url}"),
        )
        page.goto(address + fragment)
        page.wait_for_selector("html[data-started]")
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []


def drawn(page: Page) -> None:
    """Wait until every chart that is not in a closed box is drawn."""
    for chart in page.locator("[data-chart]:not(details:not([open]) *)").all():
        chart.locator("svg.marks").wait_for(state="attached")


def value(where: Locator) -> float:
    return float(where.get_attribute("data-value") or "nan")


def move(slider: Locator, to: float) -> None:
    slider.evaluate(
        "(e, to) => { e.value = to; e.dispatchEvent(new Event('input', { bubbles: true })) }", to
    )


# what a reader sees: text nodes of elements that are laid out, also those in pictures
VISIBLE = """() => {
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const box = walk.currentNode.parentElement;
    if (['SCRIPT', 'STYLE', 'NOSCRIPT'].includes(box.tagName)) continue;
    if (!box.closest('svg') && box.tagName !== 'OPTION' && !box.getClientRects().length) continue;
    found.push(walk.currentNode.textContent);
  }
  return [document.title, ...found];
}"""


def foreign(page: Page, lang: str) -> list[str]:
    """Visible texts that are not in the language."""
    texts = [t for t in page.evaluate(VISIBLE) if t.strip() and t != "中文"]
    if lang == "en":
        return [t for t in texts if re.search("[\u4e00-\u9fff]", t)]
    words = [(t, set(re.findall(r"[A-Za-z]{3,}", t)) - SHARED) for t in texts]
    return [t for t, left in words if left and not re.search("[\u4e00-\u9fff]", t)]


# --- all pages ---


@pytest.mark.parametrize("name", ["lesson", "inspection", "run", "domains"])
def test_every_visible_text_switches(open_page: Open, name: str) -> None:
    page = open_page(name)
    for box in page.locator("details").all():
        box.evaluate("(e) => { e.open = true }")
    drawn(page)
    assert foreign(page, "en") == []
    page.get_by_role("button", name="中文").click()
    page.wait_for_timeout(300)  # the charts are drawn again
    drawn(page)
    allowed = {"norm1", "norm2", "norm3", "conditional", "clean", "invert", "Batch"}
    assert [t for t in foreign(page, "zh") if not any(a in t for a in allowed)] == []
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.get_by_role("button", name="English").click()
    page.wait_for_timeout(400)
    drawn(page)
    assert foreign(page, "en") == []


# texts of table cells and bars that reach beyond the window, or beyond a box that cuts them off
CUT = """() => {
  const cut = [];
  for (const cell of document.querySelectorAll("th, td, .bar-text")) {
    if (!cell.checkVisibility() || cell.closest(".folded thead")) continue;
    let low = 0, high = document.documentElement.clientWidth;
    for (let box = cell; box !== document.documentElement; box = box.parentElement) {
      if (getComputedStyle(box).overflowX === "visible") continue;
      const edge = box.getBoundingClientRect();
      low = Math.max(low, edge.left);
      high = Math.min(high, edge.right);
    }
    const range = document.createRange();
    range.selectNodeContents(cell);
    const outside = (text) => text.width && (text.left < low - 1 || text.right > high + 1);
    if ([...range.getClientRects()].some(outside)) cut.push(cell.textContent);
  }
  return cut;
}"""
# boxes in which there is nothing to draw
OPEN = """() => {
  for (const box of document.querySelectorAll("details:not(:has([data-chart], [data-channel]))")) {
    box.open = true;
  }
}"""


@pytest.mark.parametrize("name", PAGES)
def test_no_number_is_cut_on_any_screen(open_page: Open, name: str) -> None:
    page = open_page(name)
    page.evaluate(OPEN)
    for language in ("English", "中文"):
        page.get_by_role("button", name=language).click()
        for width in (1280, 768, 390, 320):
            page.set_viewport_size({"width": width, "height": 800})
            for _ in range(50):  # tables fold when they are laid out anew
                if not (cut := page.evaluate(CUT)):
                    break
                page.wait_for_timeout(100)
            assert cut == [], width
            assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [1280, 390])
def test_a_layer_with_a_long_name_does_not_widen_the_page(open_page: Open, width: int) -> None:
    page = open_page("long names", viewport={"width": width, "height": 800})
    for _ in range(30):  # tables fold when they are laid out
        if page.evaluate("document.documentElement.scrollWidth") <= width:
            return
        page.wait_for_timeout(100)
    pytest.fail("something is wider than the screen")


AXE = "(rules) => axe.run(document, { resultTypes: ['violations'], ...rules })"


@pytest.mark.parametrize("name", [*(n for n in PAGES if n != "hostile"), "playground"])
def test_the_accessibility_engine_finds_nothing(open_page: Open, axe: str, name: str) -> None:
    """Every rule of axe-core in the light, contrast in the dark too."""
    page = open_page(name)
    drawn(page)
    page.evaluate(axe)  # from outside of the page, whose policy forbids it to load anything
    found = page.evaluate(AXE, {})["violations"]
    page.get_by_role("button", name="Dark").click()
    found += page.evaluate(AXE, {"runOnly": ["color-contrast"]})["violations"]
    assert [
        (v["id"], n["html"][:120], n["failureSummary"]) for v in found for n in v["nodes"]
    ] == []


def test_light_dark_and_paper(open_page: Open) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    chart = "getComputedStyle(document.querySelector('[data-chart] .role-axis-label text')).fill"
    light = open_page("run")
    drawn(light)
    bright, ink = light.evaluate(ground), light.evaluate(chart)
    dark = open_page("run", color_scheme="dark")
    drawn(dark)
    assert dark.evaluate(ground) != bright
    assert dark.evaluate(chart) != ink
    dark.emulate_media(media="print")
    assert dark.evaluate(ground) == "rgb(255, 255, 255)"
    assert dark.evaluate(chart) == ink
    assert not dark.locator(".bar").is_visible()
    assert not dark.locator("[data-journey] input").first.is_visible()
    # of the buttons that alone which says what the picture is of; nothing of what is folded
    assert dark.locator("[data-journey] button[aria-pressed]:visible").count() == 1
    assert not dark.locator("#numbers").is_visible()
    light.get_by_role("button", name="Dark").click()
    assert light.evaluate(chart) != ink


def test_pictures_have_names_and_controls_labels(open_page: Open) -> None:
    page = open_page("run")
    drawn(page)
    for picture in page.locator("[role=img]").all():
        name = picture.evaluate(
            "(e) => e.getAttribute('aria-label') ||"
            " document.getElementById(e.getAttribute('aria-labelledby'))?.textContent"
        )
        assert name
        assert picture.evaluate(
            "(e) => e.hasAttribute('aria-describedby') || !!e.querySelector('desc')"
        )
    assert page.evaluate(
        "() => [...document.querySelectorAll('input, select')].every("
        "(e) => e.labels.length || e.hasAttribute('aria-label'))"
    )
    levels = page.evaluate(
        "() => [...document.querySelectorAll('h1,h2,h3,h4')].map((e) => Number(e.tagName[1]))"
    )
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_the_skip_link_comes_first_and_focus_is_seen(open_page: Open) -> None:
    page = open_page("run")
    page.keyboard.press("Tab")
    focused = page.locator(":focus")
    assert focused.get_attribute("href") == "#main"
    assert focused.evaluate("(e) => getComputedStyle(e).outlineStyle") == "solid"


def test_closed_boxes_are_drawn_when_they_open(open_page: Open) -> None:
    page = open_page("run")
    drawn(page)
    box = page.locator("details.layer").nth(1)
    assert box.get_attribute("open") is None
    assert box.locator("svg").count() == 0
    box.locator("xpath=ancestor::details/summary").click()
    assert box.locator("svg").count() == 0
    box.locator("summary").first.click()
    box.locator("[data-chart] svg").first.wait_for()


def test_every_chart_draws_marks(open_page: Open) -> None:
    for name in ("run", "domains"):
        page = open_page(name)
        for box in page.locator("details").all():
            box.evaluate("(e) => { e.open = true }")
        drawn(page)
        for host in page.locator("[data-chart]").all():
            marks = host.locator(".mark-line path, .mark-rect path, .mark-symbol path")
            assert marks.count() > 0


def test_hostile_names_do_nothing_but_show(open_page: Open) -> None:
    page = open_page("hostile")
    for box in page.locator("details").all():
        box.evaluate("(e) => { e.open = true }")
    drawn(page)
    page.get_by_role("button", name="中文").click()
    drawn(page)
    assert page.locator("script").count() == 3
    assert page.locator("main b").count() == 9  # the facts of the run, nothing of the names
    assert HOSTILE[0] in page.locator("main").inner_text()
    assert "{{7*7}}" in page.locator("main").inner_text()


# --- a run ---


@pytest.mark.parametrize(("width", "height", "most"), [(1280, 900, 6000), (390, 844, 12_000)])
def test_the_first_screen_holds_question_answer_and_picture(
    open_page: Open, files: dict[str, Path], width: int, height: int, most: int
) -> None:
    assert files["run"].stat().st_size < 2_000_000
    page = open_page("run", viewport={"width": width, "height": height})
    for language in ("English", "中文"):
        page.get_by_role("button", name=language).click()
        drawn(page)
        assert page.evaluate("document.documentElement.scrollHeight") <= most
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        places = [page.locator(p).bounding_box() for p in ("h1", ".lede", "[data-journey]")]
        bottoms = [box["y"] + box["height"] for box in places if box is not None]
        assert len(bottoms) == 3
        # a telephone shows question and answer first, the picture below them
        assert max(bottoms if width > 1000 else bottoms[:2]) <= height
    # the numbers are folded, and with them what only a specialist reads
    advanced = page.locator("td, th").filter(has_text=re.compile("CDNV|κ")).all()
    assert advanced
    assert not any(cell.is_visible() for cell in advanced)


def test_the_picture_has_the_numbers_of_the_record(open_page: Open) -> None:
    page = open_page("run", reduced_motion="reduce")
    figure = page.locator("[data-journey]")
    history = made_up_run(digits_inspection()).histories[0]
    steps, epochs = figure.locator("input").all()

    def dots() -> list[float]:
        return [float(c) for c in figure.locator("circle.mote").evaluate_all(
            "(all) => all.map((c) => c.getAttribute('cx'))")]  # fmt: skip

    def ticks() -> tuple[float, float]:
        """Pixels of 0 and pixels per unit of the shared axis."""
        marks = figure.locator("[data-role=figure] svg > g text[text-anchor=middle]").evaluate_all(
            "(all) => all.map((t) => [t.textContent.replace('\u2212', '-'), t.getAttribute('x')])"
        )
        places = {float(text): float(x) for text, x in marks}
        ends = sorted(places)
        return places[0.0], (places[ends[-1]] - places[ends[0]]) / (ends[-1] - ends[0])

    zero, unit = ticks()
    for t in (0, 11, 20):
        move(epochs, t)
        assert figure.get_attribute("data-epoch") == str(t)
        gamma, beta = history.gamma[t], history.beta[t]
        z = (np.array(history.x[t]) + 1.2) / math.sqrt(2.25 + 1e-5)
        wanted = (history.x[t], z, gamma * z + beta, np.maximum(0, gamma * z + beta))
        for stop, values in enumerate(wanted):
            move(steps, stop)
            assert ticks() == (zero, unit)  # all steps and epochs share one axis
            assert sorted(dots()) == pytest.approx(sorted(zero + unit * np.array(values)), abs=0.2)
        shares = figure.locator("text.share").all_text_contents()
        expected = sorted(history.passing[t])
        assert sorted(float(s.rstrip("%")) / 100 for s in shares) == pytest.approx(
            expected, abs=0.006
        )
        passing = figure.locator("circle.mote.passes").count()
        assert passing == int((gamma * z + beta > 0).sum())
    steps.focus()
    page.keyboard.press("Home")
    assert figure.get_attribute("data-stop") == "x"
    move(epochs, 3)
    figure.get_by_role("button", name="Play").click()
    assert figure.get_attribute("data-epoch") == "20"  # without motion it goes to the end
    figure.get_by_role("button", name="Only γ and β learn").click()
    assert figure.get_by_role("button", name="Only γ and β learn").get_attribute(
        "aria-pressed"
    ) == "true"  # fmt: skip
    move(epochs, 11)
    expect(page).to_have_url(re.compile("#learns=some&step=x&epoch=11"))
    # the address is the picture, and what it does not know is as the page opens
    page.reload()
    page.wait_for_selector("html[data-started]")
    assert figure.get_attribute("data-epoch") == "11"
    assert figure.get_attribute("data-stop") == "x"
    pressed = figure.locator("[aria-pressed=true]")
    assert pressed.inner_text() == "Only γ and β learn"
    page.evaluate("location.hash = 'learns=nobody&step=q&epoch=-7'")
    page.reload()
    page.wait_for_selector("html[data-started]")
    assert (figure.get_attribute("data-epoch"), figure.get_attribute("data-stop")) == ("20", "z")


def test_training_plays_and_pauses(open_page: Open) -> None:
    page = open_page("run")
    figure = page.locator("[data-journey]")
    move(figure.locator("input").nth(1), 0)
    figure.get_by_role("button", name="Play").click()
    expect(figure).to_have_attribute("data-epoch", re.compile(r"^[2-9]|1\d"))
    figure.get_by_role("button", name="Pause").click()
    at = figure.get_attribute("data-epoch")
    page.wait_for_timeout(500)
    assert figure.get_attribute("data-epoch") == at
    figure.get_by_text("after ReLU").click()
    expect(figure).to_have_attribute("data-stop", "a")
    figure.locator("input").first.press("Home")
    expect(figure).to_have_attribute("data-stop", "x")
    expect(figure.locator("[data-now]")).to_have_text("input x")


def test_symbols_explain_themselves(open_page: Open) -> None:
    page = open_page("run")
    note = page.locator("#note")
    term = page.locator("header [data-term='J']")
    for language, words in (("English", "share of the class signal"), ("中文", "类别信号占比")):
        page.get_by_role("button", name=language).click()
        page.mouse.move(5, 5)
        term.hover()
        assert words in note.inner_text()
        page.mouse.move(5, 5)
        assert not note.is_visible()
        page.locator(".lede").evaluate("(e) => e.querySelector('button').focus()")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        assert page.locator(":focus").get_attribute("data-term") == "J"
        assert words in note.inner_text()
        page.keyboard.press("Escape")
        assert not note.is_visible()
    page.get_by_role("button", name="English").click()
    page.locator("#contest summary").first.click()
    page.locator("#measures summary").first.click()
    cell = page.locator("#measures td .term[data-term='CDNV']").first
    arrow = cell.evaluate("(e) => getComputedStyle(e, '::after').content")
    assert "↓" in arrow
    touch = open_page("run", has_touch=True, viewport={"width": 390, "height": 844})
    touch.locator("header [data-term='γ']").first.tap()
    assert "scale" in touch.locator("#note").inner_text()


# --- the lesson ---


def stages(page: Page) -> dict[str, tuple[float, float]]:
    rows = page.locator("#play-stages tr").all()
    return {
        str(row.get_attribute("data-stage")): (
            value(row.locator("td").nth(0)),
            value(row.locator("td").nth(2)),
        )
        for row in rows
    }


def set_all(page: Page, name: str) -> None:
    page.locator(f"[name=mode][value={name}]").check()


def preset(page: Page, name: str) -> None:
    page.locator(f"[data-preset={name}]").click()


def fields(page: Page) -> list[list[float]]:
    """The values of the classes as the page has them."""
    texts = [field.input_value() for field in page.locator("[data-values]").all()]
    return [[float(v) for v in text.split(",")] for text in texts]


def agree(page: Page, record: Lesson, mode: str = "standardised_per_class") -> None:
    """The tables of the page show the stages of a record."""
    expected = {s.name: s for s in record.stages}
    shown = stages(page)
    for name, stage in (("input", "input"), ("normalised", mode)):
        assert shown[name][0] == expected[stage].threshold_accuracy
        assert shown[name][1] == pytest.approx(expected[stage].eta2, abs=1e-6)


def test_the_page_has_the_numbers_of_python(open_page: Open) -> None:
    page = open_page("lesson")
    agree(page, worked_lesson(), "joint")
    set_all(page, "per_class")
    rng = np.random.default_rng(4)
    for _ in range(4):
        gamma, beta = rng.uniform(-4, 6, 2).round(2), rng.uniform(-10, 20, 2).round(2)
        for k in range(2):
            move(page.locator(f"[data-parameter=gamma][data-class='{k}']"), float(gamma[k]))
            move(page.locator(f"[data-parameter=beta][data-class='{k}']"), float(beta[k]))
        outputs = [value(o) for o in page.locator("#play-sliders output").all()]
        record = lesson(gamma=outputs[::2], beta=outputs[1::2], seeds=1, steps=1)
        agree(page, record)
        scaled = record.stages[6]
        assert stages(page)["scaled_shifted"][0] == scaled.threshold_accuracy
        assert stages(page)["scaled_shifted"][1] == pytest.approx(scaled.eta2, abs=1e-6)
        for row, c in zip(page.locator("#play-classes tr").all(), scaled.classes, strict=True):
            numbers = [value(cell) for cell in row.locator("td").all()]
            wanted = [c.gamma, c.beta, c.mean, c.var, c.min, c.max]
            wanted.append(sum(v > 0 for v in c.values) / len(c.values))
            assert numbers == pytest.approx(wanted, abs=1e-6)


def test_keys_move_a_slider(open_page: Open) -> None:
    page = open_page("lesson", "#mode=per_class")
    slider = page.locator("[data-parameter=beta][data-class='1']")
    before = stages(page)["scaled_shifted"][1]
    output = page.locator("#play-sliders output").nth(3)
    at = value(output)
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert value(output) > at
    page.keyboard.press("Home")
    assert value(output) == float(slider.get_attribute("min") or "nan")
    assert stages(page)["scaled_shifted"][1] != before


def test_every_preset_serves_in_its_mode(open_page: Open) -> None:
    page = open_page("lesson")
    record = {s.name: s for s in worked_lesson().stages}
    for mode, presets in (
        (
            "per_class",
            {
                "given": "scaled_shifted",
                "distribution": "learned_distribution",
                "classification": "learned_classification",
                "identity": "identity",
            },
        ),
        ("joint", {"given": "joint_scaled_shifted", "joint": "learned_joint", "identity": "input"}),
    ):
        set_all(page, mode)
        assert page.locator("#play-label").is_visible() == (mode == "per_class")
        for name, stage in presets.items():
            preset(page, name)
            row = "relu" if name == "joint" else "scaled_shifted"
            assert stages(page)[row][0] == record[stage].threshold_accuracy
            assert stages(page)[row][1] == pytest.approx(record[stage].eta2, abs=1e-6)
            assert page.locator(f"[data-preset={name}]").get_attribute("aria-pressed") == "true"
        assert page.locator("[data-preset]:visible").count() >= 4
        assert page.locator("[data-preset]:disabled").count() == 0
    for gamma in (-3.5, 5):
        move(page.locator("[data-parameter=gamma]"), gamma)
        assert stages(page)["scaled_shifted"][0] == 1
    move(page.locator("[data-parameter=gamma]"), 0)
    assert stages(page)["scaled_shifted"][0] == 0.5
    assert "β" in page.locator("#play-says").inner_text()


def replayed(page: Page, way: Recovery, start: int, steps: Sequence[int]) -> None:
    """The card of one way of learning shows what Python recorded, at these steps."""
    path = way.learning[start]
    card = page.locator(f"[data-recovery={way.name}]")
    for t in steps:
        move(card.locator("input"), t)
        shown = card.locator("output").evaluate("(e) => ({ ...e.dataset })")
        assert int(shown["step"]) == path.steps[t]
        # rounding is 1e-16 of the values, so 1e-28 of a squared distance says nothing more
        assert float(shown["loss"]) == pytest.approx(path.loss[t], rel=1e-8, abs=1e-20)
        assert float(shown["accuracy"]) == path.accuracy[t]
        for name, table in (("gamma", path.gamma), ("beta", path.beta)):
            numbers = [float(v) for v in shown[name].split(",")]
            assert numbers == pytest.approx(table[t], rel=1e-9)


def test_learning_is_replayed_as_python_recorded_it(open_page: Open) -> None:
    page = open_page("lesson", reduced_motion="reduce")
    for start in (0, 3, 11):
        page.locator("#recovery-start").select_option(index=start)
        for way in worked_lesson().recoveries:
            replayed(page, way, start, (0, 7, len(way.learning[0].steps) - 1))
    page.locator("#recovery-start").select_option(index=5)
    outputs = page.locator("[data-recovery] output")
    assert [o.get_attribute("data-step") for o in outputs.all()] == ["0"] * 3
    page.get_by_role("button", name="Play all three").click()
    assert [o.get_attribute("data-step") for o in outputs.all()] == ["200"] * 3
    assert [o.get_attribute("data-accuracy") for o in outputs.all()] == ["1"] * 3
    page.locator("[data-recovery=distribution] [data-role=use]").click()
    assert page.locator("[name=mode][value=per_class]").is_checked()
    means = [value(row.locator("td").nth(2)) for row in page.locator("#play-classes tr").all()]
    assert means == pytest.approx([53, 5], rel=1e-9)


def test_play_runs_until_the_end_where_motion_is_welcome(open_page: Open) -> None:
    page = open_page("lesson")
    card = page.locator("[data-recovery=joint]")
    move(card.locator("input"), 0)
    card.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function(
        "() => document.querySelector('[data-recovery=joint] output').dataset.step === '200'"
    )
    page.locator("#play-run[aria-pressed=false]").wait_for()
    assert page.locator("#play-figure .dot").count() == 4 * 8  # every value on every line


def test_values_are_dragged_added_and_removed(open_page: Open) -> None:
    page = open_page("lesson", reduced_motion="reduce")
    point = page.locator("[data-point='0,0']")
    box = point.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 250, y, steps=5)
    page.mouse.up()
    dragged = fields(page)
    assert dragged[0][0] < 30
    assert dragged[0][1:] == [52, 54, 56]
    # what the page shows and learns now is what Python finds for these numbers
    record = lesson(dragged, None, None, seeds=1)
    agree(page, record, "joint")
    for way in record.recoveries:
        replayed(page, way, 0, (0, 12, len(way.learning[0].steps) - 1))

    page.locator("[data-values='1']").fill("3, 4, 6, 9")
    page.keyboard.press("Enter")
    agree(page, lesson([dragged[0], [3, 4, 6, 9]], None, None, seeds=1, steps=1), "joint")
    lane = page.locator("[data-lane='1']").bounding_box()
    assert lane is not None
    page.mouse.click(lane["x"] + lane["width"] * 0.6, lane["y"] + lane["height"] / 2)
    assert len(fields(page)[1]) == 5
    assert page.locator("[data-point='1,4']").evaluate("(e) => e === document.activeElement")
    page.keyboard.press("Delete")
    page.locator("[data-point='1,3']").dblclick()
    assert fields(page)[1] == [3, 4, 6]


def test_keys_do_all_that_a_pointer_does(open_page: Open) -> None:
    page = open_page("lesson", reduced_motion="reduce")
    point = page.locator("[data-point='0,1']")
    point.focus()
    assert point.get_attribute("aria-label") == "class 1, value 2 of 4"
    page.keyboard.press("ArrowRight")
    moved = fields(page)[0][1]
    assert 52 < moved < 53
    assert float(point.get_attribute("aria-valuenow") or "nan") == moved
    assert point.evaluate("(e) => e === document.activeElement"), "focus stays while it moves"
    page.keyboard.press("PageDown")
    assert fields(page)[0][1] < 50
    page.keyboard.press("Insert")
    assert len(fields(page)[0]) == 5
    for _ in range(4):
        page.keyboard.press("Delete")
    assert len(fields(page)[0]) == 2
    assert "at least two values" in page.locator("#play-says").inner_text()

    page.get_by_role("button", name="Restore the values").click()
    assert fields(page) == [[50, 52, 54, 56], [2, 4, 6, 8]]
    page.get_by_role("button", name="Add a class").click()
    agree(page, lesson(fields(page), None, None, seeds=1, steps=1), "joint")
    assert page.locator("#play-classes tr").count() == 3
    assert all(
        float(o.get_attribute("data-accuracy") or "nan") > 0.6
        for o in page.locator("[data-recovery] output").all()
    )
    page.get_by_role("button", name="Remove class 2").click()
    assert len(fields(page)) == 2
    page.locator("[data-values='0']").fill("7, 7, x")
    page.keyboard.press("Enter")
    assert fields(page)[0] == [50, 52, 54, 56], "what has no variance is refused"


def test_the_tour_sets_the_playground_to_every_step(open_page: Open) -> None:
    page = open_page("lesson", reduced_motion="reduce")
    record = worked_lesson()
    page.get_by_role("button", name="Take the guided tour").click()
    rows = {"x": "input", "z": "normalised", "y": "scaled_shifted", "a": "relu"}
    shown = {"joint": "joint_scaled_shifted"}  # of two stages in one step, the picture's
    told = []
    for place, (_, together) in enumerate(story.steps(record), 1):
        assert f"Step {place} of 10" in page.locator("#tour").inner_text()
        visible = page.locator("#tour > [data-step]:visible")
        assert visible.get_attribute("data-step") == together[0].name
        assert visible.locator("[data-role=sentence]:visible").count() == len(together)
        told += together
        name = shown.get(together[0].name, together[0].name)
        stage = next(stage for stage in together if stage.name == name)
        current = page.locator("#play-figure .number-track.current").get_attribute("data-row")
        assert stages(page)[rows[str(current)]] == pytest.approx(
            (stage.threshold_accuracy, stage.eta2), abs=1e-6
        )
        assert value(page.locator("#play-score")) == stage.threshold_accuracy
        page.locator("#tour .primary").click()
    assert told == list(record.stages)
    assert page.get_by_role("button", name="Take the guided tour").is_visible()
    page.locator("[data-go=identity]").click()
    assert "comes back" in page.locator("#tour").inner_text()
    assert not page.locator("[data-own]").first.is_visible()
    page.locator("[data-point='0,0']").press("ArrowLeft")
    assert page.locator("[data-own]").first.is_visible()
    assert "your own numbers" in page.locator("#tour").inner_text()
    assert "comes back" not in page.locator("#tour").inner_text()


def test_when_the_fear_comes_true(open_page: Open) -> None:
    page = open_page("lesson", reduced_motion="reduce")
    record = worked_lesson()
    for place, accuracy in (("compare-joint", 1), ("compare-own", 0.5), ("case-one", 0.5)):
        shown = page.locator(f"#{place}").get_attribute("data-accuracy")
        assert float(shown or "nan") == accuracy
    # the cut of the joint values is at 0; moved by one deviation, two values of class 2 pass it
    z = np.array([c.values for c in record.stages[1].classes])
    stale = page.locator("#stale-says")
    for moved in (1.0, -2.0):
        move(page.locator("#stale-slider input"), moved)
        right = (z[0] + moved > 0).sum() + (z[1] + moved < 0).sum()
        assert value(stale) == right / 8 < 1
    page.get_by_role("button", name="Measure the statistics again").click()
    assert value(stale) == 1

    first = record.recoveries[1].learning[0]
    own = np.array([c.values for c in record.stages[5].classes])
    gamma, beta = np.array(first.gamma[-1]), np.array(first.beta[-1])
    templates = np.array(first.templates)
    outputs = {
        "right": gamma[:, None] * own + beta[:, None],
        "wrong": gamma[::-1, None] * own + beta[::-1, None],
        "none": gamma.mean() * z + beta.mean(),
    }
    for name, y in outputs.items():
        page.locator(f"[name=trap][value={name}]").check()
        answers = abs(y[:, :, None] - templates).argmin(2)
        assert value(page.locator("#trap-says")) == (answers == [[0], [1]]).mean()


def test_the_signal_that_a_batch_leaves(open_page: Open) -> None:
    page = open_page("lesson")
    r, m = page.locator("#composition-sliders input").all()
    move(r, 0.25)
    move(m, 3)
    assert value(page.locator("#composition-left")) == pytest.approx(0.75 * 7 / 8, abs=1e-12)
    measured = page.locator("#composition-figure .measured")
    assert measured.count() == len(worked_lesson().composition)


def test_the_address_keeps_the_setting(open_page: Open) -> None:
    page = open_page("lesson")
    page.locator("[data-values='0']").fill("40, 41, 60")
    page.keyboard.press("Enter")
    move(page.locator("[data-parameter=beta]"), 4)
    page.get_by_role("button", name="中文").click()
    # it is written a moment after the last change, on a slow machine also in between
    page.wait_for_url(lambda url: "mode=joint" in url and "lang=zh" in url and "x=40" in url)
    again = open_page("lesson", page.evaluate("location.hash"))
    assert again.locator("[value=joint]").is_checked()
    assert value(again.locator("#play-sliders output").nth(1)) == 4
    assert fields(again) == [[40, 41, 60], [2, 4, 6, 8]]
    assert again.evaluate("document.documentElement.lang") == "zh-CN"
    broken = open_page(
        "lesson", "#mode=evil&g=1,2,3&b=NaN,1&lang=xx&theme=<b>&r=7&m=-1&x=1;2&tour=99"
    )
    assert value(broken.locator("#play-sliders output").first) == 1
    assert fields(broken) == [[50, 52, 54, 56], [2, 4, 6, 8]]


# texts of pictures that reach beyond them
OUTSIDE = """() => [...document.querySelectorAll("main svg text")].filter((text) => {
  const [inner, box] = [text, text.ownerSVGElement].map((e) => e.getBoundingClientRect());
  return inner.width && (inner.left < box.left - 14 || inner.right > box.right + 14);
}).map((text) => text.textContent)"""


def test_no_word_of_a_picture_is_cut(open_page: Open) -> None:
    page = open_page("lesson", reduced_motion="reduce")
    for language in ("English", "中文"):
        page.get_by_role("button", name=language).click()
        for width in (1280, 768, 390, 320):
            page.set_viewport_size({"width": width, "height": 800})
            page.wait_for_timeout(150)  # pictures are drawn anew
            assert page.evaluate(OUTSIDE) == [], width


# --- channels ---


def test_the_gate_moves_and_counts(open_page: Open) -> None:
    page = open_page("inspection")
    inspection = digits_inspection()
    layer = inspection.layers[0]
    chosen = channels.choose(layer)
    card = page.locator("[data-channel='0']")
    says, c = card.locator("[data-role=says]"), chosen[0].channel

    def passing() -> list[float]:
        found = json.loads(says.get_attribute("data-firing") or "[]")
        assert isinstance(found, list)
        return found

    assert passing() == [row[c] for row in layer.firing]
    information = float(says.get_attribute("data-information") or "nan")
    assert information == pytest.approx(chosen[0].score, abs=1e-6)
    assert float(says.get_attribute("data-gate") or "nan") == pytest.approx(layer.gate[c])

    gamma, beta = card.locator("input").all()
    for g, b in ((0.5, -0.3), (-1.2, 0.5), (0.8, 3.0), (0.0, 1.0)):
        move(gamma, g)
        move(beta, b)
        g, b = (value(o) for o in card.locator("output").all())
        edges, expected = np.array(layer.bin_edges), []
        for row in layer.histogram:
            cumulative = np.concatenate([[0], np.cumsum(row[c])]) / sum(row[c])
            if g == 0:
                expected.append(float(b > 0))
            else:
                below = float(np.interp(-b / g, edges, cumulative))
                expected.append(1 - below if g > 0 else below)
        assert passing() == pytest.approx(expected, abs=1e-9)
    card.get_by_role("button").click()
    assert passing() == [row[c] for row in layer.firing]


def test_the_histogram_share_is_near_the_counted_one() -> None:
    """The picture may cut a bin in proportion, so it is off by no more than what that bin holds."""
    layer = digits_inspection().layers[0]
    edges = np.array(layer.bin_edges)
    for row, fired in zip(layer.histogram, layer.firing, strict=True):
        counts = np.array(row[0])
        cumulative = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
        share = 1 - float(np.interp(layer.gate[0], edges, cumulative))
        cut = int(np.searchsorted(edges, layer.gate[0])) - 1
        expected = share if layer.gamma[0] > 0 else 1 - share
        assert abs(expected - fired[0]) <= counts[cut] / counts.sum() + 1e-12


def test_the_index_sorts_and_opens_what_it_lists(open_page: Open) -> None:
    page = open_page("inspection")
    table = page.locator("table[data-sortable]").first
    inspection = digits_inspection()
    places = [str(p + 1) for p in measures.worst_first(inspection)]
    column = "tbody td:nth-child(2)"
    assert table.locator(column).all_inner_texts() == places
    head = table.get_by_role("button", name="#")
    head.focus()
    page.keyboard.press("Enter")
    assert table.locator(column).all_inner_texts() == sorted(places)
    assert table.locator("th[aria-sort=ascending]").count() == 1
    head.click()
    assert table.locator(column).all_inner_texts() == sorted(places, reverse=True)
    last = len(inspection.layers) - 1
    target = page.locator(f"#layer-{last}")
    assert target.get_attribute("open") is None
    table.get_by_role("link", name=inspection.layers[last].name).click()
    assert target.get_attribute("open") is not None
    target.locator("[data-channel] svg").first.wait_for()
    page.get_by_role("button", name="中文").click()
    assert "J 增益" in table.inner_text()


# --- the mathematics alone ---


def test_thresholds_and_shares_agree_with_python(browser: Browser) -> None:
    rng = np.random.default_rng(7)
    cases = []
    for _ in range(150):
        classes = int(rng.integers(2, 9))
        size = int(rng.integers(2, 7))
        spread = rng.choice([0.3, 1.0, 4.0])
        values = rng.normal(size=(classes, size)) + spread * rng.normal(size=(classes, 1))
        cases.append((values.round(1) if rng.random() < 0.5 else values).tolist())
    cases += [[[1.0, 1.0], [1.0, 1.0]], [[0.1 + 0.2, 1.0], [0.3, 1.0]]]
    script = (SCRIPTS / "numbers.js").read_text(encoding="utf-8")
    page = browser.new_page()
    found = page.evaluate(
        f"(cases) => {{ {script}; return cases.map((c) => [bestCuts(c).accuracy, "
        "bestCuts(c).cuts, eta2(c)]) }",
        cases,
    )
    page.close()
    for case, (accuracy, cuts, share) in zip(cases, found, strict=True):
        expected, thresholds = best_thresholds(case)
        assert accuracy == expected
        assert cuts == pytest.approx(thresholds, abs=1e-12)
        values = np.array(case)
        total = values.var()
        between = ((values.mean(1) - values.mean()) ** 2).mean()
        assert share == pytest.approx(between / total if total else 0.0, abs=1e-12)


def test_information_agrees_with_python(browser: Browser) -> None:
    layer, counts = digits_inspection().layers[0], digits_inspection().counts
    script = (SCRIPTS / "numbers.js").read_text(encoding="utf-8")
    page = browser.new_page()
    for c in range(4):
        shares = [float(row[c]) for row in layer.firing]
        found = page.evaluate(
            f"([shares, counts]) => {{ {script}; return gateInformation(shares, counts) }}",
            [shares, list(counts)],
        )
        expected = layer.gate_information[c]
        assert math.isclose(found, expected, abs_tol=1e-6)  # rates are kept in float32
    page.close()


def test_sounds_can_be_played(open_page: Open) -> None:
    """Without a network, under the page's policy, named by their class, and silent at first."""
    page = open_page("sound")
    players = page.locator("audio")
    expect(players).to_have_count(2)
    for place, name in enumerate(digits_inspection().classes[:2]):
        player = players.nth(place)
        player.scroll_into_view_if_needed()
        page.wait_for_function("p => p.readyState > 0", arg=player.element_handle())
        assert player.evaluate("p => p.duration") == pytest.approx(0.25)
        assert player.evaluate("p => p.paused && !p.autoplay && p.controls && !p.error")
        label = player.get_attribute("aria-labelledby")
        assert page.locator(f"#{label}").inner_text() == name
    players.first.focus()  # by the keyboard
    assert page.evaluate("() => document.activeElement.tagName") == "AUDIO"
    players.first.evaluate("p => { p.muted = true; return p.play(); }")
    page.wait_for_function("() => document.querySelector('audio').currentTime > 0")
