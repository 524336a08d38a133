"""Cases of the Triton programs, which test_gpu.py runs in a process of their own.

With TRITON_INTERPRET=1 they run on CPU tensors. With NORMSCOPE_AHEAD=1 they only compile, for
devices that need not be there. Otherwise they need a CUDA device.
"""

import copy
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import triton
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

import normscope
from normscope import functional
from normscope.kernels import dispatch, gpu, reference
from normscope.kernels.gpu import cutting, loops, merging, tuning
from normscope.kernels.problem import Epilogue, Problem, Statistics

AHEAD = "NORMSCOPE_AHEAD" in os.environ
DEVICE = "cpu" if AHEAD or "TRITON_INTERPRET" in os.environ else "cuda"
# the interpreter calculates in NumPy, which warns where a GPU gives inf or NaN
pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning")]
runs = pytest.mark.skipif(AHEAD, reason="only compiled")
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small tiles and few programs, so that few values make many; new memory is full of NaN."""
    if not AHEAD:
        monkeypatch.setattr(cutting, "SIZES", dict.fromkeys(cutting.SIZES, (256, 128, 4)))
        monkeypatch.setattr(cutting, "WIDEST", 16)
        monkeypatch.setattr(cutting, "PROGRAMS", 4)
        monkeypatch.setattr(cutting, "MERGED", {"BLOCK_Q": 4, "BLOCK_C": 2})
    if DEVICE == "cpu":
        monkeypatch.setattr(gpu, "unsupported", lambda x: None)
    monkeypatch.setattr(functional, "_compiled", lambda *arguments: None)
    monkeypatch.setattr(dispatch, "FAST", {DEVICE: "gpu"})
    monkeypatch.setattr(dispatch, "MEASURED", ("gpu",))
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(not AHEAD)
    yield
    torch.use_deterministic_algorithms(False)


class Case:
    """Inputs of a layer: odd shapes, ragged groups of which the second is always empty.

    `form` holds: act, a residual, a mask, K, rows of weight and of bias.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        by_rows: bool,
        dtype: torch.dtype,
        form: tuple[Any, ...],
        running: str = "pooled",
    ) -> None:
        self.act, added, masked, self.k, *rows = form
        n, c = shape[:2]
        self.rows = max(self.k, *rows)

        def values() -> Tensor:
            x = (torch.randn(shape, dtype=torch.double) * 2 + 3).to(dtype).to(DEVICE)
            return x.movedim(1, -1).contiguous().movedim(-1, 1) if by_rows else x

        self.x, self.dy = values(), values()
        self.residual = values().requires_grad_() if added else None
        groups = torch.randint(0, self.rows, (n,))
        groups[groups == 1] = 0
        self.groups = groups.to(DEVICE) if self.rows > 1 else None
        self.mask = (torch.rand(n, 1, *shape[2:]) < 0.7).to(DEVICE) if masked else None
        if self.mask is not None:
            self.x = torch.where(self.mask, self.x, torch.nan)
        self.x.requires_grad_()
        table = torch.float32 if dtype.itemsize == 2 else dtype
        self.weight, self.bias = (
            torch.randn(r, c).squeeze(0).to(DEVICE, table).requires_grad_() for r in rows
        )
        each = running == "each"
        size = (self.k, c) if each else (c,)
        self.running = [torch.rand(size).to(DEVICE, table) for _ in range(2)]
        self.tracked = torch.full((self.k,) if each else (), 3, device=DEVICE)

    @property
    def leaves(self) -> list[Tensor]:
        """What gets a gradient."""
        given = (self.x, self.weight, self.bias, self.residual)
        return [t for t in given if t is not None]

    def call(
        self, impl: str, training: bool = True, state: list[Tensor] | None = None, **more: Any
    ) -> list[Tensor]:
        """The output, and the running statistics after it."""
        state = state or [t.clone() for t in (*self.running, self.tracked)]
        y = functional.batch_norm(
            self.x, *state[:2], self.weight, self.bias, training, eps=1e-3, groups=self.groups,
            num_groups=self.k, mask=self.mask, act=self.act, residual=self.residual, min_count=40,
            num_batches_tracked=state[2], impl=impl, **more,
        )  # fmt: skip
        return [y, *state]


