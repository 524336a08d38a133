"""The page in which a small network trains, in Chromium, from a file and without a network."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page

from normscope.cli import main
from normscope.report.messages import catalogue
from normscope.report.playground import SCRIPTS, digits, lessons, page
from tests.report.chromium import chromium
from tests.report.network import script
from tests.report.test_browser import VISIBLE, move

Open = Callable[..., Page]
# what stands in Chinese sentences as it is, or alone
SAME = r"train\(\)|eval\(\)|ReLU|XOR|SGD|ghost|normscope|English|PyTorch|Enter|Delete"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("playground") / "live.html"
    path.write_text(page("en"), encoding="utf-8")
    return path


@pytest.fixture
def open_page(browser: Browser, file: Path) -> Iterator[Open]:
    """Open the page offline; afterwards there was no console message and no request."""
    complaints: list[str] = []
    contexts = []

    def start(state: str = "", **options: Any) -> Page:
        options = {"viewport": {"width": 1280, "height": 900}} | options
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda m: complaints.append(f"console {m.type}: {m.text}"))
        page.on("pageerror", lambda e: complaints.append(f"error: {e}"))
        address = file.as_uri()
        page.on(
            "request",
            lambda r: None if r.url.startswith(address) else complaints.append(f"request: {r.url}"),
        )
        page.goto(f"{address}#{state}")
        page.wait_for_selector("html[data-started]")
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []


def part(page: Page, name: str) -> Locator:
    return page.locator(f"[data-net='{name}']")


def value(page: Page, name: str) -> float:
    return float(part(page, name).get_attribute("data-value") or "nan")


def standing(page: Page) -> dict[str, float]:
    """Where the run stands, in the numbers that the page shows."""
    names = ("steps", "accuracy-train", "accuracy-eval", "loss-train", "loss-eval")
    return {name: value(page, name) for name in names}


def setting(page: Page) -> dict[str, Any]:
    return dict(
        page.evaluate(
            "() => Object.fromEntries([...document.querySelectorAll('[data-setting]')].map((e) =>"
            " [e.dataset.setting, e.type === 'checkbox' ? e.checked : e.value]))"
        )
    )


def state(page: Page) -> str:
    """The state that the address will have in a moment."""
    return f"net={page.locator('#net').get_attribute('data-state')}"


def test_a_lesson_plays_to_its_end_as_the_engine_does(browser: Browser, open_page: Open) -> None:
    page = open_page(reduced_motion="reduce")
    engine = browser.new_page()
    for lesson in (lessons()[2], lessons()[5]):
        page.locator(f"[data-lesson='{lesson['name']}']").click()
        page.wait_for_function(
            "(steps) => document.querySelector('[data-net=steps]').dataset.value === String(steps)"
            " && document.querySelector('[data-net=play]').ariaPressed === 'false'",
            arg=lesson["steps"],
        )
        run = engine.evaluate(f"(lesson) => {{ {script()}; return playLesson(lesson, 1) }}", lesson)
        assert value(page, "accuracy-train") == run["train"]
        assert value(page, "accuracy-eval") == run["eval"]
    assert value(page, "accuracy-eval") < 0.75
    part(page, "again").click()
    assert value(page, "accuracy-eval") == run["again"] > 0.97
    engine.close()


def test_play_pause_step_and_reset(open_page: Open) -> None:
    page = open_page()
    start = standing(page)
    part(page, "step").click()
    one = standing(page)
    assert one["steps"] == 1
    assert one["loss-train"] != start["loss-train"]
    part(page, "play").click()
    page.wait_for_function("() => document.querySelector('[data-net=steps]').dataset.value > 30")
    page.keyboard.press("Tab")  # a key press on the button itself would press it
    part(page, "play").click()
    stopped = standing(page)
    assert part(page, "play").inner_text() == "Play"
    page.wait_for_timeout(150)
    assert standing(page) == stopped
    part(page, "reset").click()
    assert standing(page) == start
    part(page, "step").click()
    assert standing(page) == one
    # the same by keys
    page.locator("h1").click()
    page.keyboard.press("r")
    assert standing(page) == start
    page.keyboard.press("s")
    assert standing(page) == one
    page.keyboard.press("Space")
    page.wait_for_function("() => document.querySelector('[data-net=steps]').dataset.value > 10")
    page.keyboard.press("Space")
    assert part(page, "play").get_attribute("aria-pressed") == "false"
    # begun twice, it still makes three steps per picture
    for _ in range(3):
        page.locator("[data-lesson=affine]").click()
    counted = page.evaluate(
        """() => new Promise((done) => {
          const steps = () => Number(document.querySelector('[data-net=steps]').dataset.value);
          const [first, left] = [steps(), { frames: 12 }];
          const tick = () => (--left.frames ? requestAnimationFrame(tick) : done(steps() - first));
          requestAnimationFrame(tick);
        })"""
    )
    assert 0 < counted <= 3 * 13
    part(page, "play").click()
    part(page, "seed").fill("5")
    part(page, "seed").press("Enter")
    pressed = page.locator("[data-lesson=affine]").get_attribute("aria-pressed")
    assert (pressed, value(page, "steps")) == ("true", 0)
    page.locator("h1").click()
    page.keyboard.press("7")
    assert setting(page)["norm"] == "per_class"
    page.keyboard.press("Space")
    told = part(page, "wrong").inner_text()
    assert "wrong label" in told


def test_the_address_brings_everything_back(open_page: Open) -> None:
    page = open_page()
    for name, chosen in (("norm", "conditional"), ("learns", "affine"), ("data", "xor")):
        page.locator(f"[data-setting={name}]").select_option(chosen)
    for name, at in (("batch", 3), ("mix", 4), ("lr", 3), ("running", 2), ("momentum", 1)):
        move(page.locator(f"[data-setting={name}]"), at)
    page.locator("[data-setting=shared]").check()
    move(part(page, "layers"), 3)
    move(part(page, "widths").locator("input").nth(1), 5)
    part(page, "seed").fill("7")
    part(page, "seed").press("Enter")
    assert page.locator(".net-unit").count() == 8 + 5 + 8
    for _ in range(3):
        part(page, "step").click()
    written = "(state) => new URLSearchParams(location.hash.slice(1)).get('net') === state"
    page.wait_for_function(written, arg=state(page).removeprefix("net="))
    again = open_page(state(page))
    assert setting(again) == setting(page)
    assert setting(page)["domains"] is True
    assert standing(again) == standing(page)
    assert standing(page)["steps"] == 3
    assert again.locator(".net-unit").count() == 21
    again.evaluate("() => { location.hash = 'net=lesson_trap' }")
    again.wait_for_function(
        "() => document.querySelector('[data-setting=norm]').value === 'per_class'"
    )
    # what is wrong in an address stands as it was
    broken = open_page(
        "net=norm_evil*lr_NaN*hidden_9-99*seed_-1*steps_x*data_own*points_1*__proto___1"
    )
    assert setting(broken) == setting(open_page("net=lr_0.1"))


def test_points_are_drawn_moved_and_removed(open_page: Open) -> None:
    page = open_page("net=data_blobs")
    canvas = part(page, "surface-eval")
    box = canvas.bounding_box()
    assert box is not None

    def points(shown: Page) -> int:
        return len(re.findall(r"points_(\d*)", state(shown))[0]) // 7

    page.mouse.click(box["x"] + 20, box["y"] + 20)
    assert setting(page)["data"] == "own"
    assert points(page) == 400  # the oldest makes room
    part(page, "brush").get_by_role("button").last.click()
    page.mouse.click(box["x"] + 20, box["y"] + 20)
    assert points(page) == 399
    part(page, "brush").get_by_role("button").nth(2).click()
    page.mouse.click(box["x"] + 20, box["y"] + 20)
    assert points(page) == 400
    assert value(page, "steps") == 0  # a third class is another network
    before = state(page)
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 60, steps=3)
    page.mouse.up()
    assert points(page) == 400
    assert state(page) != before
    # by keys: a cross that moves, a point where it is, and away again
    canvas.focus()
    for key in ("ArrowLeft", "ArrowUp", "Delete"):
        page.keyboard.press(key)
    assert points(page) == 400  # none is near
    for key in ("ArrowLeft", "Enter", "Delete"):
        page.keyboard.press(key)
    assert points(page) == 399
    again = open_page(state(page))
    assert points(again) == 399
    assert standing(again)["loss-eval"] == pytest.approx(standing(page)["loss-eval"], rel=0.05)


def test_every_norm_and_every_data_set_train(open_page: Open) -> None:
    page = open_page()
    chance = {"three": 1 / 3, "digits": 0.1}
    for name in ("circles", "spiral", "xor", "blobs", "three", "digits"):
        page.locator("[data-setting=data]").select_option(name)
        part(page, "stride").select_option("50")
        page.evaluate("document.activeElement.blur()")
        part(page, "play").click()
        page.wait_for_function(
            "() => document.querySelector('[data-net=steps]').dataset.value >= 300"
        )
        part(page, "play").click()
        assert value(page, "accuracy-train") > chance.get(name, 0.5) + 0.1, name
    page.locator("[data-setting=data]").select_option("moons")
    for name in ("none", "noaffine", "per_class", "ghost", "conditional", "layer"):
        page.locator("[data-setting=norm]").select_option(name)
        for _ in range(2):
            part(page, "step").click()
        assert value(page, "loss-train") > 0
        assert part(page, "again").is_disabled() is (name in ("none", "layer"))


def test_both_languages_and_every_width(open_page: Open) -> None:
    page = open_page("net=lesson_trap*steps_50")
    for language, chosen in (("English", "en"), ("中文", "zh")):
        page.get_by_role("button", name=language).click()
        for name in ("trap", "mixed"):
            page.locator(f"[data-lesson={name}]").click()
            part(page, "play").click()
            texts = [t.strip() for t in page.evaluate(VISIBLE) if t.strip()]
            chinese = [t for t in texts if re.search("[一-鿿]", t) and t != "中文"]
            if chosen == "en":
                assert chinese == []
            else:
                left = [re.sub(SAME, "", t) for t in texts if t not in chinese]
                assert [t for t in left if re.search("[A-Za-z]{3,}", t)] == []
        for width in (320, 390, 768, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(CLIPPED) == []


# elements with text of their own that does not fit them, unless they scroll
CLIPPED = """() => [...document.querySelectorAll('.net *')].filter((e) => {
  if (!e.clientWidth || e.closest('select, .net-lessons, .net-hidden, svg')) return false;
  if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) return false;
  if (getComputedStyle(e).display === 'inline') return false;
  const box = e.getBoundingClientRect();
  return e.scrollWidth > e.clientWidth + 1 || box.right > innerWidth + 1 || box.left < -1;
}).map((e) => `${e.tagName} ${e.className} ${e.textContent.slice(0, 40)}`)"""


def test_pictures_are_drawn_and_have_names(open_page: Open) -> None:
    page = open_page("net=lesson_mixed*steps_200")
    colours = """(name) => { const c = document.querySelector(`[data-net="${name}"]`);
      const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
      return new Set(Array.from({ length: d.length / 4 }, (_, i) => d.slice(4 * i, 4 * i + 4).join())).size }"""
    # what is not on the screen is drawn a little later; 300 is the width of a canvas that never was
    page.wait_for_function(
        "() => document.querySelector('[data-net=detail]').width !== 300"
        " && document.querySelector('[data-net=mean]').width !== 300"
    )
    names = ("surface-train", "surface-eval", "accuracy", "loss", "detail", "affine", "mean")
    light = {name: page.evaluate(colours, name) for name in names}
    assert min(light.values()) > 5, light
    pixels = "() => document.querySelector('[data-net=surface-eval]').toDataURL()"
    before = page.evaluate(pixels)
    page.locator("#theme").click()
    page.wait_for_timeout(100)
    assert page.evaluate(pixels) != before
    assert page.evaluate(
        "() => [...document.querySelectorAll('.net canvas')].every("
        "(e) => e.getAttribute('aria-label'))"
    )
    assert page.evaluate(
        "() => [...document.querySelectorAll('.net :is(input, select)')].every("
        "(e) => e.labels.length)"
    )
    assert page.evaluate(
        "() => [...document.querySelectorAll('.net button')].every("
        "(e) => e.hidden || e.textContent.trim() || e.getAttribute('aria-label'))"
    )


def test_the_command_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "live.html"
    monkeypatch.setattr(
        sys, "argv", ["normscope", "playground", "--html", str(where), "--lang", "zh"]
    )
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code in (0, None)
    assert "批量归一化" in where.read_text(encoding="utf-8")
    assert where.stat().st_size < 400_000
    monkeypatch.setattr(
        sys,
        "argv",
        ["normscope", "playground", "--html", str(tmp_path / "none" / "a.html"), "--lang", "xx"],
    )
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2
    assert "--lang" in capsys.readouterr().err


def test_every_sentence_that_the_scripts_say_is_there() -> None:
    folder = Path(__file__).parents[2] / "src/normscope/report/assets/scripts/network"
    text = "\n".join((folder / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    asked = set(re.findall(r'say\(\s*"(network\.[\w.]+)"', text))
    assert len(asked) > 15
    assert asked <= set(catalogue())
    for lesson in lessons():
        claim = catalogue()[f"network.lesson.{lesson['name']}.claim"]
        for language in ("en", "zh"):
            for name in re.findall(r"\{(\w+)\}", claim[language]):
                assert re.sub("_(low|high)$", "", name) in lesson["measured"]
    packed = digits()
    assert len(packed["pixels"]) == 64 * len(packed["labels"]) == 64 * 300


def test_scripts_are_typed() -> None:
    """As `make scripts`, where the TypeScript compiler is installed."""
    compiler = shutil.which("tsc")
    if compiler is None:
        pytest.skip("no tsc: npm install -g typescript, or run `make scripts`")
    project = Path(__file__).parents[2] / "tools/tsconfig.json"
    done = subprocess.run(
        [compiler, "-p", str(project)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_documentation_has_the_measured_numbers() -> None:
    text = (Path(__file__).parents[2] / "docs/playground.md").read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if row.startswith("| ") and "---" not in row][1:]
    assert len(rows) == len(lessons())
    for row, lesson in zip(rows, lessons(), strict=True):
        numbers = [float(n) for n in re.findall(r"(?<![\w.])\d?\.\d+", row)]
        for claim in lesson["claims"]:
            median = lesson["measured"][claim["of"]][1]
            assert min(abs(n - median) for n in numbers) < 0.00051, (row, claim)
