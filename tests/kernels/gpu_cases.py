"""Cases of the Triton programs, which test_gpu.py runs in a process of their own.

With TRITON_INTERPRET=1 they run on CPU tensors. With NORMSCOPE_AHEAD=1 they only compile, for a
device that need not be there. Otherwise they need a CUDA device.
"""

import os
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from normscope.kernels import gpu, reference
from normscope.kernels.autograd import Stored, standardise
from normscope.kernels.gpu import cutting, loops
from normscope.kernels.problem import Affine, Epilogue, Problem, Statistics

# the interpreter calculates in NumPy, which warns where a GPU gives inf or NaN
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
AHEAD = "NORMSCOPE_AHEAD" in os.environ
DEVICE = "cpu" if AHEAD or "TRITON_INTERPRET" in os.environ else "cuda"
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SHAPES = [((5, 3, 7), False), ((4, 3, 9, 5), True), ((9, 17), False)]
FORMS = [  # act, residual, masked, groups, affine rows
    ("relu", True, True, 3, 3),
    (None, False, False, 1, 1),
    ("silu", False, True, 3, 1),
    ("leaky_relu", True, False, 1, 3),
]
CASES = [
    *product([torch.float32], FORMS),
    (torch.float64, FORMS[0]),
    (torch.bfloat16, FORMS[3]),
    (torch.float16, FORMS[2]),
]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small tiles and few programs, so that few values make many; new memory is full of NaN."""
    if not AHEAD:
        monkeypatch.setattr(cutting, "TILE", 64)
        monkeypatch.setattr(cutting, "PROGRAMS", 6)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Case:
    """Inputs of the verbs."""

    def __init__(
        self, shape: tuple[int, ...], by_rows: bool, dtype: torch.dtype, form: tuple[Any, ...]
    ) -> None:
        self.act, added, masked, self.k, rows = form
        self.rows = max(self.k, rows)
        n, c = shape[:2]

        def values() -> Tensor:
            x = (torch.randn(shape, dtype=torch.double) * 2 + 3).to(dtype).to(DEVICE)
            return x.movedim(1, -1).contiguous().movedim(-1, 1) if by_rows else x

        self.x, self.dy = values(), values()
        self.residual = values() if added else None
        groups = torch.randint(0, 3, (n,))
        groups[groups == 1] = 0  # group 1 is always empty
        self.groups = groups.to(DEVICE) if self.rows > 1 else None
        self.mask = (torch.rand(n, 1, *shape[2:]) < 0.7).to(DEVICE) if masked else None
        if self.mask is not None:
            self.x = torch.where(self.mask, self.x, torch.nan)
        table = torch.float32 if dtype.itemsize == 2 else dtype
        self.weight = (torch.rand(rows, c) + 0.5).to(DEVICE, table)
        self.bias = torch.randn(rows, c).to(DEVICE, table)
        tables = torch.randn(4, self.k, c).double().to(DEVICE)
        self.mean, self.rstd = tables[0] + 3, tables[1].abs() + 0.1
        self.means = tables[2], tables[3]

    def calls(self) -> dict[str, tuple[Any, ...]]:
        """The arguments of every verb."""
        problem = Problem(self.x, self.groups, self.k, self.mask)
        epilogue = Epilogue(Affine(self.weight, self.bias), self.residual, self.act)
        statistics = Statistics(self.mean, self.rstd)
        full = Statistics(self.mean, self.rstd, *self.means)
        return {
            "moments": (problem,),
            "normalize": (problem, statistics, epilogue),
            "backward_reduce": (self.dy, problem, statistics, epilogue),
            "backward_input": (self.dy, problem, full, epilogue),
        }


def close(ours: Any, theirs: Any, tolerance: float) -> None:
    """Compare, by the largest expected value."""
    for mine, other in zip(
        *(t if isinstance(t, tuple) else (t,) for t in (ours, theirs)), strict=True
    ):
        if other is None:
            assert mine is None
            continue
        assert mine.dtype == other.dtype
        assert mine.shape == other.shape
        assert mine.isfinite().all()
        scale = max(1.0, float(other.abs().max()))
        assert float((mine.double() - other.double()).abs().max()) < tolerance * scale


@pytest.mark.skipif(AHEAD, reason="only compiled")
@pytest.mark.parametrize(("dtype", "form"), CASES, ids=str)
def test_equals_the_reference(dtype: torch.dtype, form: tuple[Any, ...]) -> None:
    for shape, by_rows in SHAPES:
        case = Case(shape, by_rows, dtype, form)
        for verb, arguments in case.calls().items():
            ours, theirs = (getattr(kernel, verb)(*arguments) for kernel in (gpu, reference))
            table = verb in ("moments", "backward_reduce")  # float64, from sums in float32
            close(ours, theirs, min(DTYPES[dtype], 1e-6) if table else DTYPES[dtype])
            if verb == "normalize":
                assert ours.stride() == case.x.stride()


@pytest.mark.skipif(AHEAD, reason="only compiled")
@pytest.mark.parametrize(("ratio", "by_rows"), [(1e4, False), (1e4, True)])
def test_a_large_mean_loses_nothing(
    ratio: float, by_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "TILE", 512)
    x = torch.randn(8, 3, 20, 20) + ratio
    x = (x.to(memory_format=torch.channels_last) if by_rows else x).to(DEVICE)
    _, mean, m2 = gpu.moments(Problem(x))
    _, exact, exact_m2 = reference.moments(Problem(x))
    torch.testing.assert_close(mean, exact, rtol=1e-11, atol=0)
    torch.testing.assert_close(m2, exact_m2, rtol=1e-6, atol=0)
    rstd = (x[0].numel() * 8 / 3 / exact_m2).sqrt()
    y, expected = (
        kernel.normalize(Problem(values), Statistics(exact, rstd), Epilogue())
        for kernel, values in ((gpu, x), (reference, x.double()))
    )
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(AHEAD, reason="only compiled")
def test_what_is_not_finite_stays_in_its_group_and_channel() -> None:
    x, groups = torch.randn(6, 3, 4, 4).to(DEVICE), torch.tensor([0, 1, 0, 1, 0, 1]).to(DEVICE)
    for poison in (torch.nan, torch.inf):
        x[2, 1, 0, 0] = poison
        _, _, m2 = gpu.moments(Problem(x, groups, 2))
        assert (~m2.isfinite()).nonzero().tolist() == [[0, 1]]


@pytest.mark.skipif(AHEAD, reason="only compiled")
def test_activations_beyond_what_exp_can_hold() -> None:
    u = torch.tensor([-1e30, -200.0, -88.0, -20.0, -1.0, 0.0, 1.0, 20.0, 88.0, 200.0, 1e30])
    u = torch.cat([u, torch.tensor([torch.nan, torch.inf])]).reshape(-1, 1).to(DEVICE)
    zero, one = torch.zeros(1, 1).double().to(DEVICE), torch.ones(1, 1).double().to(DEVICE)
    for act, function in reference.ACTIVATIONS.items():
        y = gpu.normalize(Problem(u), Statistics(zero, one), Epilogue(act=act))
        torch.testing.assert_close(y, function(u), rtol=1e-6, atol=1e-37, equal_nan=True)


@pytest.mark.skipif(AHEAD, reason="only compiled")
def test_gradients_and_second_derivatives_through_autograd() -> None:
    case = Case((4, 3, 9, 5), True, torch.float64, FORMS[0])
    count, mean, m2 = reference.moments(Problem(case.x, case.groups, 3, case.mask))
    inverse = 1 / count.clamp(min=1).unsqueeze(1)
    source = Stored(mean, torch.rsqrt(m2 * inverse + 1e-5), inverse)
    found = []
    for kernel in (gpu, reference):
        x, weight, bias, residual = leaves = [
            t.detach().clone().requires_grad_()
            for t in (case.x, case.weight, case.bias, case.residual)
        ]
        problem = Problem(x, case.groups, 3, case.mask)
        epilogue = Epilogue(Affine(weight, bias), residual, case.act)
        y = standardise(problem, epilogue, source, None, kernel)
        first = torch.autograd.grad(y, leaves, case.dy, retain_graph=True)
        (again,) = torch.autograd.grad(y, x, case.dy, create_graph=True)
        (second,) = torch.autograd.grad((again * case.dy).sum(), weight)
        found.append((y.detach(), *first, second))
    close(*found, 1e-11)


class Absent:
    """A driver for a device that is not there: enough to compile for it."""

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 80, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


@pytest.mark.skipif(not AHEAD, reason="run, not only compiled")
def test_compiles_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes programs that the compiler refuses; all are taken to machine code."""
    run, seen = JITFunction.run, set()

    def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        assert "cubin" in kernel.asm
        seen.add(self.__name__)
        return kernel

    monkeypatch.setattr(JITFunction, "run", compiled)
    driver.set_active(Absent())
    for shape, by_rows, dtype, form in [
        ((4, 6, 9, 5), True, torch.float32, FORMS[0]),
        ((4, 6, 16, 16), False, torch.bfloat16, FORMS[1]),
        ((40, 17), False, torch.float64, FORMS[2]),
    ]:
        for verb, arguments in Case(shape, by_rows, dtype, form).calls().items():
            getattr(gpu, verb)(*arguments)
    programs = {name for name, value in vars(loops).items() if isinstance(value, JITFunction)}
    assert seen == {name for name in programs if not name.startswith("_")}
