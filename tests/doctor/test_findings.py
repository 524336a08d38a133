"""The numbers and facts that findings carry, and the statistics of samples behind them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normscope
from normscope.doctor import diagnose
from normscope.doctor.evidence import LayerSample, collected, norms_by_name
from normscope.moments import Moments
from normscope.probe.batches import Loader
from normscope.probe.compare import Goal, _z
from normscope.records import Finding
from tests.doctor.patients import healthy, in_training, norms


def summed(x: Tensor) -> Moments:
    """Moments of the rows of x, by the definition."""
    mean = x.mean(0)
    return Moments(torch.full_like(mean, len(x)), mean, ((x - mean) ** 2).sum(0))


def only(code: str, model: Any, **more: Any) -> Finding:
    (finding,) = diagnose(model, select=[code], **more).findings
    return finding


def test_sixteen_bits_and_a_mean_that_drowns_the_spread() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(3))
    model[0].running_mean[1], model[0].running_var[1] = -50.0, 2.0e-3
    found = only("NS023", model)
    assert found.measured == pytest.approx(50 / 0.002**0.5, rel=1e-5)
    assert (found.threshold, found.channels, found.facts["kind"]) == (1000, (1,), "ratio")
    model[0].running_mean.zero_()
    found = only("NS023", model.half())
    assert (found.measured, found.threshold) == (16, 32)
    assert (found.facts["kind"], found.facts["dtype"], found.repair) == ("bits", "float16", "widen")


def test_small_variances_are_told_by_their_smallest_and_their_share() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(5, eps=1e-3))
    model[0].running_var.copy_(torch.tensor([4e-3, 2e-3, 8e-3, 1.0, 2e-2]))
    found = only("NS006", model)
    assert found.measured == pytest.approx(3 / 5)
    assert found.channels == (0, 1, 2)
    assert float(found.facts["smallest"]) == pytest.approx(2e-3, rel=0.01)
    assert float(found.facts["eps"]) == pytest.approx(1e-3)


def test_gates_that_never_open_or_never_close_are_a_share_of_the_channels() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(8))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-9.0, -2.9, 0, 0, 0, 2.9, 3.1, 9.0]))
    found = only("NS011", model)
    assert found.measured == 3 / 8
    assert found.channels == (0, 6, 7)
    assert (found.facts["shut"], found.facts["open"], found.facts["of"]) == ("1", "2", "8")


def test_a_scale_that_is_not_finite_is_found_beside_the_statistics() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(4))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[2:] = torch.nan, torch.inf
    first, second = diagnose(model, select=["NS009"]).findings
    assert (first.measured, first.channels, first.repair) == (0.25, (1,), "")
    assert (second.measured, second.channels, second.severity) == (0.5, (2, 3), "error")
    assert (first.facts["count"], second.facts["of"]) == ("1", "4")


def test_steps_of_several_batches_are_told_with_their_number() -> None:
    found = only("NS019", healthy(), accumulate=4)
    assert (found.measured, found.facts["n"], found.severity) == (4, "4", "info")
    assert diagnose(healthy(), select=["NS019"], accumulate=1).passed == ("NS019",)


def test_another_eps_than_the_passports_is_an_error_and_another_momentum_a_warning() -> None:
    model = healthy()
    own = normscope.passport(model)
    norms(model)[0].eps = 1e-3
    norms(model)[1].momentum = 0.5
    found = diagnose(model, select=["NS032"], passport=own).findings
    kinds = {finding.facts["kind"]: finding.severity for finding in found}
    assert kinds == {"eps": "error", "momentum": "warning"}


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


def test_the_cause_of_a_gap_is_read_on_the_batches_of_training() -> None:
    model = healthy()
    norms(model)[0].running_mean += 4
    found = diagnose(model, in_training()[:8], select=["NS003"])
    assert [f.layer for f in found.findings] == ["2"]
    assert found.findings[0].measured > found.findings[0].threshold
