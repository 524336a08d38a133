"""`normscope train` under torchrun: two gloo ranks against one process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.numpy import load_file
from torch import nn

from normscope.experiment import ranks

ROOT = Path(__file__).parents[2]
# iris has 112 rows for training: batches of 37, 37, 37 and, in one of them, ranks of 19 and 18
TRAIN = ("train", "--data", "iris", "--batch-size", "37", "--every", "3", "--no-sweep")
ALONE = (sys.executable, "-m", "normscope")
TWO = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    *("-m", "normscope"),
)
ENV = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}


def run(*command: object) -> subprocess.CompletedProcess[str]:
    arguments = [str(part) for part in command]
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=120, cwd=ROOT, env=ENV, check=False
    )


def numbers(value: Any) -> list[float]:
    """All numbers of a record, in order, without the seconds that it took."""
    if isinstance(value, dict):
        return [n for k, v in value.items() if "seconds" not in k for n in numbers(v)]
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    return [float(value)] if isinstance(value, int | float) else []


def assert_same(one: Path, two: Path) -> None:
    """The same files; models, telemetry and records equal to the rounding of float32."""
    names = sorted(p.relative_to(one) for p in one.rglob("*"))
    assert names == sorted(p.relative_to(two) for p in two.rglob("*"))
    models = [name for name in names if name.suffix == ".safetensors"]
    assert models
    for name in models:
        expected, got = load_file(one / name), load_file(two / name)
        assert expected.keys() == got.keys()
        for key, tensor in expected.items():
            assert got[key] == pytest.approx(tensor, abs=2e-5, rel=2e-5), f"{name}: {key}"
    lines = [(out / "telemetry.jsonl").read_text().splitlines() for out in (one, two)]
    assert len(lines[0]) > 4
    for left, right in zip(*lines, strict=True):
        assert numbers(json.loads(right)) == pytest.approx(numbers(json.loads(left)), abs=1e-3)
    records = [json.loads((out / "run.json").read_text()) for out in (one, two)]
    for part in ("rows", "members"):
        assert numbers(records[1][part]) == pytest.approx(numbers(records[0][part]), abs=1e-3)
    assert [r["environment"]["ranks"] for r in records] == ["1", "2"]


@pytest.mark.slow
def test_two_ranks_train_what_one_process_trains(tmp_path: Path) -> None:
    options = (*TRAIN, "--norm", "batch,conditional,separate", "--domains", "clean,contrast")
    one, two = tmp_path / "one", tmp_path / "two"
    alone = run(*ALONE, *options, "--epochs", 3, "--seeds", 1, "--out", one)
    together = run(*TWO, *options, "--epochs", 3, "--seeds", 1, "--out", two)
    assert alone.returncode == 0, alone.stderr
    assert together.returncode == 0, together.stderr
    assert_same(one, two)
    # rank 0 alone tells
    assert together.stdout.count("conditional") == alone.stdout.count("conditional")


def work(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = Path(folder, "port").read_text()
    with ranks.world():
        threads_within = thread_names()
        net = ranks.parallel(nn.Linear(2, 1))
        net(torch.ones(3, 2)).sum().backward()
        del net
    assert any("gloo" in name for name in threads_within)
    assert not any("gloo" in name for name in thread_names())


def thread_names() -> list[str]:
    return [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of threads")
def test_no_thread_of_a_group_outlives_it(tmp_path: Path) -> None:
    # one that still runs when the interpreter ends aborts the process
    with socket.create_server(("127.0.0.1", 0)) as free:
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)


@pytest.mark.slow
def test_ranks_stop_together_and_resume(tmp_path: Path) -> None:
    options = (*TRAIN, "--norm", "batch", "--epochs", "60", "--seeds", "1")
    one, two = tmp_path / "one", tmp_path / "two"
    alone = run(*ALONE, *options, "--out", one)
    assert alone.returncode == 0, alone.stderr
    command = [str(part) for part in (*TWO, *options, "--out", two)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=ENV
    ) as ranks:
        started = two / "telemetry.jsonl"
        deadline = time.monotonic() + 60
        while not (started.exists() and started.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        ranks.send_signal(signal.SIGINT)
        ranks.communicate(timeout=60)
    assert not json.loads((two / "run.json").read_text())["complete"]
    resumed = run(*TWO, *options, "--out", two, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same(one, two)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--norm", "ghost"), "keeps its statistics within one process"),
        (("--data", "nowhere.csv"), "nowhere.csv"),
    ],
)
def test_bad_input_is_told_once(arguments: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    done = run(*TWO, *TRAIN, *arguments, "--out", tmp_path / "out")
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("normscope: ")]
    assert len(told) == 1, done.stderr
    assert sentence in told[0]
    assert "exitcode  : 2" in done.stderr
    assert "Traceback (most recent call last):\n  File" not in done.stdout
    assert not (tmp_path / "out").exists()
