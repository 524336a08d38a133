"""The parts of what is read of the data: counts, limits, padding, groups, noise and company."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normscope
from normscope.doctor import evidence
from normscope.doctor.evidence import (
    Composition,
    Evidence,
    LayerSample,
    _BatchNormCalls,
    _numbered,
    _padded,
    _sum,
    collected,
    norms_by_name,
)
from normscope.functional import moments
from normscope.moments import Moments
from normscope.probe.batches import Loader
from normscope.probe.compare import Goal
from normscope.probe.grammar import Batch

DRAW = torch.Generator().manual_seed(0)


def read(model: nn.Module, batches: Any, **more: Any) -> Evidence:
    loader = Loader(batches, model)
    return collected(model, loader, norms_by_name(model), Goal(), **more)


def kept(*inputs: Any) -> Evidence:
    return Evidence(kept=[Batch(i, None, len(x), (x,)) for i, x in enumerate(inputs)])


def test_a_share_of_padding_is_what_repeats_the_last_position() -> None:
    x = torch.randn(2, 3, 10, generator=DRAW)
    assert _padded(x) == 0
    x[0, :, 6:] = 0
    assert _padded(x) == pytest.approx(3 / 20), "the first of the run may be data"
    x[1, :2, 4:] = 7
    assert _padded(x) == pytest.approx(3 / 20), "in all channels"
    assert _padded(torch.zeros(2, 3, 10)) == pytest.approx(18 / 20)


def test_ids_are_numbered_in_the_order_in_which_they_come_up() -> None:
    rows: dict[int, int] = {}
    first = _numbered(torch.tensor([70, 70, 9]), rows)
    second = _numbered(torch.tensor([5, 70]), rows)
    assert first is not None
    assert second is not None
    assert rows == {9: 0, 70: 1, 5: 2}
    assert (first.tolist(), second.tolist()) == ([1, 1, 0], [2, 1])
    most: dict[int, int] = {}
    assert _numbered(torch.arange(256), most) is not None
    assert _numbered(torch.tensor([256]), most) is None


def test_groups_that_come_up_later_begin_at_none() -> None:
    x, ids = torch.randn(9, 2, generator=DRAW).double(), torch.tensor([0, 1, 2] * 3)
    whole = moments(x, ids, 3)
    early = x[ids < 2]
    found = _sum(
        _sum(None, moments(early, ids[ids < 2], 2)), moments(x[ids == 2], ids[ids == 2], 3)
    )
    for name in ("count", "mean", "m2"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name))
    found = _sum(whole, moments(early, ids[ids < 2], 2))
    assert found.count.tolist() == [6, 6, 3]


def test_labels_are_compared_over_batches_of_one_size_at_fixed_places() -> None:
    spread = Composition()
    for labels in ([0, 1], [0, 1], [0, 1], [0, 1], [1, 0, 1]):
        spread.add(torch.tensor(labels))
    assert spread.counts == {0: 5, 1: 6}
    chance = (25 + 36) / 121
    assert spread.chance == pytest.approx(chance)
    assert spread.fixed_places() == pytest.approx((1 - chance) / (1 - chance))
    assert spread.excess() == pytest.approx((2 / 14 - chance) / (1 - chance))
    three = Composition()
    for _ in range(3):
        three.add(torch.tensor([0, 1]))
    assert math.isnan(three.fixed_places())
    assert three.excess() == pytest.approx(-1)
    two = Composition()
    two.add(torch.tensor([0, 1, 1]))
    two.add(torch.tensor([0, 0, 1]))
    assert two.excess() == pytest.approx((4 / 12 - 0.5) / 0.5)
    same = Composition()
    for _ in range(4):
        same.add(torch.tensor([3, 3]))
    assert math.isnan(same.excess())
    assert math.isnan(same.fixed_places())
    assert Composition().chance == 1
    assert math.isnan(Composition().fixed_places())


@pytest.mark.parametrize(
    ("values", "of_each", "repeats"),
    [(1, 9, False), (2, 4, True), (2, 3, False), (256, 4, True), (257, 9, False)],
)
def test_ids_that_hardly_come_again_are_no_groups(values: int, of_each: int, repeats: bool) -> None:
    found = Composition()
    found.add(torch.arange(values).repeat(of_each))
    assert found.repeats is repeats


def test_no_more_than_64_batches_of_labels_are_kept() -> None:
    found = Composition()
    for _ in range(70):
        found.add(torch.tensor([0, 1]))
    assert len(found.columns) == 64
    assert sum(found.counts.values()) == 140


def test_distinct_samples_are_counted_where_inputs_are_wide_and_alike() -> None:
    few = torch.randn(3, 40, generator=DRAW)
    assert kept(few.repeat(8, 1)).distinct == 3
    assert kept(few.repeat(8, 1)).few
    assert not kept(few.repeat(7, 1)).few, "fewer than eight times"
    many = torch.randn(16, 40, generator=DRAW)
    assert kept(many.repeat(8, 1)).distinct == 16
    assert not kept(many.repeat(8, 1)).few
    assert kept(few + 1e-3 * torch.randn(3, 40, generator=DRAW), few).distinct == 3
    assert kept(torch.randn(9, 31, generator=DRAW)).distinct == 0, "too few values"
    assert kept(torch.randn(9, 32, generator=DRAW)).distinct == 9
    assert kept(torch.randn(4, 40), torch.randn(4, 50)).distinct == 0, "of several sizes"
    assert kept(torch.zeros(4, 40).long()).distinct == 0, "no numbers"
    assert kept(torch.randn(4, 1, 40, 40, generator=DRAW)).distinct == 4
    assert kept().distinct == 0
    named = Evidence(kept=[Batch(0, None, 3, (), {"x": few})])
    assert named.distinct == 3
    other = Evidence(kept=[Batch(0, None, 6, (few,))])
    assert other.distinct == 0, "a first tensor that has no row for each sample"


@pytest.mark.parametrize(("width", "distinct"), [(511, 20), (512, 2), (767, 2), (768, 20)])
def test_of_wide_inputs_every_second_or_third_value_is_looked_at(width: int, distinct: int) -> None:
    """Two samples over and over, told apart by every second value alone."""
    x = torch.randn(2, width, generator=DRAW).repeat(10, 1)
    x[:, 1::2] = 5 * torch.randn(20, width // 2, generator=DRAW)
    assert kept(x).distinct == distinct


def test_copies_lie_within_a_twentieth_of_the_mean_squared_distance() -> None:
    """Pairs of points on corners that are all 100 apart, squared; 38 of 40 others see each."""
    corners = 50**0.5 * torch.eye(40)[:20]
    for share, distinct in ((0.045, 20), (0.055, 40)):
        off = torch.zeros(20, 40)
        off[torch.arange(20), torch.arange(20) + 20] = (100 * share) ** 0.5
        assert kept(torch.cat([corners, corners + off])).distinct == distinct


def test_what_is_known_before_any_batch_is_read() -> None:
    found = Evidence()
    assert (found.noise, found.rounding, found.normalised) == (0, 0, False)
    assert math.isnan(found.leak)
    assert not found.few
    assert found.labels.chance == 1
    assert math.isnan(found.labels.excess())
    assert math.isnan(found.labels.fixed_places())
    assert not found.labels.repeats


def test_the_usual_batch_is_the_median() -> None:
    assert Evidence(sizes=[8, 8, 3]).usual == 8
    assert Evidence(sizes=[2, 9, 4, 3]).usual == 4


def test_what_is_kept_and_looked_at_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "KEPT", 20)
    monkeypatch.setattr(evidence, "CLOSE", 15)
    model = nn.Sequential(nn.BatchNorm1d(2)).eval()
    heard: list[tuple[int, int, str]] = []
    batches = list(torch.randn(50, 2, generator=DRAW).split(10))
    found = read(model, batches, on_progress=lambda *step: heard.append(step))
    assert [b.index for b in found.kept] == [0, 1]
    assert len(found.train) == len(found.eval) == 2
    assert found.layers["0"].sizes == [10, 10]
    assert found.sizes == [10] * 5
    assert found.gap.samples == 50
    assert heard == [(i, 0, "data") for i in range(5)]
    assert found.by_batch["0"][0].samples == 50
    assert found.dropped == {}
    assert found.loader.forward is None
    assert [b.index for b in found.loader.read()] == [0, 1]


def test_domains_and_classes_have_statistics_of_their_own() -> None:
    x, y = torch.randn(24, 2, generator=DRAW), torch.arange(24) % 3
    domain = 5 + torch.arange(24) % 2
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3)).eval()
    batches = list(zip(x.split(12), y.split(12), domain.split(12), strict=True))
    found = read(model, batches)
    for table, ids in ((found.by_domain, domain), (found.by_class, y)):
        values = ids.unique().tolist()
        assert table["0"].count.tolist() == [int((ids == v).sum()) for v in values]
        want = torch.stack([x[ids == v].double().mean(0) for v in values])
        torch.testing.assert_close(table["0"].mean, want, rtol=1e-5, atol=1e-6)
    assert found.places.counts == {5: 12, 6: 12}
    assert found.labels.counts == {0: 8, 1: 8, 2: 8}


def test_both_modes_and_dropout_are_measured_apart() -> None:
    torch.manual_seed(0)
    first, second = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    first.running_mean.fill_(1)
    first.running_var.fill_(4)
    model = nn.Sequential(first, nn.Dropout(0.5), second).eval()
    x = torch.randn(400, 2, generator=DRAW) + 3
    found = read(model, list(x.split(200)))
    stored = (x - 1) / (4 + 1e-5) ** 0.5
    torch.testing.assert_close(found.stored["2"][0].total().mean.float(), stored.mean(0))
    mean, var = found.population("2")
    torch.testing.assert_close(mean.float(), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(var.float(), torch.ones(2), atol=0.01, rtol=0)
    dropped = found.dropped["2"][0].total().var(1)
    assert bool((dropped / var > 1.7).all()), "half of the values are doubled"
    assert found.rounding == torch.finfo(torch.float32).eps
    assert found.noise == 0


def test_a_layer_is_looked_at_while_it_normalises_by_the_batch() -> None:
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(100)
    model = nn.Sequential(norm, nn.ReLU()).eval()
    x = torch.randn(6, 2, 3, 3, generator=DRAW)
    sample = read(model, [x]).layers["0"]
    assert 0.3 < float(torch.as_tensor(sample.active).sum()) / (2 * sample.values) < 0.7
    assert (sample.values, sample.positions, sample.activation) == (54, 9, "relu")
    means = x.double().mean((2, 3))
    assert sample.means is not None
    torch.testing.assert_close(sample.means.mean, means.mean(0))
    torch.testing.assert_close(sample.means.m2, (means - means.mean(0)).square().sum(0))
    torch.testing.assert_close(torch.as_tensor(sample.within), sample.means.m2)
    assert sample.padded == 0, "an image has no padding at its end"
    flat = read(nn.Sequential(nn.BatchNorm1d(2)).eval(), [torch.zeros(6, 2) + torch.arange(2)])
    assert flat.layers["0"].positions == 1
    sequences = torch.randn(4, 2, 8, generator=DRAW)
    sequences[:, :, 4:] = 0
    padded = [torch.randn(4, 2, 8, generator=DRAW), sequences, torch.randn(4, 2, 8, generator=DRAW)]
    found = read(nn.Sequential(nn.BatchNorm1d(2)).eval(), padded).layers["0"]
    assert found.padded == pytest.approx(3 / 8), "the largest share counts"


def test_how_much_lies_between_samples_has_bounds() -> None:
    def sample(of: float, all_: float, positions: int = 4) -> LayerSample:
        of_means = Moments(torch.tensor(9.0).double(), torch.zeros(1), torch.tensor([of]).double())
        whole = Moments(torch.tensor(36.0).double(), torch.zeros(1), torch.tensor([all_]).double())
        return LayerSample(means=of_means, all=whole, positions=positions, sizes=[9])

    assert sample(5, 20).share_between() == 1
    assert sample(6, 20).share_between() == 1, "no more than all"
    assert sample(1.25, 20).share_between() == pytest.approx(0)
    assert sample(0.5, 20).share_between() == 0
    assert sample(3.125, 20).share_between() == pytest.approx(0.5)
    assert sample(1.25, 20, positions=1).share_between() == 1
    assert LayerSample(positions=4).share_between() == 1
    assert sample(3.125, 20).effective() == pytest.approx(9 * 4 / 2.5)


def test_correlation_needs_four_batches_and_more_than_one_sample_in_them() -> None:
    def sample(sizes: list[int]) -> LayerSample:
        n = float(sum(sizes))
        means = Moments(torch.tensor(n).double(), torch.zeros(1), torch.tensor([n]).double())
        return LayerSample(means=means, sizes=sizes, within=torch.tensor([n / 2]).double())

    assert all(map(math.isnan, sample([3, 3, 3]).batch_correlation()))
    assert all(map(math.isnan, sample([1] * 6).batch_correlation()))
    sizes = [4, 4, 4, 2]
    r, error = sample(sizes).batch_correlation()
    m = (14 - (16 * 3 + 4) / 14) / 3
    msw, msb = 7 / 10, 7 / 3
    want = (msb - msw) / (msb + (m - 1) * msw)
    assert r == pytest.approx(want)
    assert error == pytest.approx((2 / 3) ** 0.5 * (1 - want) * (1 + (m - 1) * want) / m)


class Company(nn.Module):
    """Adds a share of the mean over the batch."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return x + self.share * x.mean(0)


