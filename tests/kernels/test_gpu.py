"""The Triton programs: interpreted on a CPU, compiled for a GPU, and run on one where there is."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from normscope import functional
from normscope.kernels import dispatch

HERE = Path(__file__).parent
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def run_cases(name: str, cache: Path, **environment: str) -> str:
    """Run a file of cases in a process of its own: an import of Triton fixes how it works."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (700 MB): pip install -e '.[dev]' brings it on Linux")
    clean = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET",)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / name)],
        env={**clean, "TRITON_CACHE_DIR": str(cache), **environment},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(420)  # where others use the machine
def test_interpreted(tmp_path: Path) -> None:
    assert "27 passed" in run_cases("gpu_cases.py", tmp_path, TRITON_INTERPRET="1")


@pytest.mark.slow
@pytest.mark.timeout(420)  # where others use the machine
def test_compiled_ahead(tmp_path: Path) -> None:
    assert "1 passed" in run_cases("gpu_compiled.py", tmp_path)


def test_the_benchmark_goes_through_its_plan(tmp_path: Path) -> None:
    """Without a card, tiny: so that it does not fail at the first contact with one."""
    out, script = tmp_path / "gpu.json", HERE.parents[1] / "benchmarks/gpu.py"
    done = subprocess.run(
        [sys.executable, str(script), "--dry", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert {"correctness", "layers", "groups", "network", "graphs", "large"} < set(found)
    assert all(one["right"] for part in ("correctness", "large") for one in found[part])
    assert len({one["format"] for one in found["layers"]}) == 2
    for one in found["layers"]:
        for peer in ("normscope", "torch", "torch.compile"):
            assert one[peer]["forward"] > 0
            assert len(one[peer]["of_limit"]) == 2
    assert found["graphs"]["equal"]
    assert not [name for name, part in found.items() if isinstance(part, dict) and "error" in part]


@pytest.mark.gpu
@needs_cuda
def test_on_a_device(tmp_path: Path) -> None:
    assert " passed" in run_cases("gpu_cases.py", tmp_path)


def test_without_triton_the_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_installed", lambda package: package != "triton")
    x = torch.randn(4, 3)
    assert functional.why(x, "gpu") == "impl='gpu' refuses: triton is not installed."
    with pytest.raises(ValueError, match="triton is not installed"):
        functional.batch_norm(x, training=True, impl="gpu")
    assert functional.why(x).startswith("cpu: ")


def test_a_name_never_falls_back() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    with pytest.raises(ValueError, match="x is on cpu"):
        functional.batch_norm(torch.randn(4, 3), training=True, impl="gpu")
