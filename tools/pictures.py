"""Take the README's pictures from the pages as this version draws them.

    make demo && make pictures

Needs Chromium and the development packages. `--check` only looks whether everything that is to be
photographed is on the pages.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "pictures"
SIZE = {"width": 1280, "height": 800}


def written(folder: Path) -> dict[str, Path]:
    """Write the pages with the commands that a reader would type."""
    pages = {name: folder / f"{name}.html" for name in ("lesson", "live", "diagnosis")}
    example = "examples/net.py"  # pages show the name as it is given
    commands = {
        "lesson": ["explain"],
        "live": ["playground"],
        "diagnosis": ["repair", "--model", f"{example}:stale", "--loader", f"{example}:batches",
                      "--out", str(folder / "repaired.safetensors")],
    }  # fmt: skip
    for name, command in commands.items():
        subprocess.run(
            [sys.executable, "-m", "normscope", *command, "--html", str(pages[name])],
            check=True, stdout=subprocess.DEVNULL, cwd=ROOT,
        )  # fmt: skip
    return pages


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


def take(page: Page, source: Path, target: Path | None, prepare: object = None) -> None:
    """Open a page, bring it into its state, and photograph its first screen."""
    page.goto(source.as_uri())
    page.wait_for_timeout(800)
    if callable(prepare):
        prepare(page)
    assert page.locator("h1").first.inner_text(), f"{source.name} has no heading"
    assert page.locator("main svg, main canvas").count(), f"{source.name} has no picture"
    page.evaluate("document.activeElement.blur()")  # no ring of the keyboard's focus
    page.wait_for_timeout(500)
    if target is not None:
        page.screenshot(path=target)


PREPARED = {"demo": demo, "live": live, "diagnosis": diagnosis}


def main() -> None:
    """Write the pages, and photograph them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="take no picture")
    check = parser.parse_args().check
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        pages = written(Path(place))
        report = ROOT / "runs" / "demo" / "report.html"
        if report.exists():
            pages["demo"] = report
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, device_scale_factor=1)
        for name, source in pages.items():
            target = None if check else OUT / f"{name}.png"
            take(page, source, target, PREPARED.get(name))
            print(f"{name}: {'as expected' if check else target}")
        browser.close()


if __name__ == "__main__":
    main()
