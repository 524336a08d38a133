"""Measures of the lens against scikit-learn and NumPy, from activations that were stored."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.feature_selection import f_classif
from sklearn.metrics import mutual_info_score
from torch import Tensor, nn

from normscope import lens
from normscope.environment import threads
from normscope.lens import measures, sweep
from normscope.records import Inspection, Layer
from normscope.report import findings

Array = NDArray[np.float64]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with threads(1):
        yield


class Seen:
    """A small convolutional net on four digits: its inspection, and all it computed, stored."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        data = load_digits()
        rows = data.target < 4
        self.x = torch.tensor(data.data[rows] / 16 - 0.3, dtype=torch.float32)
        self.y = torch.tensor(data.target[rows])
        self.domain = torch.arange(len(self.x)) % 3
        self.x = self.x * (1 + self.domain.unsqueeze(1)) + self.domain.unsqueeze(1) / 4
        conv = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 6, 3, padding=1)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)]
        self.model = nn.Sequential(*conv, nn.BatchNorm2d(6), nn.ReLU(), *head)
        nn.init.normal_(self.model[2].weight)
        nn.init.normal_(self.model[2].bias)
        optimiser = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        for _ in range(6):
            for part in torch.randperm(len(self.x)).split(64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(self.model(self.x[part]), self.y[part]).backward()
                optimiser.step()
        self.order = torch.randperm(len(self.x))
        self.inspection: Inspection = lens.inspect(self.model, self.batches())
        (self.layer,) = self.inspection.layers
        self.model.eval()
        with torch.no_grad():
            parts = [self.x[rows] for rows in self.order.split(50)]  # as they were inspected
            back = self.order.argsort()
            before, after, logits = (
                torch.cat([layers(part) for part in parts])[back]
                for layers in (self.model[:2], self.model[:3], self.model)
            )
            self.logits = logits.numpy()
        norm = self.model[2]
        mean, var = norm.running_mean.view(-1, 1, 1), norm.running_var.view(-1, 1, 1)
        self.stored: dict[str, Array] = {
            "input": before.double().numpy(),
            "normalised": ((before.double() - mean) / (var.double() + norm.eps).sqrt()).numpy(),
            "scaled_shifted": after.double().numpy(),
            "activated": after.relu().double().numpy(),
        }
        self.labels = self.y.numpy()

    def batches(self, size: int = 50) -> list[tuple[Tensor, ...]]:
        return [(self.x[r], self.y[r], self.domain[r]) for r in self.order.split(size)]

    def stages(self) -> Iterator[tuple[Any, Array]]:
        for stage in self.layer.stages:
            yield stage, self.stored[stage.name]


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


def test_information_is_scikit_learns_on_the_same_bins(seen: Seen) -> None:
    z, layer = seen.stored["normalised"], seen.layer
    edges = np.array([-np.inf, *layer.bin_edges[1:-1], np.inf])
    assert layer.histogram_channels == tuple(range(6))
    for c in range(6):
        bins = np.digitize(z[:, c].ravel(), edges)
        owner = np.repeat(seen.labels, 64)
        expected = mutual_info_score(owner, bins) / math.log(2)
        assert layer.information[c] == pytest.approx(expected, abs=1e-6)
        exact = mutual_info_score(None, None, contingency=layer.histogram[:, c]) / math.log(2)
        assert layer.information[c] == pytest.approx(exact, abs=1e-12)


def test_gate_information_and_the_best_cut(seen: Seen) -> None:
    y, z, layer = seen.stored["scaled_shifted"], seen.stored["normalised"], seen.layer
    owner = np.repeat(seen.labels, 64)
    for c in range(6):
        gate = mutual_info_score(owner, y[:, c].ravel() > 0) / math.log(2)
        assert layer.gate_information[c] == pytest.approx(gate, abs=1e-9)
        cuts = {
            edge: mutual_info_score(owner, z[:, c].ravel() > edge) / math.log(2)
            for edge in layer.bin_edges[1:-1]
        }
        best = max(cuts, key=lambda edge: cuts[edge])
        assert layer.best_information[c] == pytest.approx(max(cuts[best], gate), abs=1e-6)
        if gate < cuts[best]:
            assert layer.best_gate[c] == pytest.approx(best)
        assert 0 <= layer.efficiency(c) <= 1
        assert layer.efficiency(c) == pytest.approx(gate / max(cuts[best], gate), abs=1e-6)


def features(values: Array) -> Array:
    return np.asarray(values.mean((2, 3)))


def test_separation_and_distance_normalised_variance(seen: Seen) -> None:
    for stage, values in seen.stages():
        f, labels = features(values), seen.labels
        means = np.stack([f[labels == k].mean(0) for k in range(4)])
        share = np.array([(labels == k).mean() for k in range(4)])
        within = sum(
            (f[labels == k] - means[k]).T @ (f[labels == k] - means[k]) for k in range(4)
        ) / len(f)
        offsets = means - share @ means
        between = (offsets * share[:, None]).T @ offsets
        expected = np.trace(within @ np.linalg.pinv(between, rcond=1e-10, hermitian=True))
        assert stage.separation == pytest.approx(expected, rel=1e-6)
        spread = [np.square(f[labels == k] - means[k]).sum(1).mean() for k in range(4)]
        pairs = [
            (spread[a] + spread[b]) / (2 * np.square(means[a] - means[b]).sum())
            for a in range(4)
            for b in range(a)
        ]
        assert stage.cdnv == pytest.approx(np.mean(pairs), rel=1e-6)


def test_the_share_of_the_domain(seen: Seen) -> None:
    for stage, values in seen.stages():
        flat = np.moveaxis(values, 1, -1).reshape(-1, 6)
        owner = np.repeat(seen.domain.numpy(), 64)
        f, _ = f_classif(flat[:, flat.var(0) > 0], owner)
        expected = f * 2 / (f * 2 + len(flat) - 3)
        assert stage.condition_eta2 == pytest.approx(expected.mean(), abs=1e-6)
    (plain,) = lens.inspect(seen.model, [batch[:2] for batch in seen.batches()]).layers
    assert all(math.isnan(stage.condition_eta2) for stage in plain.stages)


def test_neural_collapse(seen: Seen) -> None:
    found = seen.inspection.collapse
    assert found is not None
    f, labels = features(seen.stored["activated"]), seen.labels
    means = np.stack([f[labels == k].mean(0) for k in range(4)])
    offsets = means - means.mean(0)
    lengths = np.linalg.norm(offsets, axis=1)
    cosines = (offsets / lengths[:, None]) @ (offsets / lengths[:, None]).T
    angles = [abs(cosines[a, b] + 1 / 3) for a in range(4) for b in range(a)]
    simplex = (np.eye(4) - 1 / 4) / math.sqrt(3)
    gram = offsets @ offsets.T
    head = seen.model[6].weight.detach().double().numpy() @ offsets.T
    within = sum(np.cov(f[labels == k].T, bias=True) * (labels == k).mean() for k in range(4))
    unweighted = offsets.T @ offsets / 4
    pinv = np.linalg.pinv(unweighted, rcond=1e-10, hermitian=True)
    nearest = np.linalg.norm(f[:, None] - means, axis=2).argmin(1)
    assert found.layer == "2"
    assert found.within == pytest.approx(seen.layer.stages[3].separation / 4)
    assert found.within_unweighted == pytest.approx(np.trace(within @ pinv) / 4, rel=1e-6)
    assert found.norms == pytest.approx(lengths.std() / lengths.mean(), rel=1e-6)
    assert found.angles == pytest.approx(np.mean(angles), rel=1e-6)
    for value, matrix in ((found.simplex, gram), (found.duality, head)):
        assert value == pytest.approx(np.linalg.norm(matrix / np.linalg.norm(matrix) - simplex))
    assert found.agreement == pytest.approx((seen.logits.argmax(1) == nearest).mean(), abs=0.003)


@pytest.mark.parametrize(("sort", "size"), [(0.0, 8), (0.0, 32), (0.5, 32), (1.0, 32)])
def test_the_composition_law_is_predicted_and_measured(sort: float, size: int) -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, 8000)
    if sort:  # in a share of the batches all images are of one class
        for place, b in enumerate(range(0, 8000 // size, round(1 / sort))):
            labels[b * size : (b + 1) * size] = place % 4
    x = torch.tensor(labels[:, None] * np.array([1.0, -2.0]) + draw.normal(size=(8000, 2)))
    model = nn.BatchNorm1d(2).double()
    batches = [(x[r], torch.tensor(labels[r])) for r in np.arange(8000).reshape(-1, size)]
    seen = lens.inspect(model, batches)
    assert seen.batches is not None
    assert seen.batches.size == size
    assert seen.batches.excess == pytest.approx(sort, abs=0.06)
    predicted = (1 - seen.batches.excess) * (1 - 1 / size)
    assert seen.batches.predicted == pytest.approx(predicted)
    centred = np.concatenate([(b - b.mean(0)).numpy() for b, _ in batches])
    means = np.stack([x[labels == k].mean(0) for k in range(4)]) - x.mean(0).numpy()
    left = np.stack([centred[labels == k].mean(0) for k in range(4)])
    share = np.bincount(labels)[:, None] / 8000 / x.var(0, correction=0).numpy()
    exact = (share * means * left).sum() / (share * means**2).sum()
    assert seen.layers[0].signal == pytest.approx(exact, abs=1e-9)
    assert seen.layers[0].signal == pytest.approx(predicted, abs=0.03)


def test_excess_by_hand() -> None:
    assert measures.excess(torch.tensor([2, 2]), equal=4, pairs=4) == 1  # (0, 0), (1, 1)
    assert measures.excess(torch.tensor([2, 2]), equal=0, pairs=4) == -1  # (0, 1), (0, 1)
    assert math.isnan(measures.excess(torch.tensor([4, 0]), equal=12, pairs=12))
    assert math.isnan(measures.excess(torch.tensor([2, 2]), equal=0, pairs=0))


def test_who_did_the_work(seen: Seen) -> None:
    steps = {step.by: step for step in seen.inspection.work}
    assert list(steps) == ["normalisation", "gamma_beta", "activation"]
    x, z, y, a = seen.layer.stages
    assert steps["activation"].lda == a.lda_fraction - y.lda_fraction
    assert abs(steps["normalisation"].eta2) < 1e-7
    assert steps["gamma_beta"].separation == pytest.approx(math.log10(y.separation / z.separation))
    assert steps["normalisation"].condition == pytest.approx(math.log10(z.condition / x.condition))
    torch.manual_seed(0)
    deep = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 8), nn.BatchNorm1d(8))
    found = lens.inspect(deep, [(b[0], b[1]) for b in seen.batches()])
    assert [(w.layer, w.by) for w in found.work] == [
        ("0", "normalisation"),
        ("0", "gamma_beta"),
        ("2", "weights"),
        ("2", "normalisation"),
        ("2", "gamma_beta"),
    ]
    jumps = sum(w.lda for w in found.work)
    first, last = found.layers[0].stages[0], found.layers[1].stages[-1]
    assert jumps == pytest.approx(last.lda_fraction - first.lda_fraction)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 7), (3, 5, 4, 3), (3, 5, 2, 2, 30)], ids=str)