def close(ours: Any, theirs: Any, tolerance: float) -> None:
    """Compare, by the largest expected value."""
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        assert mine.shape == other.shape
        assert mine.isfinite().all()
        scale = max(1.0, float(other.abs().max()))
        assert float((mine.double() - other.double()).abs().max()) < tolerance * scale


FORMS: list[tuple[Any, ...]] = [  # shape, channels last, dtype, form, running; training, momentum
    ((5, 3, 7, 3), False, torch.float32, ("relu", True, False, 1, 1, 1), "pooled", True, 0.1),
    ((6, 3, 5, 3), True, torch.float32, ("relu", True, True, 3, 1, 1), "pooled", True, None),
    ((7, 3, 5, 2), False, torch.float64, ("silu", True, True, 3, 3, 1), "each", True, None),
    ((9, 10), False, torch.float32, ("leaky_relu", True, False, 1, 4, 4), "pooled", True, 0.3),
    ((6, 4, 3, 3), True, torch.float64, (None, True, True, 1, 4, 1), "pooled", True, 0.1),
    ((6, 4, 3, 3), False, torch.bfloat16, ("relu", False, True, 1, 1, 4), "pooled", False, 0.1),
    ((6, 9, 2, 2), True, torch.float16, ("silu", False, False, 3, 1, 1), "each", False, 0.1),
]


@runs
@pytest.mark.parametrize(
    ("shape", "by_rows", "dtype", "form", "running", "training", "momentum"), FORMS, ids=str
)
def test_a_layer_equals_the_reference(
    shape: Any, by_rows: bool, dtype: Any, form: Any, running: str, training: bool, momentum: Any
) -> None:
    case = Case(shape, by_rows, dtype, form, running)
    found = []
    for impl in ("gpu", "reference"):
        y, *state = case.call(impl, training, momentum=momentum)
        assert y.stride() == case.x.stride()
        assert all((t._version > 0) == training for t in state)
        found.append([y.detach(), *state, *torch.autograd.grad(y, case.leaves, case.dy)])
    close(*found, DTYPES[dtype])


@runs
def test_tiles_and_warps_by_measurement() -> None:
    """The fastest of each program stays, and the results with it are right."""
    times = iter([3.0, 1.0, 2.0, *[1.0, 2.0, 3.0] * 3])
    one, two = (128, 64, 2), (512, 128, 8)
    case = Case((4, 3, 3, 3), False, torch.float32, (None, False, False, 1, 1, 1))
    found = tuning.tune(lambda: case.call("gpu"), lambda step: next(times), (one, two))
    before = (256, 128, 4)
    assert found["moments"] == {before: 3.0, one: 1.0, two: 2.0}
    assert {**dict.fromkeys(cutting.SIZES, before), "moments": one} == cutting.SIZES
    close([case.call("gpu")[0].detach()], [case.call("reference")[0].detach()], 1e-6)


@runs
def test_statistics_of_several_processes(tmp_path: Path) -> None:
    """By the verbs, with a collective between them; and the batch's moments, where asked for."""
    dist.init_process_group(
        "gloo" if DEVICE == "cpu" else "nccl",
        init_method=f"file://{tmp_path}/f",
        rank=0,
        world_size=1,
    )
    try:
        case = Case(*FORMS[1][:5])
        found = []
        for impl, group in (("gpu", dist.group.WORLD), ("reference", None)):
            y, *state = case.call(impl, process_group=group)
            found.append([y.detach(), *state, *torch.autograd.grad(y, case.leaves, case.dy)])
        close(*found, 1e-6)
        x, layer = torch.randn(3, 2, 2, 2, device=DEVICE), normscope.BatchNorm2d(2).to(DEVICE)
        for module in (layer, DistributedDataParallel(copy.deepcopy(layer))):
            module(x).square().sum().backward()
            module(x)  # the buffers are sent around before
            found.append([p.grad for p in module.parameters()] + list(module.buffers()))
        assert all(map(torch.equal, *found[2:]))
    finally:
        dist.destroy_process_group()


