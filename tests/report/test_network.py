"""The network that trains in the page: equal to PyTorch, and its ready lessons hold."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page
from torch import Tensor

from normscope.layers import ConditionalBatchNorm1d
from normscope.report.playground import lessons
from tests.report.chromium import chromium
from tests.report.network import Batch, Reference, script

SHAPE = {"inputs": 2, "hidden": [8, 5, 6], "classes": 3, "domains": 2, "ghost": 7, "eps": 1e-5}
RATE = {"lr": 0.1, "momentum": 0.9, "learns": "all"}
RUNNING = 0.1

# fifty steps of the page's network: what it computed before each of them, and both modes at the end
FIFTY = """([shape, start, batches, probe, rate, running]) => {
  const net = new Network(shape, generator(1));
  start.forEach((values, i) => net.parameters[i].value.set(values));
  const typed = (b) => ({ x: Float64Array.from(b.x.flat()), n: b.x.length,
    labels: Int32Array.from(b.labels), domains: Int32Array.from(b.domains) });
  const rows = (l) => Array.from(l.slice(0, probe.x.length * shape.classes));
  const steps = batches.map((raw) => {
    const batch = typed(raw);
    const loss = net.step(batch, rate, running);
    return {
      loss,
      gradients: net.parameters.map((p) => Array.from(p.grad)),
      running: net.layers.flatMap((l) => l.tracks ? [[...l.runningMean], [...l.runningVar]] : []),
      values: net.parameters.map((p) => Array.from(p.value)),
      train: rows(net.forward(typed(probe), "batch")),
      eval: rows(net.forward({ ...typed(probe), labels: null }, "stored")),
      told: rows(net.forward(typed(probe), "stored")),
    };
  });
  return steps;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def engine(browser: Browser) -> Iterator[Page]:
    """An empty page that knows the engine."""
    page = browser.new_page()
    names = "generator, Network, Experiment, Sampler, DEFAULTS, makePoints, playLesson"
    page.evaluate(f"() => {{ {script()}; Object.assign(globalThis, {{ {names} }}) }}")
    yield page
    page.close()


def batches(rng: np.random.Generator, count: int, size: int = 26) -> list[Batch]:
    """Batches that hold every class and domain at least twice."""
    made = []
    for _ in range(count):
        labels = rng.permutation(np.arange(size) % 3)
        domains = rng.permutation(np.arange(size) % 2)
        x = rng.normal(size=(size, 2)) + 0.8 * labels[:, None] - 0.5 * domains[:, None]
        made.append({"x": x.tolist(), "labels": labels.tolist(), "domains": domains.tolist()})
    return made


def outputs(net: Reference, probe: Batch) -> dict[str, list[float]]:
    """Both modes on the probe; the running statistics stay."""
    x = torch.tensor(probe["x"], dtype=torch.float64)
    kept = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        found = {"train": net(x, net.groups(probe)).flatten().tolist()}
        net.load_state_dict(kept)
        net.eval()
        for name, told in (("eval", False), ("told", True)):
            found[name] = net(x, net.groups(probe, told)).flatten().tolist()
    net.train()
    return found


def flat(p: Tensor) -> list[float]:
    found: list[float] = p.detach().flatten().tolist()
    return found


def gradient(p: Tensor) -> list[float]:
    return flat(torch.zeros_like(p) if p.grad is None else p.grad)


def same(found: Any, expected: Any, what: str) -> None:
    """Each table to 1e-9 of its largest entry."""
    found, expected = np.asarray(found), np.asarray(expected)
    size = max(1e-4, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * size, err_msg=what)


def compare(engine: Page, net: Any, shape: dict[str, Any], made: list[Batch], probe: Batch) -> None:
    start = net.in_order(flat)
    steps = engine.evaluate(FIFTY, [shape, start, made, probe, RATE, RUNNING])
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE["lr"], momentum=RATE["momentum"])
    for t, (step, batch) in enumerate(zip(steps, made, strict=True)):
        optimizer.zero_grad()
        x = torch.tensor(batch["x"], dtype=torch.float64)
        loss = torch.nn.functional.cross_entropy(
            net(x, net.groups(batch)), torch.tensor(batch["labels"])
        )
        loss.backward()
        optimizer.step()
        same(step["loss"], loss.item(), f"loss {t}")
        for name, expected in (
            ("gradients", net.in_order(gradient)),
            ("values", net.in_order(flat)),
            ("running", net.running()),
        ):
            assert len(step[name]) == len(expected)
            for i, (a, b) in enumerate(zip(step[name], expected, strict=True)):
                same(a, b, f"{name} {i}, step {t}")
        for name, expected in outputs(net, probe).items():
            same(step[name], expected, f"{name}, step {t}")
    assert steps[-1]["loss"] < steps[0]["loss"]


@pytest.mark.parametrize(
    ("norm", "shared"),
    [
        *((n, False) for n in ("none", "batch", "noaffine", "ghost", "layer")),
        *((n, s) for n in ("per_class", "conditional") for s in (False, True)),
    ],
)
def test_fifty_steps_are_those_of_torch(engine: Page, norm: str, shared: bool) -> None:
    rng = np.random.default_rng(3)
    shape = SHAPE | {"norm": norm, "sharedAffine": shared}
    compare(engine, Reference(shape), shape, batches(rng, 50), batches(rng, 1, 40)[0])


class Singles(Reference):
    """The reference with normscope's own layer, which says what a group of one sample does."""

    def _norm(self, units: int, shape: dict[str, Any]) -> torch.nn.Module:
        return ConditionalBatchNorm1d(
            units, shape["classes"], missing="pooled", dtype=torch.float64
        )

    def in_order(self, take: Any) -> list[list[float]]:
        found = []
        for linear, norm in zip(self.linears, self.norms, strict=True):
            found += [take(p) for p in (linear.weight, linear.bias, norm.weight, norm.bias)]
        return [*found, take(self.head.weight), take(self.head.bias)]

    def running(self) -> list[list[float]]:
        return [flat(t) for n in self.norms for t in (n.running_mean, n.running_var)]


def test_a_group_of_one_sample_is_filled_up(engine: Page) -> None:
    """Batches in which classes are alone or absent, against normscope's layer."""
    rng = np.random.default_rng(5)
    made = batches(rng, 12, 7)
    alone, absent = [0, 0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 1, 1, 1]
    # the first has every class twice: the layer warns of one that it is asked for and never saw
    for i, batch in enumerate(made[1:]):
        batch["labels"] = rng.permutation(alone if i % 3 else absent).tolist()
    shape = SHAPE | {"norm": "per_class"}
    compare(engine, Singles(shape), shape, made, batches(rng, 1, 12)[0])


# --- the ready lessons ---


@pytest.mark.parametrize("lesson", lessons(), ids=lambda lesson: lesson["name"])
def test_the_claims_of_a_lesson_hold_over_twenty_seeds(
    engine: Page, lesson: dict[str, Any]
) -> None:
    runs = engine.evaluate(
        "(lesson) => Array.from({ length: 20 }, (_, i) => playLesson(lesson, i + 1))", lesson
    )
    for claim in lesson["claims"]:
        found = np.array([run[claim["of"]] for run in runs])
        holds = found <= claim["at_most"] if "at_most" in claim else found >= claim["at_least"]
        assert holds.sum() >= claim["seeds"], (claim, sorted(found))
    for of, shown in lesson["measured"].items():
        found = np.array([run[of] for run in runs])
        now = [found.min(), float(np.median(found)), found.max()]
        # the last digits of exp and log are the browser's own
        np.testing.assert_allclose(now, shown, atol=0.03, err_msg=of)
