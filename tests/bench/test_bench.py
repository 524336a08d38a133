"""The benchmark: its arithmetic, its check, its peers and its record; no test depends on a time."""

import io
import json
import math
import os
import string
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import normscope
from normscope import cli
from normscope.bench import (
    accuracy,
    allocator,
    cases,
    check,
    measure,
    measuring,
    models,
    peers,
    session,
    warm,
)
from normscope.errors import InputError, KernelError
from normscope.kernels import cpu
from normscope.records import Bench, Setting, Spread
from normscope.records.bench import Layout
from normscope.report import html, terminal
from normscope.report.bench import document
from normscope.report.messages import LANGUAGES, Lang, catalogue

TINY = (
    Setting(part="shapes", shape=(8, 4, 3, 3), threads=1),
    Setting(part="groups", shape=(8, 4, 3, 3), groups=4, threads=1),
    Setting(part="network", shape=(2, 4, 5, 5), threads=1),
    Setting(part="models", shape=(2, 64), model="mlp", threads=1),
    Setting(part="models", shape=(1, 64), model="mlp", training=False, threads=1),
    Setting(part="inference", shape=(8, 4, 3, 3), training=False, threads=1),
    Setting(part="accuracy", shape=(64, 2, 8, 8), threads=1),
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small settings, no compiler, no check."""
    names = peers.names
    monkeypatch.setattr(cases, "settings", lambda only, quick: list(TINY))
    monkeypatch.setattr(
        peers, "names", lambda s, quick: [n for n in names(s, quick=quick) if "compiled" not in n]
    )
    monkeypatch.setattr(session, "check_kernel", lambda: 1)
    monkeypatch.setattr(measuring, "SECONDS", 0.0)


@pytest.fixture
def record(tiny: None) -> Bench:
    return measure(repeats=3)


def test_a_run_is_whole_and_its_record_goes_through_json(record: Bench) -> None:
    assert record.complete
    assert [race.setting for race in record.races] == list(TINY[:6])
    assert len(record.accuracies) == len(cases.RATIOS)
    for race in record.races:
        assert {t.peer for t in race.timings} >= {"normscope", "torch"}
        for t in race.timings:
            assert t.total.low <= t.total.median <= t.total.high
            assert t.total.repeats == 3
            assert t.speed == pytest.approx(race.of("torch").total.median / t.total.median)
    read = Bench.from_json(record.to_json())
    assert read.to_json() == record.to_json()
    assert read.races == record.races
    with pytest.raises(InputError, match="no bench record"):
        Bench.from_json('{"kind": "run"}')


def test_the_arithmetic() -> None:
    def ms(value: float) -> Spread:
        return Spread(median=value, low=value, high=value, repeats=1)

    found = measuring.timing("x", (ms(4), ms(6), ms(10)), ms(2), ms(30), 1_000_000, None)
    assert found.speed == 3
    assert found.gb_per_s == pytest.approx(0.5)  # 5 MB in 10 ms
    assert found.share_forward == 0.5  # as the copy: a read and a write, in 2 of 4 ms
    assert found.share_backward == 0.5  # three for two: 3 of 6 ms
    assert found.share == 0.5
    three = measuring.spread([0.001, 0.002, 0.009])
    assert (three.median, three.low, three.high) == pytest.approx((2, 1.5, 5.5))


def test_the_peak_is_that_of_what_is_alive_together() -> None:
    def forward() -> torch.Tensor:
        first = torch.zeros(250_000)  # 1 MB
        second = first + 1
        del first
        return second + 1

    peer = peers.Peer(forward, lambda found: None)
    assert measuring.peak_memory(peer) == pytest.approx(2, abs=0.01)
    assert measuring.peak_memory(peer._replace(in_torch=False)) is None


def test_all_ways_to_group_compute_the_same() -> None:
    setting = Setting(part="groups", shape=(8, 3, 5, 4), groups=4, threads=1)
    x, _ = cases.tensors(setting, 2.0)
    by_chunk = torch.arange(8).reshape(2, 4).T.reshape(-1)  # chunk loops want sorted samples
    found = {
        "normscope": peers._module("normscope", setting)(x),
        "mask_loop": peers._module("mask_loop", setting)(x),
        "reshape": peers._module("reshape", setting)(x),
        "vectorised": peers.vectorised(setting)(x),
        "chunk_loop": peers._module("chunk_loop", setting)(x[by_chunk])[by_chunk.argsort()],
    }
    values = x.detach().double().numpy()
    for k in range(4):
        group = values[k::4]
        axes = (0, 2, 3)
        expected = (group - group.mean(axes, keepdims=True)) / np.sqrt(
            group.var(axes, keepdims=True) + peers.EPS
        )
        for name, y in found.items():
            np.testing.assert_allclose(y.detach().numpy()[k::4], expected, atol=1e-5, err_msg=name)


def test_errors_are_found() -> None:
    errors = {e.peer: e for e in accuracy.accuracy(TINY[6], 100.0).errors}
    assert 0 < errors["normscope"].var < 1e-6
    assert errors["normscope"].mean < 1e-6
    off = accuracy._error(torch.tensor([1.001, 1.0]).double(), torch.ones(2).double())
    assert off == pytest.approx(1e-3, rel=1e-3)
    nothing = accuracy._error(torch.ones(1).double(), torch.zeros(1).double())
    assert math.isnan(nothing)


def test_a_broken_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forms = [check.Form(torch.float32, None, residual=False, mask=False, groups=1)]
    monkeypatch.setattr(check, "FORMS", forms)
    assert check.check_kernel() == 3
    right = cpu.batch_norm
    monkeypatch.setattr(cpu, "batch_norm", lambda *args: right(*args) * 1.001)
    with pytest.raises(KernelError, match=r"differs from its definition by .* nothing is reported"):
        check.check_kernel()
    with pytest.raises(KernelError):
        measure(["sweep"], quick=True)


def test_the_check_covers_every_choice() -> None:
    assert {form.dtype for form in check.FORMS} == set(cpu.DTYPES)
    assert {form.act for form in check.FORMS} == {None, "relu", "leaky_relu", "silu"}


def test_interrupted_it_keeps_what_is_finished(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = session.race

    def second_time(setting: Setting, *args: Any, **kwargs: Any) -> Any:
        if setting is TINY[1]:
            raise KeyboardInterrupt
        return whole(setting, *args, **kwargs)

    monkeypatch.setattr(session, "race", second_time)
    record = measure(repeats=3)
    assert not record.complete
    assert [race.setting for race in record.races] == [TINY[0]]
    done = CliRunner().invoke(cli.app, ["bench", "--repeats", "3", "--lang", "en"])
    assert done.exit_code == 130
    assert "8,4,3,3" in done.output
    assert "Interrupted" in done.output


def test_json_on_the_command_line(tiny: None) -> None:
    done = CliRunner().invoke(cli.app, ["bench", "--json", "--repeats", "3"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["kind"] == "bench"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--only", "speed"], "--only is 'speed'"), (["--repeats", "2"], "--repeats is 2")],
)
def test_bad_input_is_refused_before_anything_runs(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli.app, ["bench", *arguments])
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)


def test_settings_are_those_of_the_parts() -> None:
    assert {s.part for s in cases.settings()} == set(cases.PARTS)
    assert len({s.shape for s in cases.settings(["sweep"])}) == 40
    assert len(cases.settings(["sweep"])) == 40 + 24, "what has positions, in channels_last too"
    assert max(s.groups for s in cases.settings(["groups"])) == 1024
    for s in cases.settings():
        assert s.shape[0] % s.groups == 0


@pytest.mark.parametrize(
    ("name", "layout"),
    [("mlp", "contiguous"), ("mobilenet", "channels_last"), ("resnet18", "contiguous")],
)
def test_whole_networks_are_fused_and_step_as_torchs_do(name: str, layout: Layout) -> None:
    shape = (2, 64) if name == "mlp" else (2, 3, 32, 32)
    setting = Setting(part="models", shape=shape, layout=layout, model=name, threads=1)
    mine, torchs = (models.built(setting, fused=fused) for fused in (True, False))
    assert any(isinstance(m, normscope.layers.batch.Normalizer) for m in mine.modules())
    assert not any(type(m) is torch.nn.ReLU for m in mine.children()), "all taken in"
    x, _ = cases.tensors(setting)
    for _ in range(2):
        torch.testing.assert_close(mine(x), torchs(x), rtol=1e-3, atol=1e-3)
    mine, torchs = mine.eval(), torchs.eval()
    torch.testing.assert_close(mine(x), torchs(x), rtol=1e-3, atol=1e-3)
    forward, backward = models.step(setting, fused=True)
    first = float(forward().detach())
    for _ in range(8):
        backward(forward())
    assert float(forward().detach()) != first, "it steps"


@pytest.mark.parametrize("lang", LANGUAGES)
def test_text_and_page(record: Bench, lang: Lang) -> None:
    hostile = "</script><script>alert(1)</script>"
    race = replace(record.races[0], absent={"flax": hostile})
    record = replace(record, races=(race, *record.races[1:]))
    page = html.page(document(record), lang)
    assert page.startswith("<!DOCTYPE html>")
    assert hostile not in page
    console = Console(width=400, record=True, file=io.StringIO())
    terminal.show(document(record), lang, console)
    text = console.export_text()
    assert "8,4,3,3" in text
    assert hostile in text
    for word in {"en": ("quartiles", "loop over masks"), "zh": ("四分位", "逐掩码循环")}[lang]:
        assert word in text


def test_messages_have_the_same_placeholders() -> None:
    own = {key: text for key, text in catalogue().items() if key.startswith("bench.")}
    assert own
    for key, texts in own.items():
        fields = [
            {name for _, name, _, _ in string.Formatter().parse(texts[lang]) if name}
            for lang in LANGUAGES
        ]
        assert fields[0] == fields[1], key


def test_warming_takes_time_and_says_how_long() -> None:
    assert warm() > 0


@pytest.mark.slow
def test_the_allocator_is_measured() -> None:
    program = "from normscope.bench.allocator import keeps_pages; print(keeps_pages())"
    for value, expected in (("", "False"), (allocator.TUNABLES, "True")):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "GLIBC_TUNABLES": value},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() in (expected, "None")