@runs
@pytest.mark.parametrize("by_rows", [False, True])
def test_a_large_mean_loses_nothing(by_rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "WIDEST", 32)
    x = torch.randn(8, 2, 8, 8) + 1e4
    x[0, 0, 0, 0] = 0  # what a lane meets first need not be near the mean
    x = (x.to(memory_format=torch.channels_last) if by_rows else x).to(DEVICE)
    _, mean, m2 = gpu.moments(Problem(x))
    _, exact, exact_m2 = reference.moments(Problem(x))
    rstd = (x[0].numel() * 8 / 2 / exact_m2).sqrt()
    assert float(((mean - exact) * rstd).abs().max()) < 1e-6  # in standard deviations
    torch.testing.assert_close(m2, exact_m2, rtol=1e-6, atol=0)
    y, expected = (
        kernel.normalize(Problem(values), Statistics(exact, rstd), Epilogue())
        for kernel, values in ((gpu, x), (reference, x.double()))
    )
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6)


@runs
def test_what_is_not_finite_or_of_no_group_stays_where_it_is() -> None:
    x, groups = torch.randn(6, 2, 3, 2).to(DEVICE), torch.tensor([0, 1, 0, 1, 7, -1]).to(DEVICE)
    for poison in (torch.nan, torch.inf):
        x[2, 1, 0, 0] = poison
        _, _, m2 = gpu.moments(Problem(x, groups, 2))
        assert (~m2.isfinite()).nonzero().tolist() == [[0, 1]]
    y = functional.batch_norm(x, training=True, groups=groups, num_groups=2, impl="gpu")
    exact = functional.batch_norm(
        x[:4], training=True, groups=groups[:4], num_groups=2, impl="reference"
    )
    assert torch.isnan(y[4:]).all()
    torch.testing.assert_close(y[:4], exact, equal_nan=True)


@runs
def test_activations_beyond_what_exp_can_hold() -> None:
    u = torch.tensor([-1e30, -200.0, -88.0, -20.0, -1.0, 0.0, 1.0, 20.0, 88.0, 200.0, 1e30])
    u = torch.cat([u, torch.tensor([torch.nan, torch.inf])]).reshape(-1, 1).to(DEVICE)
    zero, one = torch.zeros(1, 1).double().to(DEVICE), torch.ones(1, 1).double().to(DEVICE)
    for act, function in reference.ACTIVATIONS.items():
        y = gpu.normalize(Problem(u), Statistics(zero, one), Epilogue(act=act))
        torch.testing.assert_close(y, function(u), rtol=1e-6, atol=1e-37, equal_nan=True)


@runs
def test_second_derivatives_and_many_cotangents() -> None:
    case = Case((4, 3, 3, 3), True, torch.float64, ("relu", True, True, 3, 3, 1))
    many = torch.randn(2, *case.x.shape).double().to(DEVICE)
    found = []
    for impl in ("gpu", "reference"):
        y, *_ = case.call(impl)
        first = torch.autograd.grad(y, case.leaves, case.dy, create_graph=True)
        second = torch.autograd.grad(
            (first[0] * case.dy).sum(), [case.x, case.weight], retain_graph=True
        )
        batched = torch.autograd.grad(
            y, case.leaves, many, is_grads_batched=True, retain_graph=True
        )
        found.append([*first, *second, *batched])
    close(*[[t.detach() for t in found_] for found_ in found], 1e-11)


@runs
def test_an_output_is_computed_again_to_the_bit() -> None:
    case = Case((4, 2, 3, 3), True, torch.float32, ("relu", False, True, 3, 1, 1))
    found = []
    for again in (False, True):
        with normscope.recompute() if again else nullcontext():
            loss = (case.call("gpu")[0].square() * case.dy).sum()
        found.append(torch.autograd.grad(loss, case.leaves))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


FAMILY: dict[str, Callable[[], Any]] = {
    "ConditionalBatchNorm2d": lambda: normscope.ConditionalBatchNorm2d(3, 3),
    "GhostBatchNorm2d": lambda: normscope.GhostBatchNorm2d(3, 4),
    "BatchRenorm2d": lambda: normscope.BatchRenorm2d(3),
}


