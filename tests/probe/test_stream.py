"""Moments of a stream of batches: totals, averages and standard errors, against NumPy."""

import numpy as np
import pytest
import torch

from normscope.moments import Moments
from normscope.probe.stream import BLOCKS, ROWS, MomentStream, population_of, total_of


def stream(values: list[torch.Tensor]) -> MomentStream:
    found = MomentStream()
    for x in values:
        mean = x.mean(0)
        count = torch.tensor(float(len(x)), dtype=torch.float64)
        found.add(Moments(count, mean, (x - mean).square().sum(0)), len(x))
    return found


@pytest.mark.parametrize("batches", [2, 3, 10])
def test_standard_errors_are_those_of_the_formula(batches: int) -> None:
    sizes = [4 + i % 3 for i in range(batches)]
    x = [torch.randn(n, 5, dtype=torch.float64) + 0.3 * i for i, n in enumerate(sizes)]
    mean_error, var_error = stream(x).errors()
    whole = np.concatenate([v.numpy() for v in x])
    weights = np.array(sizes)[:, None] / len(whole)
    means = np.stack([v.numpy().mean(0) for v in x])
    spreads = np.stack([((v.numpy() - whole.mean(0)) ** 2).mean(0) for v in x])
    scale = batches / (batches - 1)
    expected = np.sqrt(scale * (weights**2 * (means - whole.mean(0)) ** 2).sum(0))
    of_var = np.sqrt(scale * (weights**2 * (spreads - whole.var(0)) ** 2).sum(0))
    np.testing.assert_allclose(mean_error, expected, rtol=1e-12)
    np.testing.assert_allclose(var_error, of_var, rtol=1e-12)


def test_standard_errors_are_the_spread_of_repeated_draws() -> None:
    """With three batches B/(B-1) is 1.5: without it errors are 18 % too small."""
    torch.manual_seed(0)
    channels = 4000
    found = stream([torch.randn(8, channels, dtype=torch.float64) for _ in range(3)])
    mean_error, _ = found.errors()
    true = (1 / 24) ** 0.5
    assert float(mean_error.square().mean().sqrt()) == pytest.approx(true, rel=0.03)
    single = stream([torch.randn(24, channels, dtype=torch.float64)])
    assert float(single.errors()[0].mean()) == pytest.approx(true, rel=0.05)


def test_totals_and_averages_do_not_depend_on_the_blocks() -> None:
    x = [torch.randn(3, 2, dtype=torch.float64) + i for i in range(5 * BLOCKS)]
    found = stream(x)
    assert len(found.blocks) <= 2 * BLOCKS
    whole = torch.cat(x)
    torch.testing.assert_close(found.total().mean, whole.mean(0))
    torch.testing.assert_close(found.total().var(correction=1), whole.var(0))
    torch.testing.assert_close(total_of([found]).mean, whole.mean(0))
    mean, var = found.per_batch()
    torch.testing.assert_close(mean, torch.stack([v.mean(0) for v in x]).mean(0))
    torch.testing.assert_close(var, torch.stack([v.var(0) for v in x]).mean(0))


def moments_of(*x: float) -> Moments:
    values = torch.tensor(x, dtype=torch.float64)[:, None]
    mean = values.mean(0)
    return Moments(torch.tensor(float(len(x))).double(), mean, (values - mean).square().sum(0))


