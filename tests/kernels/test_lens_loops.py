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
    rows[0, 0, 3], rows[4, 2, 76] = torch.nan, torch.inf
    monkeypatch.setattr(sweep, "BLOCK", 3 * 77 * 2)  # plain torch takes two images at once

    def work() -> tuple[Tensor, ...]:
        found = sweep.Sweep.of(rows, take=True)
        assert found.taken is not None
        assert not found.finite
        assert sweep.Sweep.of(rows[1:4]).finite
        return found.mean, found.m2, found.fired, found.positions, found.taken

    both(monkeypatch, work)


@pytest.mark.parametrize("counted", [torch.int32, torch.int64])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("by_place", [False, True])
def test_count_bins(
    counted: torch.dtype, shared: bool, by_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = torch.randn(6, 23, 50) * 3
    taken[0, 0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30])
    shape = (23,) if shared else (6, 23)
    mean, rstd = torch.randn(shape).double(), torch.rand(shape).double()
    labels = torch.randint(-1, 3, (6, 50) if by_place else (6,))
    channels = torch.arange(23) if shared else torch.tensor([1, 0, *range(4, 22)])
    used = int((labels >= 0).sum()) * (1 if by_place else 50)

    def work() -> tuple[Tensor, ...]:
        histogram = torch.ones(3, len(channels), 64, dtype=counted)
        sweep.count_bins(histogram, taken, mean, rstd, labels, channels)
        assert histogram.sum() == len(channels) * (used + 3 * 64)
        return (histogram,)

    both(monkeypatch, work)


@pytest.mark.parametrize("counted", [torch.int32, torch.int64])
def test_count_active(counted: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = torch.tensor([4, 7, 9, 12]).double()
    fired = torch.stack([torch.randint(0, int(n) + 1, (5,)) for n in sizes])
    none = torch.zeros(4, 5).double()
    seen = sweep.Sweep(none, none, fired, sizes)

    def work() -> tuple[Tensor, ...]:
        active, square = torch.ones(3, 5, dtype=counted), torch.ones(5).double()
        sweep.count_active(active, square, seen, torch.tensor([2, 0, 2, 2]))
        return active, square

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
    labels, channels = torch.tensor([0, 1]), torch.arange(3)
    loop = cpu.operator("count_bins")
    assert loop is not None
    for wrong in (
        {"labels": torch.tensor([0, 2])},
        {"labels": torch.zeros(2, 3).long()},
        {"labels": torch.arange(4)[::2]},
        {"scale": numbers.float()},
        {"scale": numbers[:1]},
        {"scale": numbers[0]},
        {"channels": torch.tensor([0, 1, 3])},
        {"channels": torch.tensor([0, -1, 2])},
        {"channels": torch.arange(2)},
        {"histogram": histogram.transpose(0, 1)},
    ):
        given = {
            "taken": taken, "mean": numbers, "scale": numbers, "labels": labels,
            "channels": channels, "histogram": histogram,
        }  # fmt: skip
        with pytest.raises(RuntimeError):
            loop(*(given | wrong).values())
    with pytest.raises(RuntimeError):
        cpu.operator("sweep")(taken, torch.tensor([4]))
    with pytest.raises(RuntimeError):
        cpu.operator("count_active")(
            torch.ones(2, 3).long(), numbers[:, 0].clone(), torch.tensor([0, 2]),
            torch.zeros(2, 3).long(), numbers[0].clone(),
        )  # fmt: skip
    assert histogram.sum() == 0
