"""Moments of a stream of batches: totals, averages and standard errors, against NumPy."""

import numpy as np
import pytest
import torch

from normscope.moments import Moments
from normscope.probe.stream import BLOCKS, MomentStream, total_of


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
