"""The reference judges the compiled CPU loops: every dtype, layout, activation and form."""

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from normscope.kernels import cpu, reference
from normscope.kernels.problem import Affine, Epilogue, Problem, Statistics
from tests import oracle

DTYPES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
# shape and whether channels lie side by side
SHAPES = [
    ((5, 3, 7), False),
    ((4, 6, 9, 5), False),
    ((4, 6, 9, 5), True),
    ((14, 3, 3, 3), False),  # narrow: a block of channels is one row
    ((9, 17), False),
    ((3, 2, 20_000), False),  # longer than a piece
    ((2, 70, 1300), True),
    ((40, 600), False),
    ((3, 2, 2, 3, 4), True),
]
FORMS = [  # act, residual, masked, groups, affine rows
    ("relu", True, True, 3, 3),
    (None, False, False, 1, 1),
    (None, True, False, 1, 1),
    ("silu", False, True, 3, 1),
    ("silu", True, False, 1, 1),
    ("leaky_relu", True, False, 1, 3),
    ("leaky_relu", False, False, 3, 3),
    ("relu", False, False, 1, 1),
]
CASES = list(product(DTYPES, FORMS))


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """New memory is full of NaN, so that nothing goes unwritten."""
    torch.use_deterministic_algorithms(mode=True)
    yield
    torch.use_deterministic_algorithms(mode=False)


class Case:
    """Inputs of one call."""

    def __init__(
        self, shape: tuple[int, ...], by_rows: bool, dtype: torch.dtype, form: tuple[Any, ...]
    ) -> None:
        self.act, added, masked, self.k, rows = form
        n, c = shape[:2]

        def values() -> Tensor:
            x = (torch.randn(shape, dtype=torch.double) * 2 + 3).to(dtype)
            return x.movedim(1, -1).contiguous().movedim(-1, 1) if by_rows else x

        self.x, self.dy = values(), values()
        self.residual = values() if added else None
        self.groups = torch.randint(0, 3, (n,)) if max(self.k, rows) > 1 else None
        if self.groups is not None:
            self.groups[self.groups == 1] = 0  # group 1 is always empty
        self.mask = (torch.rand(n, 1, *shape[2:]) < 0.7) if masked else None
        if self.mask is not None:
            self.x = torch.where(self.mask, self.x, torch.nan)
        table = torch.float32 if dtype.itemsize == 2 else dtype
        self.weight = (torch.rand(rows, c, dtype=torch.double) + 0.5).to(table)
        self.bias = torch.randn(rows, c, dtype=torch.double).to(table)
        self.running = (torch.randn(self.k, c).to(table), torch.rand(self.k, c).to(table))

    def step(self) -> tuple[Tensor, ...]:
        """y and its gradients."""
        leaves = [
            None if t is None else t.detach().clone().requires_grad_()
            for t in (self.x, self.weight, self.bias, self.residual)
        ]
        x, weight, bias, residual = leaves
        y = layer(
            x, self.running, weight, bias, groups=self.groups, num_groups=self.k, mask=self.mask,
            act=self.act, residual=residual, min_count=4,
        )  # fmt: skip
        y.backward(self.dy)
        return (y.detach(), *(t.grad for t in leaves if t is not None))

    @property
    def problem(self) -> Problem:
        return Problem(self.x, self.groups, self.k, self.mask)

    @property
    def epilogue(self) -> Epilogue:
        return Epilogue(Affine(self.weight, self.bias), self.residual, self.act)

    def expected(self) -> tuple[Tensor, ...]:
        """y and its gradients by the reference and autograd, in float64."""
        leaves = [
            None if t is None else t.double().requires_grad_()
            for t in (self.x, self.weight, self.bias, self.residual)
        ]
        x, weight, bias, residual = leaves
        problem = self.problem._replace(x=x)
        count, mean, m2 = reference.moments(problem)
        missing = (4 - count).clamp(min=0).unsqueeze(1)
        filled = (count.unsqueeze(1) + missing).clamp(min=1)
        old, spread = (t.double() for t in self.running)
        share = missing / filled
        m2 = m2 + missing * spread + (old - mean) ** 2 * share * count.unsqueeze(1)
        mean = mean + (old - mean) * share
        rstd = torch.rsqrt(m2 / filled + 1e-5)
        epilogue = Epilogue(Affine(weight, bias), residual, self.act)
        y = reference.normalize(problem, Statistics(mean, rstd), epilogue)
        y.backward(self.dy.double())
        return (y, *(t.grad for t in leaves if t is not None))