def test_a_sweep_is_exact(
    dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = (1e4 + torch.randn(shape)).to(dtype)
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    rows = x.double().flatten(2).numpy() if len(shape) > 2 else x.double().unsqueeze(2).numpy()
    histograms = []
    for small in (0, 1 << 60):
        monkeypatch.setattr(sweep, "SMALL", small)
        monkeypatch.setattr(sweep, "POSITIONS", 60)
        found = sweep.Sweep.of(sweep.rows_of(x), take=True)
        np.testing.assert_allclose(found.mean, rows.mean(2), rtol=1e-14)
        np.testing.assert_allclose(found.m2, rows.var(2) * rows.shape[2], rtol=1e-9, atol=1e-9)
        assert bool((found.fired == rows.shape[2]).all())
        histogram = torch.zeros(2, 5, sweep.BINS, dtype=torch.int32)
        mean = torch.full((5,), 1e4, dtype=torch.float64)
        assert found.taken is not None
        labels, every = torch.tensor([0, 1, 0]), torch.arange(5)
        sweep.count_bins(histogram, found.taken, mean, torch.ones_like(mean), labels, every)
        histograms.append(histogram)
    assert torch.equal(*histograms)
    assert int(histograms[0].sum()) == 3 * 5 * min(60, rows.shape[2])


def test_a_histogram_of_more_than_an_int32_holds() -> None:
    layer: Layer
    model, x = nn.BatchNorm1d(2), torch.randn(6, 2)
    batch = (x, torch.tensor([0, 1, 0, 1, 0, 1]))
    full = lens.accumulate(model, [batch])
    (tracked,) = full.layers.values()
    tracked.histogram[tracked.histogram > 0] = 2**31 - 2
    tracked.stages["input"].count.fill_(2**31)
    before = tracked.histogram.long().clone()
    lens.accumulate(model, [batch, batch], into=full)
    assert tracked.histogram.dtype == torch.int64
    assert int(tracked.histogram.sum() - before.sum()) == 12
    (layer,) = lens.inspection(full).layers
    assert layer.histogram.max() > 2**31 - 2


def test_no_collapse_where_all_classes_have_one_mean() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    nn.init.zeros_(model[1].weight)
    seen = lens.inspect(model, [(torch.randn(20, 3), torch.arange(20) % 2)])
    told = findings.collapsed(seen)
    assert told is not None
    assert "all classes have the same mean" in told.en
    assert "nan" not in told.en
