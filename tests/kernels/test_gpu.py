"""The Triton programs: interpreted on a CPU, compiled for a GPU, and run on one where there is."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import normscope
from normscope import functional
from normscope.kernels import dispatch
from normscope.layers import batch

CASES = Path(__file__).with_name("gpu_cases.py")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def run_cases(cache: Path, **environment: str) -> str:
    """Run gpu_cases.py in a process of its own: how Triton works is fixed when it is imported."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (700 MB): pip install -e '.[dev]' brings it on Linux")
    clean = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET",)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        env={**clean, "TRITON_CACHE_DIR": str(cache), **environment},
        cwd=CASES.parents[2],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(420)  # where others use the machine
def test_interpreted(tmp_path: Path) -> None:
    assert "18 passed" in run_cases(tmp_path, TRITON_INTERPRET="1")


@pytest.mark.timeout(420)  # where others use the machine
def test_compiled_ahead(tmp_path: Path) -> None:
    assert "1 passed" in run_cases(tmp_path, NORMSCOPE_AHEAD="1")


def test_the_benchmark_goes_through_its_plan(tmp_path: Path) -> None:
    """Without a card, tiny: so that it does not fail at the first contact with one."""
    out, script = tmp_path / "gpu.json", CASES.parents[2] / "benchmarks/gpu.py"
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
    assert " passed" in run_cases(tmp_path)


def test_without_triton_the_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_installed", lambda package: package != "triton")
    x = torch.randn(4, 3)
    assert functional.why(x, "gpu") == "impl='gpu' refuses: triton is not installed."
    with pytest.raises(ValueError, match="triton is not installed"):
        functional.batch_norm(x, training=True, impl="gpu")
    assert functional.why(x).startswith("cpu: ")


class Watched(TorchDispatchMode):
    """Notes every operation with its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        numbers = [a for a in args if isinstance(a, bool | float)]
        self.seen.append((str(func), [t.shape for t in args if isinstance(t, Tensor)], numbers))
        return func(*args, **(kwargs or {}))


def test_auto_takes_torchs_operations_on_cuda() -> None:
    """On a device that is not there: the very operations that the user had, and no others."""
    with FakeTensorMode():
        x, residual = (torch.empty(4, 3, 5, 5, device="cuda") for _ in range(2))
        mean, var, weight, bias = (torch.empty(3, device="cuda") for _ in range(4))
        assert functional.why(x).startswith("torch: on cuda one group without a mask")
        assert "ask for impl='gpu'" in functional.why(x)
        calls = [((mean, var, weight, bias), False), ((None, None, weight, bias), True)]
        for (tables, training), act, added in product(calls, [None, "relu", "silu"], [0, 1]):
            more = residual if added else None
            with Watched() as ours:
                y = functional.batch_norm(x, *tables, training, 0.2, 1e-4, act=act, residual=more)
            with Watched() as theirs:
                expected = F.batch_norm(x, *tables, training, 0.2, 1e-4)
                expected = expected if more is None else expected + more
                if act:
                    getattr(F, act)(expected, inplace=act == "relu")
            assert ours.seen == theirs.seen
            assert y.device.type == "cuda"
        groups = torch.zeros(4, dtype=torch.int64, device="cuda")
        with Watched() as ours:
            functional.batch_norm(x, mean, var, weight, bias, groups=groups)
        assert not [name for name, *_ in ours.seen if "batch_norm" in name]


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("act", [None, "relu", "leaky_relu", "silu"])
def test_what_torch_does_is_its_own_to_the_bit(
    act: Any, momentum: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "TORCHS", ("cpu",))
    monkeypatch.setattr(dispatch, "MEASURED", ())
    monkeypatch.setattr(functional, "_compiled", lambda *arguments: None)
    monkeypatch.setattr(batch, "plain_call", lambda x: None)
    ours = normscope.BatchNorm2d(5, act=act, momentum=momentum)
    theirs = torch.nn.BatchNorm2d(5, momentum=momentum)
    for layer in (ours, theirs):
        torch.manual_seed(0)
        torch.nn.init.normal_(layer.weight)
    activation = getattr(F, act) if act else lambda values: values
    x = [torch.randn(8, 5, 9, 7).requires_grad_() for _ in range(2)]
    dy = torch.randn(8, 5, 9, 7)
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        for leaf, recomputed in product(x, (False, True)):
            state = copy.deepcopy(theirs.state_dict())
            found = []
            for layer, call in ((ours, ours), (theirs, lambda v: activation(theirs(v)))):
                layer.load_state_dict(state)
                with normscope.recompute() if recomputed else nullcontext():
                    y = call(leaf)
                    loss = (y.square() * dy).sum()  # keeps y
                found.append(
                    [y.detach(), *torch.autograd.grad(loss, [leaf, layer.weight, layer.bias])]
                )
                found[-1] += [*layer.state_dict().values()]
            for mine, other in zip(*found, strict=True):
                assert torch.equal(mine, other)


def test_a_name_never_falls_back() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    with pytest.raises(ValueError, match="x is on cpu"):
        functional.batch_norm(torch.randn(4, 3), training=True, impl="gpu")
