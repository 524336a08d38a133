"""The lens's loops in C++ give what plain torch gives, and refuse what does not fit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from normscope.kernels import cpu
from normscope.lens import sweep
from normscope.moments import Moments


def both(monkeypatch: pytest.MonkeyPatch, work: Callable[[], tuple[Tensor, ...]]) -> None:
    assert cpu.operator("sweep") is not None
    compiled = work()
    monkeypatch.setattr(cpu, "operator", lambda name: None)
    for ours, plain in zip(compiled, work(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.fixture(autouse=True)
def _compiled_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "SMALL", 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sweep(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (torch.randn(5, 3, 77) + 1e3).to(dtype)
    rows[:, 1] -= 1e3
    rows[0, 0, 3] = torch.nan
    monkeypatch.setattr(sweep, "BLOCK", 3 * 77 * 2)  # plain torch takes two images at once

    def work() -> tuple[Tensor, ...]:
        found = sweep.Sweep.of(rows, take=True)
        assert found.taken is not None
        return found.mean, found.m2, found.fired, found.positions, found.taken

    both(monkeypatch, work)


@pytest.mark.parametrize("counted", [torch.int32, torch.int64])
@pytest.mark.parametrize("shared", [False, True])
def test_count_bins(counted: torch.dtype, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = torch.randn(6, 19, 50) * 3
    taken[0, 0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30])
    shape = (19,) if shared else (6, 19)
    mean, rstd = torch.randn(shape).double(), torch.rand(shape).double()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])

    def work() -> tuple[Tensor, ...]:
        histogram = torch.ones(3, 19, 64, dtype=counted)
        sweep.count_bins(histogram, taken, mean, rstd, labels)
        assert histogram.sum() == taken.numel() + 3 * 19 * 64
        return (histogram,)

    both(monkeypatch, work)


@pytest.mark.parametrize("by_group", [False, True])
def test_absorb(by_group: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mean, m2 = torch.randn(7, 4).double(), torch.rand(7, 4).double()
    sizes = torch.tensor([1, 5, 3, 10, 2, 2, 8]).double()
    seen = sweep.Sweep(mean, m2, torch.zeros(7, 4).long(), sizes)
    groups, weights = torch.tensor([0, 2, 2, 0, 1, 0, 2]), torch.rand(2, 4).double()

    def work() -> tuple[Tensor, ...]:
        moments, traces = Moments.empty(3, 4), torch.ones(2, 3).double()
        if not by_group:
            moments = Moments(moments.count, moments.mean, moments.m2[:1].clone())
        rows = sweep.absorb(moments, seen, groups, weights, traces)
        return moments.count, moments.mean, moments.m2, rows, traces

    both(monkeypatch, work)


def test_what_would_be_read_or_written_elsewhere_is_refused() -> None:
    taken, numbers = torch.randn(2, 3, 4), torch.ones(2, 3).double()
    histogram: Any = torch.zeros(2, 3, 8, dtype=torch.int32)
    loop = cpu.operator("count_bins")
    assert loop is not None
    for labels, scale, counts in (
        (torch.tensor([0, 2]), numbers, histogram),
        (torch.tensor([0, -1]), numbers, histogram),
        (torch.tensor([0, 1]), numbers.float(), histogram),
        (torch.tensor([0, 1]), numbers, histogram.transpose(0, 1)),
        (torch.tensor([0, 1]), numbers[:1], histogram),
        (torch.tensor([0, 1]), numbers[0], histogram),
    ):
        with pytest.raises(RuntimeError):
            loop(taken, numbers, scale, labels, counts)
    assert histogram.sum() == 0
