"""The lens's loops in C++ give what plain torch gives, and refuse what does not fit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from normscope.kernels import cpu
from normscope.lens import loops
from normscope.moments import Moments


def both(monkeypatch: pytest.MonkeyPatch, work: Callable[[], tuple[Tensor, ...]]) -> None:
    assert cpu.operator("sweep") is not None
    compiled = work()
    monkeypatch.setattr(cpu, "operator", lambda name: None)
    for ours, plain in zip(compiled, work(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sweep(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, places = (torch.randn(5, 3, 77) + 1e3).to(dtype), torch.tensor([0, 5, 76])
    rows[:, 1] -= 1e3
    rows[0, 0, 3] = torch.nan

    def work() -> tuple[Tensor, ...]:
        mean, m2 = (torch.full((5, 3), 9.0).double() for _ in range(2))
        fired, taken = torch.full((5, 3), 9), rows.new_full((5, 3, 3), 9)
        loops.sweep(rows, mean, m2, fired, places, taken)
        return mean, m2, fired, taken

    both(monkeypatch, work)


@pytest.mark.parametrize("counted", [torch.int32, torch.int64])
def test_count_bins(counted: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = torch.randn(6, 3, 50) * 3
    taken[0, 0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30])
    mean, scale = torch.randn(6, 3).double(), torch.rand(6, 3).double() * 5
    labels = torch.tensor([0, 1, 2, 0, 1, 2])

    def work() -> tuple[Tensor, ...]:
        histogram = torch.ones(3, 3, 64, dtype=counted)
        loops.count_bins(taken, mean, scale, labels, histogram)
        assert histogram.sum() == taken.numel() + 3 * 3 * 64
        return (histogram,)

    both(monkeypatch, work)


def test_absorb(monkeypatch: pytest.MonkeyPatch) -> None:
    mean, m2 = torch.randn(7, 4).double(), torch.rand(7, 4).double()
    groups = torch.tensor([0, 2, 2, 0, 1, 0, 2])

    def work() -> tuple[Tensor, ...]:
        moments, rows = Moments.empty(3, 4), torch.empty(7, 4).double()
        loops.absorb(mean, m2, 10, groups, moments, rows)
        return moments.count, moments.mean, moments.m2, rows

    both(monkeypatch, work)


def test_what_would_be_read_or_written_elsewhere_is_refused() -> None:
    taken, numbers = torch.randn(2, 3, 4), torch.ones(2, 3).double()
    histogram: Any = torch.zeros(2, 3, 8, dtype=torch.int32)
    for labels, scale, counts in (
        (torch.tensor([0, 2]), numbers, histogram),
        (torch.tensor([0, -1]), numbers, histogram),
        (torch.tensor([0, 1]), numbers.float(), histogram),
        (torch.tensor([0, 1]), numbers, histogram.transpose(0, 1)),
        (torch.tensor([0, 1]), numbers[:1], histogram),
    ):
        with pytest.raises(RuntimeError):
            loops.count_bins(taken, numbers, scale, labels, counts)
    assert histogram.sum() == 0