@runs
@pytest.mark.parametrize("name", FAMILY)
def test_the_family(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers against the reference, in mixed precision too: what autocast leaves alone."""
    layer = FAMILY[name]().to(DEVICE)
    x, dy = torch.randn(2, 8, 3, 3, 2, device=DEVICE)
    assert functional.why(x).startswith("gpu: ")
    rest = (torch.arange(8, device=DEVICE) % 3,) if name.startswith("Conditional") else ()
    state, found = copy.deepcopy(layer.state_dict()), []
    for dtype in (torch.float32, torch.float64):
        layer.to(dtype).load_state_dict(state)
        leaf = x.to(dtype).requires_grad_()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.float32):
            y = layer(leaf, *rest)
        assert y.dtype == dtype
        parameters = [p for p in layer.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(y, [leaf, *parameters], dy.to(dtype))
        found.append([y.detach(), *gradients, *layer.state_dict().values()])
        monkeypatch.setattr(dispatch, "MEASURED", ())
        assert functional.why(x).startswith("reference: ")
    for mine, exact in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), exact.double(), rtol=1e-5, atol=1e-5)


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


READS = {"moments": 1, "normalize": 1, "gradient_sums": 2, "gradient": 2}  # tensors as large as x
WRITES = {"normalize": 1, "gradient": 1}
TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
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
        self.run = JITFunction.run

    def __call__(self, jit: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = self.run(jit, *args, grid=grid, warmup=True, **kwargs)
        self.started.append(jit.__name__)
        if kernel.hash not in self.seen:
            self.seen.add(kernel.hash)
            self.names.add((driver.active.arch, jit.__name__))
            self.look(jit.__name__, kernel.asm, args, kwargs)
        return kernel

    def look(self, name: str, made: dict[str, Any], args: Any, given: dict[str, Any]) -> None:
        """No spills, few registers, whole vectors."""
        path = Path(os.environ["TRITON_CACHE_DIR"]) / "code.cubin"
        path.write_bytes(made["cubin"])

        def read(flag: str) -> str:
            tool = [TOOL, flag, path]
            done = subprocess.run(tool, capture_output=True, text=True, check=True)
            return str(done.stdout)

        sizes = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", read("-res-usage")))
        assert 0 < int(sizes["REG"]) <= 128, (name, sizes)
        assert sizes["STACK"] == sizes["LOCAL"] == "0", (name, sizes)  # nothing is spilled
        if name not in READS:
            return
        bytes_ = given["BLOCK_R"] * given["BLOCK_E"] * args[0].element_size()
        vectors = bytes_ // (16 * 32 * given["num_warps"])
        assert vectors > 0
        for start, tensors in (("ld", READS[name]), ("st", WRITES.get(name, 0))):
            whole = re.findall(rf"\b{start}\.global[\w.:]*\.(?:v4\.b32|v2\.b64)", made["ptx"])
            assert len(whole) >= tensors * vectors, (name, start, vectors)
        if name == "normalize":  # what the assembler makes of it, which takes it a second to say
            code = read("-sass")
            for operation in ("LDG", "STG"):
                assert len(re.findall(rf"\b{operation}[\w.]*\.128", code)) >= vectors
            assert not re.findall(r"\b(?:LDL|STL)\b", code)


@pytest.mark.skipif(not AHEAD, reason="run, not only compiled")
def test_compiles_for_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes programs that the compiler refuses; all are taken to machine code."""
    look = Compiled()
    monkeypatch.setattr(JITFunction, "run", lambda jit, *args, **kwargs: look(jit, *args, **kwargs))
    for arch, *rest in [
        (90, (8, 64, 56, 56), True, torch.bfloat16, ("relu", False, False, 1, 1, 1)),
        (80, (16, 512, 7, 7), False, torch.bfloat16, ("silu", True, True, 8, 8, 8), "each"),
        (90, (32, 96, 14, 14), True, torch.float32, ("relu", True, True, 8, 1, 1)),
        (80, (16, 64, 14, 14), False, torch.float64, ("relu", True, False, 1, 4, 4)),
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
