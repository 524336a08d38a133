"""How fast the live network is in headless Chromium: steps, pictures, answers.

    python benchmarks/playground.py

Steps per second of the default network (2 hidden layers of 8 units, batch norm, batches of 32 from
two moons) with nothing drawn; pictures per second while it plays at 3 steps per picture, all of the
first screen drawn, and with the units in view; and how long the page takes to answer an input:
from the event to the end of the work that it causes, layout and the next picture included.
"""

import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Page
from tests.report.chromium import chromium
from tests.report.network import script

from normscope.report import playground

STEPS = """() => { %s;
  const run = new Experiment(DEFAULTS, null);
  run.train(2000);
  const rates = [];
  for (let i = 0; i < 7; i++) {
    const start = performance.now();
    run.train(4000);
    rates.push(4000 / (performance.now() - start) * 1000);
  }
  return rates;
}"""

PICTURES = """() => new Promise((done) => {
  let [count, start] = [0, performance.now()];
  const steps = () => Number(document.querySelector('[data-net=steps]').dataset.value);
  const first = steps();
  const tick = () => {
    count++;
    const took = performance.now() - start;
    if (took < 3000) return requestAnimationFrame(tick);
    done([count / took * 1000, (steps() - first) / took * 1000]);
  };
  requestAnimationFrame(tick);
})"""

ANSWER = """(act) => new Promise((done) => {
  const start = performance.now();
  const [query, event, change] = act;
  const element = document.querySelector(query);
  if (change !== null) element.value = change;
  if (event === 'click') element.click();
  else element.dispatchEvent(new Event(event, { bubbles: true }));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
})"""

ACTS = {
    "a lesson": ["[data-lesson=affine]", "click", None],
    "step": ["[data-net=step]", "click", None],
    "measure again": ["[data-net=again]", "click", None],
    "another norm": ["[data-setting=norm]", "change", "ghost"],
    "digits": ["[data-setting=data]", "change", "digits"],
    "four layers": ["[data-net=layers]", "input", "4"],
    "batch size": ["[data-setting=batch]", "input", "1"],
    "a unit": [".net-unit:last-child", "click", None],
}


def answers(page: Page) -> dict[str, float]:
    found = {}
    for name, act in ACTS.items():
        page.goto(page.url.split("#")[0])
        page.reload()
        page.wait_for_selector("html[data-started]")
        page.wait_for_timeout(300)
        found[name] = statistics.median(page.evaluate(ANSWER, act) for _ in range(5))
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        engine = browser.new_page()
        rates = engine.evaluate(STEPS % script())
        print(f"steps per second, nothing drawn: {statistics.median(rates):,.0f}")
        engine.close()
        path = Path(folder) / "live.html"
        path.write_text(playground.page("en"), encoding="utf-8")
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(path.as_uri() + "#net=seed_1")
        page.wait_for_selector("html[data-started]")
        page.locator("[data-net=play]").click()
        for name, top in (("first screen", 0), ("units in view", 900)):
            page.evaluate("(top) => scrollTo(0, top)", top)
            pictures, steps = page.evaluate(PICTURES)
            print(f"pictures per second, {name}: {pictures:.0f} ({steps:.0f} steps per second)")
        for name, took in answers(page).items():
            print(f"answer to {name}: {took:.0f} ms")


if __name__ == "__main__":
    main()
