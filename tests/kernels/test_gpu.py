"""The Triton programs: interpreted on a CPU, compiled for a GPU, and run on one where there is."""

import copy
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import normscope
from normscope import functional
from normscope.kernels import dispatch

CASES = Path(__file__).with_name("gpu_cases.py")
FAMILY: dict[str, Callable[[], Any]] = {
    "BatchNorm2d": lambda: normscope.BatchNorm2d(5),
    "ConditionalBatchNorm2d": lambda: normscope.ConditionalBatchNorm2d(5, 3),
    "GhostBatchNorm2d": lambda: normscope.GhostBatchNorm2d(5, 4),
    "FrozenBatchNorm2d": lambda: normscope.FrozenBatchNorm2d(5),
    "BatchRenorm2d": lambda: normscope.BatchRenorm2d(5),
    "ModeNorm2d": lambda: normscope.ModeNorm2d(5, 2),
}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def run_cases(cache: Path, **environment: str) -> str:
    """Run gpu_cases.py in a process of its own: how Triton works is fixed when it is imported."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (700 MB): pip install -e '.[triton]'")
    clean = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET",)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        env={**clean, "TRITON_CACHE_DIR": str(cache), **environment},
        cwd=CASES.parents[2],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_interpreted(tmp_path: Path) -> None:
    assert "12 passed" in run_cases(tmp_path, TRITON_INTERPRET="1")


def test_compiled_ahead(tmp_path: Path) -> None:
    assert "1 passed" in run_cases(tmp_path, NORMSCOPE_AHEAD="1")


@pytest.mark.gpu
@needs_cuda
def test_on_a_device(tmp_path: Path) -> None:
    assert " passed" in run_cases(tmp_path)


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


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", FAMILY)
def test_layers_on_a_device(
    name: str, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "MEASURED", ("cpu", "gpu"))
    compare_layer(name, channels_last, "cuda")


def compare_layer(name: str, channels_last: bool, device: str) -> None:
    """The family through its layers against the reference: results, gradients, second ones."""
    torch.manual_seed(0)
    layer = FAMILY[name]().to(device)
    x = torch.randn(8, 5, 9, 7, device=device)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    kernel = functional.why(x).partition(":")[0]
    assert kernel == ("gpu" if device == "cuda" else "cpu")
    rest = (torch.arange(8, device=device) % 3,) if name.startswith("Conditional") else ()
    state, found = copy.deepcopy(layer.state_dict()), []
    for dtype in (torch.float32, torch.float64):
        layer.load_state_dict(state)
        layer.to(dtype).zero_grad()
        leaf = x.to(dtype).requires_grad_()
        y = layer(leaf, *rest)
        assert y.stride() == x.stride()
        (first,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        layer.load_state_dict(state)
        layer(leaf, *rest).square().sum().backward()  # as in training, without a graph
        gradients = [p.grad for p in layer.parameters() if p.grad is not None]
        found.append([y.detach(), first.detach(), second, leaf.grad, *gradients])
    for mine, exact in zip(*found, strict=True):
        scale = max(1.0, float(exact.abs().max()))
        assert float((mine.double() - exact).abs().max()) < 1e-4 * scale
