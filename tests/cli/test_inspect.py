"""normscope inspect as a user runs it: saved, continued, merged, compared, over ranks."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from normscope.cli import app
from normscope.errors import NormscopeError
from normscope.lens import InspectionState
from normscope.records import Inspection

ROOT = Path(__file__).parents[2]

FILE = """
import os, signal
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()

def batches(first=0, last=8):
    draw = torch.Generator().manual_seed(1)
    made = []
    for _ in range(8):
        y = torch.randint(0, 3, (10,), generator=draw)
        made.append((torch.randn(10, 4, generator=draw).double() + y.unsqueeze(1), y))
    return made[first:last]

class Loader:
    classes = ("a", "b", "c")

    def __init__(self, *part):
        self.part, self.stop = part, None

    def __iter__(self):
        for place, batch in enumerate(batches(*self.part)):
            if place == self.stop:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

def whole():
    return Loader()

def first():
    return Loader(0, 3)

def rest():
    return Loader(3, 8)

def stops():
    loader = Loader()
    loader.stop = int(os.environ.get("STOP", "-1"))
    return loader

def fails():
    raise OSError("disk")

def table():
    x, y = zip(*batches())
    return torch.cat(x).float(), torch.cat(y)

def single():
    return make().float()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def inspect(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["inspect", *arguments, "--lang", "en"])


def passed(data: str, save: str, *more: str) -> Any:
    return inspect("--model", "mine.py:make", "--data", f"mine.py:{data}", "--save", save, *more)


def record(path: Path) -> Inspection:
    return Inspection.from_json(path.read_text())


def equal(one: Inspection, two: Inspection) -> None:
    assert one.counts == two.counts
    assert one.batches == two.batches
    (a,), (b,) = one.layers, two.layers
    np.testing.assert_array_equal(a.histogram, b.histogram)
    for s, t in zip(a.stages, b.stages, strict=True):
        assert s.eta2 == pytest.approx(t.eta2, abs=1e-10)
        assert s.lda_fraction == pytest.approx(t.lda_fraction, abs=1e-10)
        assert s.nearest_mean_accuracy == t.nearest_mean_accuracy


def test_the_memory_is_told_before_the_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = "Loader.classes = tuple(map(str, range(3_000_000)))"
    (folder / "mine.py").write_text(FILE + many)
    with pytest.raises(NormscopeError, match=r"need \d[\d,]* MiB, the limit is 16 MiB"):
        raise passed("whole", "a.json", "--memory-limit", "16").exception
    monkeypatch.setattr(sys.modules["normscope.cli.inspect"], "WORTH_TELLING", -1)
    (folder / "mine.py").write_text(FILE)
    told = passed("whole", "a.json").stderr
    assert "the statistics of 3 classes need up to 0 MiB above the forward pass" in told


def test_parts_are_merged(folder: Path) -> None:
    for data in ("whole", "first", "rest"):
        done = passed(data, f"{data}.json")
        assert done.exit_code == 0, done.output
    merged = inspect("--merge", "first.json", "rest.json", "--save", "both.json", "--json")
    assert merged.exit_code == 0, merged.output
    equal(record(folder / "both.json"), record(folder / "whole.json"))
    assert json.loads(merged.stdout.splitlines()[0])["classes"] == ["a", "b", "c"]
    assert (folder / "both.pt").is_file()


def test_what_is_split_says_how_much_is_inspected(folder: Path) -> None:
    found = inspect("--model", "mine.py:single", "--data", "mine.py:table", "--save", "a.json")
    assert found.exit_code == 0, found.output
    images = sum(record(folder / "a.json").counts)
    assert f"inspected the test part of table, {images} of 80 samples" in found.stderr
    assert 20 <= images <= 30
    assert "test part" not in passed("whole", "b.json").output


def test_two_passes_are_compared(folder: Path) -> None:
    passed("first", "a.json")
    passed("rest", "b.json")
    shown = inspect("--compare", "a.json", "b.json")
    assert shown.exit_code == 0
    assert "most moved first" in shown.output
    found = json.loads(inspect("--compare", "a.json", "b.json", "--json").stdout)
    assert found["images"] == [30, 50]
    assert found["layers"][0]["moved"] > 0


def test_ctrl_c_keeps_what_is_done_and_resume_continues(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOP", "4")
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    stopped = passed("stops", "seen.json", "--html", "seen.html")
    signal.signal(signal.SIGINT, usual)
    assert stopped.exit_code == 130
    assert "stopped after 50 images" in stopped.output
    assert sum(record(folder / "seen.json").counts) == 50
    assert (folder / "seen.html").is_file()
    monkeypatch.setenv("STOP", "-1")
    assert passed("stops", "seen.json", "--resume").exit_code == 0
    passed("whole", "whole.json")
    equal(record(folder / "seen.json"), record(folder / "whole.json"))
    other = passed("whole", "seen.json", "--resume")
    assert isinstance(other.exception, NormscopeError)
    assert "was begun with mine.py:make on mine.py:stops" in str(other.exception)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give --model, or --merge"),
        (("--merge",), "give --model, or --merge"),
        (("--model", "mine.py:make", "a.json"), "give --model, or --merge"),
        (("--compare", "a.json"), "--compare needs two files"),
        (("--compare", "a.pt", "b.json"), "reads the .json records"),
        (("--merge", "nowhere.json"), "nowhere.pt cannot be read"),
        (("--model", "mine.py:make", "--resume"), "--resume needs --save"),
        (("--model", "mine.py:make", "--save", "x.pt"), "name a .json file"),
        (("--model", "mine.py:make", "--data", "mine.py:fails"), "fails() failed: OSError: disk"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: tuple[str, ...], sentence: str, folder: Path) -> None:
    done = inspect(*arguments)
    assert isinstance(done.exception, NormscopeError)
    assert sentence in str(done.exception)
    assert "\n" not in str(done.exception)
    assert sorted(p.name for p in folder.iterdir() if p.is_file()) == ["mine.py"]


@pytest.mark.slow
def test_ranks_together_are_one_process(folder: Path) -> None:
    passed("whole", "one.json")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    options = ("--model", "mine.py:make", "--data", "mine.py:whole", "--save", "two.json")
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "normscope", "inspect", *options, "--lang", "en"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("self-test:") == 1
    equal(record(folder / "two.json"), record(folder / "one.json"))
    seen = InspectionState.load(folder / "two.pt")
    assert seen.batches == 8
