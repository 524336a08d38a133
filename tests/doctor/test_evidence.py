"""What the data say of a layer: how samples and batches hang together, and what a gain is worth."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normscope.doctor.evidence import Composition, Evidence, LayerSample, collected, norms_by_name
from normscope.moments import Moments
from normscope.probe.batches import Loader
from normscope.probe.compare import Goal, _z
from normscope.probe.grammar import Batch


def summed(x: Tensor) -> Moments:
    """Moments of the rows of x, by the definition."""
    mean = x.mean(0)
    return Moments(torch.full_like(mean, len(x)), mean, ((x - mean) ** 2).sum(0))


def test_how_samples_of_a_batch_hang_together_is_an_analysis_of_variance() -> None:
    draw = np.random.default_rng(0)
    groups = 3 + draw.normal(size=(6, 1, 2)) + 0.5 * draw.normal(size=(6, 5, 2))
    x = torch.from_numpy(groups.reshape(30, 2)).float()
    model = nn.Sequential(nn.BatchNorm1d(2)).eval()
    batches = [(part, torch.arange(5) % 2) for part in x.split(5)]
    loader = Loader(batches, model)
    sample = collected(model, loader, norms_by_name(model), Goal()).layers["0"]
    within = ((groups - groups.mean(1, keepdims=True)) ** 2).sum((0, 1))
    np.testing.assert_allclose(torch.as_tensor(sample.within), within, rtol=1e-4)
    msw = within / 24
    msb = 5 * ((groups.mean(1) - groups.mean((0, 1))) ** 2).sum(0) / 5
    r = ((msb - msw) / (msb + 4 * msw)).mean()
    found, error = sample.batch_correlation()
    assert found == pytest.approx(r, rel=1e-4)
    assert error == pytest.approx((2 / 5) ** 0.5 * (1 - r) * (1 + 4 * r) / 5, rel=1e-4)
    few = replace(sample, sizes=[10, 10, 10])
    assert np.isnan(few.batch_correlation()).all(), "three batches say nothing"
    still = replace(sample, means=summed(torch.ones(30, 2, dtype=torch.float64)), within=0.0)
    assert np.isnan(still.batch_correlation()).all(), "no channel varies"


def test_positions_that_differ_within_a_sample_count_as_values_of_their_own() -> None:
    draw = torch.Generator().manual_seed(0)
    between = torch.randn(4000, 1, 2, generator=draw)
    for own, share in ((0.0, 1.0), (1.0, 0.5), (30.0, 0.0)):
        x = (between + own * torch.randn(4000, 4, 2, generator=draw)).double()
        sample = LayerSample(
            means=summed(x.mean(1)), all=summed(x.flatten(0, 1)), sizes=[8], positions=4
        )
        assert sample.share_between() == pytest.approx(share, abs=0.03)
        assert sample.effective() == pytest.approx(8 * 4 / (1 + 3 * share), rel=0.05)
    still = summed(torch.ones(8, 2, dtype=torch.float64))
    dead = LayerSample(means=still, all=still, sizes=[8], positions=4)
    assert (dead.share_between(), dead.effective()) == (1, 8)
    assert LayerSample(sizes=[2, 8, 4], positions=4).effective() == 4, "the usual size"


def test_a_gain_is_weighed_against_the_scale_of_what_it_is_of() -> None:
    few = torch.tensor([0.02, 0.02])
    assert _z(few, 1.0, whole=True) == 4
    assert _z(-few, 1.0, whole=True) == -4
    assert _z(few, 3.0, whole=True) == 0, "below a hundredth"
    assert _z(1e-3 * few, 1e-3, whole=True) == 4
    same = torch.full((9,), 0.5)
    assert _z(same, 2.0) == pytest.approx(0.5 / 2e-4)
    spread = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert _z(spread, 1.0) == pytest.approx(3 / (float(spread.std()) / 2))
    assert _z(spread[:1], 1.0) == 0


def test_labels_in_a_batch_are_compared_with_chance() -> None:
    spread = Composition()
    for _ in range(4):
        spread.add(torch.tensor([0, 1, 0, 1]))
    # of 12 ordered pairs of a batch 4 agree; of two samples of the data one half
    assert (spread.pairs, spread.of, spread.chance) == (16, 48, 0.5)
    assert spread.excess() == pytest.approx((1 / 3 - 1 / 2) / (1 / 2))
    assert spread.fixed_places() == pytest.approx(1)
    alone = Composition()
    for label in (0, 1, 0, 1):
        alone.add(torch.full((4,), label))
    assert alone.excess() == 1
    one = Composition()
    one.add(torch.tensor([3]))
    assert (one.pairs, one.of, one.chance) == (0, 0, 1)
    assert np.isnan(one.excess())
    assert np.isnan(one.fixed_places())


def test_values_are_counted_per_channel() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()).eval()
    batches = [(torch.randn(5, 2, 3, 4),) for _ in range(2)]
    loader = Loader(batches, model)
    sample = collected(model, loader, norms_by_name(model), Goal()).layers["0"]
    assert (sample.values, sample.positions, sample.sizes) == (2 * 5 * 12, 12, [5, 5])
    assert sample.activation == "relu"
    x = torch.cat([batch for (batch,) in batches])
    normed = [nn.BatchNorm2d(2)(part) for (part,) in batches]
    active = sum((part > 0).sum((0, 2, 3)) for part in normed)
    assert torch.equal(torch.as_tensor(sample.active), torch.as_tensor(active))
    assert sample.all is not None
    torch.testing.assert_close(sample.all.mean, x.double().mean((0, 2, 3)))


def test_batches_of_one_sample_can_be_told_apart() -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(4, 300, generator=draw)
    batches = [Batch(i, None, 1, (images[i % 4][None],), {}) for i in range(40)]
    assert Evidence(kept=batches).distinct == 4
    assert Evidence(kept=batches).few


def test_noise_that_no_seed_holds_is_measured_and_taken_out_of_the_gap() -> None:
    class Counts(nn.Module):
        """Moves by another amount in every call, as atomic sums on a GPU do, but more."""

        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counts.calls += 1
            return x + 0.1 * torch.randn(
                x.shape, generator=torch.Generator().manual_seed(self.calls)
            )

    model = nn.Sequential(nn.BatchNorm1d(8), Counts()).eval()
    x = torch.randn(200, 8)
    x = (x - x.mean(0)) / x.std(0)
    loader = Loader([x], model)
    found = collected(model, loader, norms_by_name(model), Goal())
    assert found.noise == pytest.approx(0.1 * 2**0.5, rel=0.1)
    assert found.gap.noise == found.noise
    assert found.gap.relative < 0.5 * found.noise
