"""What the compiler makes of the Triton programs, which test_gpu.py asks in a process of its own.

They are compiled for devices that need not be there, and the machine code is read.
"""

import os
import re
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from normscope.kernels import gpu
from normscope.kernels.gpu import loops, merging
from tests.kernels.gpu_case import Case


class Absent:
    """A driver for a device that is not there: enough to compile for it."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # programs are kept by device

    def get_current_stream(self, device: int) -> int:
        return device


TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
READ, WRITTEN = {"x", "dy", "residual"}, {"y", "dx", "dresidual"}  # tensors as large as x
# what moves no values and starts nothing on a device
FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "view", "reshape", "as_strided", "detach",
    "select", "slice", "unbind", "expand", "unsqueeze", "permute", "movedim", "contiguous", "to",
    "result_type", "alias", "_reshape_alias", "ones_like", "resolve_neg", "lift_fresh",
}  # fmt: skip


class Compiled:
    """Compiles what would be started, looks at its machine code, and counts it."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.seen: set[Any] = set()
        self.names: set[tuple[int, str]] = set()
        self.read: set[tuple[int, str, bool]] = set()  # the bool: channels lie side by side
        self.run = JITFunction.run

    def __call__(self, jit: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = self.run(jit, *args, grid=grid, warmup=True, **kwargs)
        self.started.append(jit.__name__)
        if kernel.hash not in self.seen:
            self.seen.add(kernel.hash)
            self.names.add((driver.active.arch, jit.__name__))
            self.look(jit, kernel.asm, args, kwargs)
        return kernel

    def look(self, jit: Any, made: dict[str, Any], args: Any, given: dict[str, Any]) -> None:
        """No spills, few registers, whole vectors."""
        name = jit.__name__
        path = Path(os.environ["TRITON_CACHE_DIR"]) / "code.cubin"
        path.write_bytes(made["cubin"])
        used = output_of(TOOLS / "cuobjdump", "-res-usage", path)
        sizes = {kind: int(size) for kind, size in re.findall(r"(REG|STACK|LOCAL):(\d+)", used)}
        assert 0 < sizes["REG"] <= 128, (name, sizes)
        assert sizes["STACK"] == sizes["LOCAL"] == 0, (name, sizes)  # nothing is spilled
        tensors = {n for n, a in zip(jit.arg_names, args, strict=False) if isinstance(a, Tensor)}
        if "x" not in tensors:
            return  # a small program, which goes over no values
        bytes_ = given["BLOCK_R"] * given["BLOCK_E"] * args[0].element_size()
        vectors = bytes_ // (16 * 32 * given["num_warps"])
        assert vectors > 0
        code = output_of(TOOLS / "nvdisasm", "-json", path)  # a quarter of a second
        for operation, moved in (("LDG", READ & tensors), ("STG", WRITTEN & tensors)):
            whole = re.findall(rf'"{operation}[\w.]*\.128\b', code)
            assert len(whole) >= len(moved) * vectors, (name, operation, moved, vectors)
        assert not re.findall(r'"(?:LDL|STL)\b', code)
        self.read.add((driver.active.arch, name, given["S"] == 1))


def output_of(*command: Any) -> str:
    """Run a tool."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return str(done.stdout)


def test_compiles_for_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes programs that the compiler refuses; all are taken to machine code."""
    look = Compiled()
    monkeypatch.setattr(gpu, "unsupported", lambda x: None)
    monkeypatch.setattr(JITFunction, "run", lambda jit, *args, **kwargs: look(jit, *args, **kwargs))
    for arch, *rest in [
        (90, (8, 64, 56, 56), True, torch.bfloat16, ("relu", False, False, 1, 1, 1)),
        (80, (16, 512, 7, 7), False, torch.bfloat16, ("silu", True, True, 8, 8, 8), "each"),
        (80, (32, 96, 14, 14), True, torch.float32, ("relu", True, True, 8, 1, 1)),
        (90, (16, 64, 14, 14), False, torch.float64, ("relu", True, False, 1, 4, 4)),
    ]:
        driver.set_active(Absent(arch))
        case = Case(*rest)
        look.started.clear()
        state = [*case.running, case.tracked]
        with profile(activities=[ProfilerActivity.CPU]) as watched:
            y, *_ = case.call("gpu", state=state, momentum=None if case.k > 1 else 0.1)
            forward = len(look.started)
            torch.autograd.grad(y, case.leaves, case.dy)
        several = case.rows > 1
        assert look.started[:forward] == [
            *["arrange"] * several,
            "moments",
            "merge_moments",
            "normalize",
        ]
        assert look.started[forward:] == ["gradient_sums", "merge_gradients", "gradient"]
        names = {e.name.removeprefix("aten::") for e in watched.events() if "aten::" in e.name}
        assert "empty_like" in names
        assert not names - FREE  # nothing else is started, and nothing waits
    case.call("gpu", training=False)
    programs = {
        (arch, name)
        for arch in (80, 90)
        for module in (loops, merging)
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and not name.startswith("_")
    }
    assert look.names == programs
    over_values = ("moments", "normalize", "gradient_sums", "gradient")
    assert look.read == set(product((80, 90), over_values, (False, True)))