def layer(
    x: Tensor,
    running: tuple[Tensor | None, Tensor | None] = (None, None),
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool = True,
    groups: Tensor | None = None,
    num_groups: int = 1,
    mask: Tensor | None = None,
    act: str | None = None,
    residual: Tensor | None = None,
    min_count: int = 0,
    call: Any = cpu.batch_norm,
) -> Any:
    """The operator, without an update of the running statistics."""
    return call(
        x, *running, weight, bias, training, False, 0.1, 1e-5, None, groups, num_groups, mask,
        cpu.ACTS[act], residual, min_count,
    )  # fmt: skip


@pytest.mark.parametrize(("dtype", "form"), CASES, ids=str)
def test_equals_the_reference(dtype: torch.dtype, form: tuple[Any, ...]) -> None:
    for shape, by_rows in SHAPES:
        case = Case(shape, by_rows, dtype, form)
        mine = case.step()
        for ours, theirs in zip(mine, case.expected(), strict=True):
            scale = max(1.0, float(theirs.detach().abs().max()))
            largest = float((ours.double() - theirs.detach()).abs().max()) / scale
            assert largest < DTYPES[dtype], (shape, by_rows)
            assert ours.dtype in (dtype, case.weight.dtype)
        kept = by_rows and len(shape) > 3  # as torch, which answers (N, C, L) contiguous
        assert mine[0].stride() == (case.x if kept else torch.empty(shape)).stride()