def test_neighbours_are_merged_when_there_are_twice_as_many_blocks() -> None:
    found = MomentStream()
    for i in range(2 * BLOCKS):
        found.add(moments_of(i, i + 2), 2)
    assert [float(b.count) for b in found.blocks] == [2] * 2 * BLOCKS
    found.add(moments_of(0.0, 1.0), 2)
    assert [float(b.count) for b in found.blocks] == [4] * BLOCKS + [2]
    assert [float(b.mean) for b in found.blocks[:3]] == [1.5, 3.5, 5.5]
    found.add(moments_of(0.0, 1.0), 2)
    assert [float(b.count) for b in found.blocks[-2:]] == [4, 4]
    found.add(moments_of(0.0, 1.0), 2)
    assert [float(b.count) for b in found.blocks[-2:]] == [4, 2]
    assert (found.batches, found.samples) == (2 * BLOCKS + 3, 4 * BLOCKS + 6)
    for i in range(2 * BLOCKS - 4):  # up to so many blocks again, each of two batches
        found.add(moments_of(i), 1)
    while len(found.blocks) < 2 * BLOCKS or found._open < 2:
        found.add(moments_of(1.0), 1)
    found.add(moments_of(1.0), 1)
    assert len(found.blocks) == BLOCKS + 1
    for _ in range(3):  # now four batches in a block
        found.add(moments_of(1.0), 1)
    assert (len(found.blocks), float(found.blocks[-1].count)) == (BLOCKS + 1, 4)
    found.add(moments_of(1.0), 1)
    assert len(found.blocks) == BLOCKS + 2


def test_a_block_keeps_its_numbers_whatever_becomes_of_the_batch() -> None:
    found, batch = MomentStream(), moments_of(1.0, 5.0)
    for _ in range(ROWS + 1):
        found.add(batch, 2)
    batch.mean.fill_(9)
    batch.m2.fill_(9)
    assert {(float(b.mean), float(b.m2)) for b in found.blocks} == {(3, 8)}
    pointers = {t.data_ptr() for b in found.blocks for t in (b.mean, b.m2)}
    assert len(pointers) == 2 * (ROWS + 1), "each in memory of its own"


def test_an_average_over_batches_leaves_out_those_without_a_variance() -> None:
    found = MomentStream()
    for batch in (moments_of(2.0, 4.0), moments_of(100.0), moments_of(5.0, 5.0, 8.0)):
        found.add(batch, 3)
    mean, var = found.per_batch()
    assert mean.tolist() == [(3 + 6) / 2]
    assert var.tolist() == [(2 + 3) / 2]
    alone = MomentStream()
    alone.add(moments_of(4.0), 1)
    assert all(value.isnan().all() for value in alone.per_batch())


def test_one_block_counts_images_as_independent() -> None:
    found = stream([torch.tensor([[1.0], [3.0], [5.0], [7.0]]).double()])
    mean_error, var_error = found.errors()
    assert mean_error.item() == pytest.approx((5 / 4) ** 0.5)
    assert var_error.item() == pytest.approx(5 * (2 / 4) ** 0.5)
    drift = (1.25 + (var_error.item() / (2 * 5**0.5)) ** 2) ** 0.5 / 5**0.5
    assert found.drift_error().item() == pytest.approx(drift)
    nobody = MomentStream()
    nobody.add(moments_of(1.0, 3.0), 0)
    assert nobody.errors()[0].item() == 1, "as if it were one image"


def test_the_error_of_a_drift_of_a_constant_is_finite() -> None:
    found = stream([torch.full((4, 1), 2.0).double(), torch.full((4, 1), 2.5).double()])
    mean_error, var_error = (float(e) for e in found.errors())
    std = 0.25
    expected = (mean_error**2 + (var_error / (2 * std)) ** 2) ** 0.5 / std
    assert found.drift_error().item() == pytest.approx(expected)
    constant = stream([torch.full((4, 1), 2.0).double()] * 2)
    assert constant.drift_error().item() == 0
    tiny = stream([torch.tensor([[0.0], [1e-8]]).double()])
    # the deviation counts as 1e-6 where it is smaller
    assert tiny.drift_error().item() == pytest.approx(0.5e-8 / 2**0.5 / 1e-6, rel=1e-3)


def test_the_calls_of_a_layer_are_one_population() -> None:
    calls = [stream([torch.tensor([[1.0], [2.0]]).double()]), stream([torch.ones(4, 1).double()])]
    mean, var = population_of(calls)
    values = torch.tensor([1.0, 2, 1, 1, 1, 1]).double()
    torch.testing.assert_close(mean, values.mean()[None])
    torch.testing.assert_close(var, values.var()[None])
    assert float(total_of(calls).count) == 6
