"""Take the README's pictures from the pages as this version draws them.

    make pictures

Needs Chromium and the development packages. With each picture the tool writes down what is on it:
headings, controls, words of the drawing. `--check` takes no picture and compares that with what the
pages show now, up to their numbers.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "pictures"
STRUCTURE = OUT / "structure.json"
SIZE = {"width": 1280, "height": 800}
NUMBER = r"[-−+]?\d+(,\d{3})*(\.\d+)?"
# the texts that lie inside the window, in the order of the page, and how many drawings do
SEEN = """() => {
  const inside = (element) => {
    const box = element.getBoundingClientRect();
    return element.checkVisibility() && box.width && box.bottom > 0 && box.top < innerHeight;
  };
  const texts = "h1, h2, h3, nav a, button, label, legend, svg text, main p";
  const found = [...document.querySelectorAll(texts)].filter(inside);
  const drawings = [...document.querySelectorAll("main svg, main canvas")].filter(inside);
  return {texts: found.map((element) => element.textContent), drawings: drawings.length};
}"""


def written(folder: Path) -> dict[str, Path]:
    """Write the pages with the commands that a reader would type."""
    example = "examples/net.py"  # pages show the name as it is given
    data = ["--model", f"{example}:stale", "--loader", f"{example}:batches"]
    run = ROOT / "runs" / "demo"
    if not (run / "run.json").exists():
        run = folder / "demo"
        line = re.search(r"normscope (train .*) --out", (ROOT / "Makefile").read_text("utf-8"))
        assert line is not None, "`make demo` trains"
        _normscope(*shlex.split(line[1]), "--out", str(run))
    commands = {
        "demo": ["report", str(run)],
        "live": ["playground"],
        "diagnosis": ["repair", *data, "--out", str(folder / "repaired.safetensors")],
    }
    pages = {name: folder / f"{name}.html" for name in commands}
    for name, command in commands.items():
        _normscope(*command, "--html", str(pages[name]))
    return pages


def _normscope(*arguments: str) -> None:
    command = [sys.executable, "-m", "normscope", *arguments, "--lang", "en"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def demo(page: Page) -> None:
    """Show the standardised values of the channel that tells most."""
    page.get_by_role("slider", name="Step").first.fill("1")


def diagnosis(page: Page) -> None:
    """Go to the channels that differ."""
    page.get_by_role("link", name="Channels").first.click()


def live(page: Page) -> None:
    """Let only gamma and beta learn, to the end."""
    page.evaluate("location.hash = '#net=lesson_affine_only'")
    page.reload()
    page.wait_for_timeout(500)
    page.keyboard.press("3")
    page.wait_for_timeout(8000)


PREPARED = {"demo": demo, "live": live, "diagnosis": diagnosis}


def structure(page: Page, name: str, source: Path) -> dict[str, Any]:
    """Open a page, bring it into its state, and say what its first screen shows."""
    # an animation would be photographed half-way; the live network is one
    page.emulate_media(reduced_motion="no-preference" if name == "live" else "reduce")
    page.goto(source.as_uri())
    page.wait_for_timeout(800)
    if name in PREPARED:
        PREPARED[name](page)
    page.evaluate("document.activeElement.blur()")  # no ring of the keyboard's focus
    page.wait_for_timeout(500)
    seen = page.evaluate(SEEN)
    texts = (" ".join(re.sub(NUMBER, "#", text).split()) for text in seen["texts"])
    return {"drawings": seen["drawings"], "texts": sorted({text for text in texts if text})}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Compare what pictures were taken of with what the pages show, one text per difference."""
    found = [f"{name}: there is no such picture" for name in before.keys() ^ now.keys()]
    for name in sorted(before.keys() & now.keys()):
        old, new = before[name], now[name]
        if old["drawings"] != new["drawings"]:
            found.append(f"{name}: {old['drawings']} drawings, now {new['drawings']}")
        for word, texts in (("gone", (old, new)), ("new", (new, old))):
            left = set(texts[0]["texts"]) - set(texts[1]["texts"])
            found += [f"{name}: {word}: {text}" for text in sorted(left)]
    return found


def main() -> None:
    """Write the pages, and photograph them or compare them with the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="take no picture, compare")
    check = parser.parse_args().check
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    OUT.mkdir(exist_ok=True)
    now: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        pages = written(Path(place))
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, device_scale_factor=1)
        for name, source in pages.items():
            now[name] = structure(page, name, source)
            if not check:
                page.screenshot(path=OUT / f"{name}.png")
                print(OUT / f"{name}.png")
        browser.close()
    if not check:
        text = json.dumps(now, indent=1, ensure_ascii=False)
        STRUCTURE.write_text(text + "\n", encoding="utf-8")
        return
    found = differences(json.loads(STRUCTURE.read_text(encoding="utf-8")), now)
    print("\n".join(found) or "the pictures show what this version draws")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