def test_how_the_first_half_changes_in_other_company() -> None:
    x = torch.randn(8, 2, generator=DRAW)
    for share in (0.0, 0.5):
        model = nn.Sequential(nn.BatchNorm1d(2), Company(share)).eval()
        z = x / (1 + 1e-5) ** 0.5
        whole, other = z + share * z.mean(0), z[:4] + share * z[:4].mean(0)
        want = float((other - whole[:4]).abs().max() / whole.abs().max())
        assert read(model, [x]).leak == pytest.approx(want, rel=1e-4)
    assert math.isnan(read(model, [x[:1], x]).leak), "one sample has no company"
    assert read(model, [x[:2], x]).leak > 0


def test_rows_of_the_data_of_a_layer_by_condition_stay_apart() -> None:
    layer = normscope.ConditionalBatchNorm1d(2, 2).eval()
    x, ids = torch.randn(20, 2, generator=DRAW), torch.arange(20) % 2
    mean, var = read(layer, [{"input": x, "condition": ids}]).population("ConditionalBatchNorm1d")
    for row in (0, 1):
        np.testing.assert_allclose(mean[row], x[ids == row].mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(var[row], x[ids == row].var(0), rtol=1e-5)


def test_a_batch_norm_that_normalises_by_the_batch_is_noticed_wherever_it_is_called() -> None:
    x, mean, var = torch.randn(4, 3), torch.zeros(3), torch.ones(3)
    for call, by_batch in (
        (lambda: x.relu(), False),
        (lambda: F.batch_norm(x, mean, var), False),
        (lambda: F.batch_norm(x, mean, var, training=True), True),
        (lambda: F.batch_norm(x, None, None, None, None, True), True),
        (lambda: F.batch_norm(x, mean, var, None, None, False), False),
    ):
        with _BatchNormCalls() as calls:
            call()
        assert calls.seen is by_batch
    with _BatchNormCalls() as calls:
        F.batch_norm(x, mean, var, training=True)
        F.batch_norm(x, mean, var)
    assert calls.seen, "one is enough"