@pytest.mark.parametrize("channels", [1, 7, 8, 9, 15, 16, 17, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_odd_numbers_of_channels_and_rows(dtype: torch.dtype, channels: int) -> None:
    for form in (FORMS[1], FORMS[4]):
        for shape, by_rows in (
            ((37, channels), False),
            ((5, channels, 3, 3), False),
            ((5, channels, 3, 3), True),
            ((3, channels, 131), False),
            ((7, channels, 33), False),
        ):
            case = Case(shape, by_rows, dtype, form)
            for ours, theirs in zip(case.step(), case.expected(), strict=True):
                scale = max(1.0, float(theirs.detach().abs().max()))
                largest = float((ours.double() - theirs.detach()).abs().max()) / scale
                assert largest < DTYPES[dtype], (shape, by_rows, form)


@pytest.mark.parametrize("form", FORMS[:2], ids=str)
@pytest.mark.parametrize(("shape", "by_rows"), [((4, 6, 9, 5), False), ((4, 6, 9, 5), True)])
def test_the_four_verbs(shape: tuple[int, ...], by_rows: bool, form: tuple[Any, ...]) -> None:
    """As they run where a collective stands between them."""
    case = Case(shape, by_rows, torch.float64, form)
    problem, epilogue = case.problem, case.epilogue
    moments = cpu.moments(problem)
    for ours, theirs in zip(moments, reference.moments(problem), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    mean, rstd = torch.randn(case.k, 6).double(), torch.rand(case.k, 6).double()
    means = (torch.randn(case.k, 6).double(), torch.randn(case.k, 6).double())
    statistics, full = Statistics(mean, rstd), Statistics(mean, rstd, *means)
    for verb, arguments in {
        "normalize": (problem, statistics, epilogue),
        "backward_reduce": (case.dy, problem, statistics, epilogue),
        "backward_input": (case.dy, problem, full, epilogue),
    }.items():
        ours, theirs = (getattr(kernel, verb)(*arguments) for kernel in (cpu, reference))
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("ratio", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("by_rows", [False, True])
def test_moments_are_exact_for_a_large_mean_and_for_any_threads(
    by_rows: bool, ratio: float
) -> None:
    x = torch.randn(64, 8, 40, 40) + ratio
    if by_rows:
        x = x.to(memory_format=torch.channels_last)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(cpu.moments(Problem(x)))
    finally:
        torch.set_num_threads(threads)
    exact = reference.moments(Problem(x))
    for ours, other, third, theirs in zip(*found, exact, strict=True):
        assert torch.equal(ours, other)
        assert torch.equal(ours, third)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


RATIOS = (0.0, 1.0, 1e2, 1e3, 3e3, 5e3, 1e4, 1.5e4, 1e5, 1e6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_layers_moments_are_those_of_float64(dtype: torch.dtype) -> None:
    """With sums in float32, for any mean: of values on a coarse grid too, where sums are biased.

    What comes first in a chunk is three standard deviations off.
    """
    exact = dtype == torch.float64
    for shape, ratio in product([(8, 2, 128, 128), (40, 6, 30, 30), (64, 6, 5, 5), (2, 3)], RATIOS):
        x = torch.randn(shape, dtype=torch.double) + ratio
        x[(slice(None), slice(None), slice(None, None, 64), 0) if len(shape) == 4 else 0] += 3
        x = x.to(dtype)
        if not x.isfinite().all():  # float16 ends at 65 504
            continue
        n = x.numel() // shape[1]
        layouts = [x, x.to(memory_format=torch.channels_last)] if x.dim() == 4 else [x]
        mean, m2 = (t[0] for t in oracle.moments(x.double().numpy(), None, 1)[1:])
        for values in layouts:
            table = layer(values, call=cpu.batch_norm_recorded).table[:, 0].numpy()
            spread = np.sqrt(m2 / n)
            assert (abs(table[2] - mean) <= 1e-13 * ratio + 5e-8 * spread).all(), (shape, ratio)
            tolerance = 1e-11 if exact else 1e-7 if n > 100_000 else 8e-7
            assert (abs(table[3] - m2) <= tolerance * m2 + 1e-15).all(), (shape, ratio)


@pytest.mark.parametrize("by_rows", [False, True])
def test_squares_beyond_float32_are_summed_in_float64(by_rows: bool) -> None:
    x = torch.randn(6, 3, 40, 40)
    x = x.to(memory_format=torch.channels_last) if by_rows else x
    x[:, 1] *= 1e25
    y, table, _ = layer(x, call=cpu.batch_norm_recorded)
    _, mean, m2 = reference.moments(Problem(x))
    torch.testing.assert_close(table[2:], torch.stack([mean, m2]), rtol=1e-7, atol=1e-7)
    assert y.isfinite().all()


THREADED = [  # shape, whether channels lie side by side, groups, masked
    ((64, 8, 40, 40), False, 1, False),
    ((64, 8, 40, 40), True, 1, False),
    ((3, 2, 20_000), False, 1, False),
    ((4096, 300), False, 1, False),
    ((64, 24, 7, 7), False, 3, False),
    ((64, 24, 14, 14), False, 5, True),
    ((16, 3, 60, 60), True, 2, True),
    ((2048, 3, 5, 5), False, 1, False),
]


@pytest.mark.parametrize("case", THREADED, ids=str)
def test_a_step_gives_the_same_bits_for_any_threads(case: tuple[Any, ...]) -> None:
    shape, by_rows, k, masked = case
    x = torch.randn(shape) * 2 + 3
    x = x.to(memory_format=torch.channels_last) if by_rows else x
    groups = torch.randint(0, k, shape[:1]) if k > 1 else None
    mask = (torch.rand(shape[0], 1, *shape[2:]) < 0.7) if masked else None
    dy, weight = torch.randn_like(x), torch.rand(shape[1]) + 0.5
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            leaves = [t.detach().clone().requires_grad_() for t in (x, weight)]
            y = layer(
                leaves[0],
                (None, None),
                leaves[1],
                groups=groups,
                num_groups=k,
                mask=mask,
                act="silu",
            )
            y.backward(dy)
            found.append((y.detach(), *(t.grad for t in leaves)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for ours, first in zip(other, found[0], strict=True):
            assert torch.equal(ours, first)


def test_an_outlier_in_front_cancels_nothing() -> None:
    """The first value is what sums are centred by."""
    x = torch.randn(10, 2, 4000).double()
    x[0, :, 0] = 1e9
    _, mean, m2 = cpu.moments(Problem(x))
    _, exact, exact_m2 = reference.moments(Problem(x))
    torch.testing.assert_close(mean, exact, rtol=1e-11, atol=0)
    torch.testing.assert_close(m2, exact_m2, rtol=1e-11, atol=0)


@pytest.mark.parametrize("first", [float("nan"), float("inf")])
@pytest.mark.parametrize("by_rows", [False, True])
def test_what_is_not_finite_stays_in_its_group_and_channel(by_rows: bool, first: float) -> None:
    x = torch.randn(6, 3, 4, 4)
    x = x.to(memory_format=torch.channels_last) if by_rows else x
    x[0, 1, 0, 0] = first
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    y, table, _ = layer(x, groups=groups, num_groups=2, call=cpu.batch_norm_recorded)
    poisoned = torch.zeros(2, 3, dtype=torch.bool)
    poisoned[0, 1] = True
    assert torch.equal(table[3].isfinite(), ~poisoned)
    assert torch.equal(y.isnan().all((2, 3))[:3, 1], torch.ones(3, dtype=torch.bool))
    assert y[:, [0, 2]].isfinite().all()
    assert y[3:].isfinite().all()


def test_activations_beyond_what_exp_can_hold() -> None:
    u = torch.tensor([-1e30, -200.0, -88.0, -20.0, -1.0, 0.0, 1.0, 20.0, 88.0, 200.0, 1e30])
    u = torch.cat([u, torch.tensor([torch.nan, torch.inf])]).repeat(3, 1).reshape(-1, 1)
    zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    for act, function in reference.ACTIVATIONS.items():
        y = cpu.normalize(Problem(u), Statistics(zero, one), Epilogue(act=act))
        torch.testing.assert_close(y, function(u), rtol=1e-6, atol=1e-37, equal_nan=True)


def test_a_group_changes_nothing_in_another() -> None:
    """One call with groups gives the bits of a call for each group alone."""
    x, groups = torch.randn(12, 5, 30), torch.arange(12) % 4
    together = layer(x, groups=groups, num_groups=4)
    for k in range(4):
        assert torch.equal(together[groups == k], layer(x[groups == k]))


@pytest.mark.parametrize("by_rows", [False, True])
def test_a_group_that_is_masked_altogether(by_rows: bool) -> None:
    """It has samples but no values: moments of zero, an output and a gradient of zero."""
    groups = torch.arange(6) % 3
    mask = (groups != 1).reshape(6, 1, 1, 1).expand(6, 1, 4, 5)
    x = torch.where(mask, torch.randn(6, 7, 4, 5), torch.nan)
    x = x.to(memory_format=torch.channels_last) if by_rows else x
    problem = Problem(x, groups, 3, mask)
    for ours, theirs in zip(cpu.moments(problem), reference.moments(problem), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, check_dtype=False)
        assert ours[1].eq(0).all()
    x.requires_grad_()
    y = layer(x, groups=groups, num_groups=3, mask=mask)
    y.backward(torch.randn_like(x))
    for values in (y, x.grad):
        assert values[groups == 1].eq(0).all()
        assert values.isfinite().all()


def test_a_stored_variance_below_zero_counts_as_none() -> None:
    """A damaged checkpoint; the reference and the doctor read it so too."""
    x = torch.randn(4, 3, 5, 5)
    mean, variance = torch.zeros(3), torch.tensor([1.0, -2.0, 0.0])
    y, table, _ = layer(x, (mean, variance), training=False, call=cpu.batch_norm_recorded)
    expected = (variance.clamp(min=0) + 1e-5).rsqrt()
    torch.testing.assert_close(table[1, 0], expected.double())
    torch.testing.assert_close(y, x * expected.reshape(3, 1, 1))


def test_several_python_threads_at_once() -> None:
    x = torch.randn(32, 16, 40, 40)
    expected = cpu.moments(Problem(x))
    wrong = []

    def work() -> None:
        for _ in range(20):
            found = cpu.moments(Problem(x))
            if not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)):
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not wrong


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_works_alone() -> None:
    """The threads of OpenMP do not survive a fork; asking for them would wait for ever."""
    x = torch.randn(16, 16, 40, 40)
    expected = cpu.moments(Problem(x))
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    queue: Any = multiprocessing.get_context("fork").SimpleQueue()

    def child() -> None:
        found = cpu.moments(Problem(x))
        same = all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        queue.put(same)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(timeout=30)
    assert process.exitcode == 0
    assert queue.get()


LIMITED = """
import torch
from normscope.kernels import cpu, reference
from normscope.kernels.problem import Problem

torch.set_num_threads(4)
x = torch.randn(32, 16, 40, 40)
for y in (x, x.to(memory_format=torch.channels_last)):
    ours, exact = cpu.moments(Problem(y)), reference.moments(Problem(y))
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)
"""


def test_fewer_threads_than_asked_for_do_all_the_work() -> None:
    environment = os.environ | {"OMP_THREAD_LIMIT": "2"}
    subprocess.run([sys.executable, "-c", LIMITED], check=True, timeout=100, env=environment)


def test_every_form_says_what_it_cannot_take() -> None:
    assert cpu.unsupported(torch.randn(2, 3)) is None
    reasons = {
        "empty": torch.randn(0, 3),
        "on meta": torch.randn(2, 3, device="meta"),
        "torch.complex64": torch.randn(2, 3, dtype=torch.cfloat),
    }
    for reason, x in reasons.items():
        assert reason in str(cpu.unsupported(x))


def test_choices_are_covered() -> None:
    """Every choice, and every activation with and without residual, is compared."""
    assert {(form[0], form[1]) for form in FORMS} == set(
        product((None, *reference.ACTIVATIONS), (False, True))
    )
    for place in (2, 3, 4):
        assert len({form[place] for form in FORMS}) == 2
