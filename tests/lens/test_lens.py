"""The lens against independent code, its invariance, its errors, and what it leaves behind."""

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import f_classif
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import normscope
from normscope import layers, lens
from normscope.environment import threads
from normscope.errors import InputError, ModelError
from normscope.lens import layer_record, memory, statistics, sweep
from normscope.records import Inspection, Layer, StageMeasures
from normscope.report import findings, terminal
from normscope.report.inspection import document
from normscope.report.messages import LANGUAGES, catalogue

Array = NDArray[np.float64]
Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with threads(1):  # tensors this small lose time to several
        yield


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.data / 16 - 0.3, dtype=torch.float32), torch.tensor(data.target)


def trained(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    return model


@pytest.fixture(scope="module")
def mlp(digits: tuple[Tensor, Tensor]) -> nn.Module:
    torch.manual_seed(1)
    hidden = [nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU()]
    second = [nn.Linear(32, 24), nn.BatchNorm1d(24), nn.ReLU(inplace=True)]
    return trained(nn.Sequential(*hidden, *second, nn.Linear(24, 10)), *digits, epochs=5)


@pytest.fixture(scope="module")
def cnn(digits: tuple[Tensor, Tensor]) -> nn.Module:
    torch.manual_seed(2)
    image = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 6, 3, padding=1)]
    first = [nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, stride=2)]
    second = [nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Linear(72, 10)]
    x, y = digits
    return trained(nn.Sequential(*image, *first, *second), x[y < 4], y[y < 4], epochs=3)


def split(x: Tensor, y: Tensor, size: int, seed: int | None = None) -> Batches:
    order = torch.arange(len(x))
    if seed is not None:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return [(x[rows], y[rows]) for rows in order.split(size)]


def stages(layer: Layer) -> dict[str, StageMeasures]:
    return {stage.name: stage for stage in layer.stages}


def stored(
    model: nn.Module, name: str, batches: Batches, behind: Callable[[Array], Array]
) -> dict[str, Array]:
    """The four stages of a layer from stored activations of the same batches, in float64 NumPy."""
    kept: list[tuple[Tensor, Tensor]] = []
    layer = model.get_submodule(name)
    hook = layer.register_forward_hook(lambda m, a, y: kept.append((a[0].clone(), y.clone())))
    model.eval()
    with torch.no_grad():
        for x, _ in batches:
            model(x)
    model.train()
    hook.remove()
    before, after = (torch.cat(part).double().numpy() for part in zip(*kept, strict=True))
    shape = (1, -1, *[1] * (before.ndim - 2))
    mean = layer.running_mean.double().numpy().reshape(shape)
    var = layer.running_var.double().numpy().reshape(shape)
    z = (before - mean) / np.sqrt(var + layer.eps)
    return {"input": before, "normalised": z, "scaled_shifted": after, "activated": behind(after)}


def two_pass(values: Array, labels: Array) -> dict[str, Any]:
    """Every measure of one stage, from all values at once."""
    flat = np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])
    owner = np.repeat(labels, flat.shape[0] // len(labels))
    classes = np.unique(labels)
    between = sum(
        (owner == k).sum() * (flat[owner == k].mean(0) - flat.mean(0)) ** 2 for k in classes
    )
    features = values.reshape(*values.shape[:2], -1).mean(2)
    means = np.stack([features[labels == k].mean(0) for k in classes])
    centred = features - features.mean(0)
    s_t = centred.T @ centred / len(features)
    share = np.array([(labels == k).mean() for k in classes])
    offsets = means - features.mean(0)
    s_b = (offsets * share[:, None]).T @ offsets
    nearest = np.linalg.norm(features[:, None] - means, axis=2).argmin(1)
    spectrum = np.linalg.eigvalsh(s_t)
    return {
        "eta2": between / ((flat - flat.mean(0)) ** 2).sum(0),
        "lda": np.trace(np.linalg.solve(s_t, s_b)) / (len(classes) - 1),
        "nearest": (classes[nearest] == labels).mean(),
        "condition": spectrum[-1] / spectrum[0],
        "mean": np.stack([flat[owner == k].mean(0) for k in classes]),
        "var": np.stack([flat[owner == k].var(0) for k in classes]),
    }


def silu(y: Array) -> Array:
    return np.asarray(y / (1 + np.exp(-y)))


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize(
    ("net", "name", "behind", "classes"),
    [
        ("mlp", "4", lambda y: np.maximum(y, 0), 10),
        ("cnn", "2", lambda y: np.maximum(y, 0), 4),
        ("cnn", "5", silu, 4),
    ],
    ids=["mlp", "cnn first", "cnn second"],
)
def test_two_passes_over_stored_activations(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    digits: tuple[Tensor, Tensor],
    net: str,
    name: str,
    behind: Callable[[Array], Array],
    classes: int,
    compiled: bool,
) -> None:
    monkeypatch.setattr(sweep, "SMALL", 0 if compiled else 1 << 60)
    model = request.getfixturevalue(net)
    x, y = (t[digits[1] < classes] for t in digits)
    batches = split(x, y, 100)
    seen = lens.inspect(model, batches)
    layer = next(layer for layer in seen.layers if layer.name == name)
    expected = stored(model, name, batches, behind)
    labels = y.numpy().astype(float)
    assert [stage.name for stage in layer.stages] == list(expected)
    for stage in layer.stages:
        truth = two_pass(expected[stage.name], labels)
        np.testing.assert_allclose(stage.eta2, truth["eta2"], atol=1e-6)
        assert stage.eta2_mean == pytest.approx(truth["eta2"].mean(), abs=1e-6)
        assert stage.lda_fraction == pytest.approx(truth["lda"], abs=1e-6)
        assert stage.nearest_mean_accuracy == pytest.approx(truth["nearest"], abs=1 / len(x) + 1e-9)
        assert stage.condition == pytest.approx(truth["condition"], rel=1e-6)
        assert stage.rank == layer.channels
    truth = two_pass(expected["input"], labels)
    np.testing.assert_allclose(layer.class_mean, truth["mean"], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(layer.class_var, truth["var"], rtol=1e-6)

    z, fired = expected["normalised"], expected["scaled_shifted"] > 0
    edges = np.array([-np.inf, *layer.bin_edges[1:-1], np.inf])
    positions = math.prod(z.shape[2:])
    assert layer.positions == positions
    for k in range(classes):
        rows = labels == k
        for c in range(layer.channels):
            counts = np.histogram(z[rows, c], edges)[0]
            np.testing.assert_array_equal(layer.histogram[k][c], counts)
            assert sum(layer.histogram[k][c]) == rows.sum() * positions
            assert layer.firing[k][c] == pytest.approx(fired[rows, c].mean(), abs=1e-7)


def test_scikit_learn_agrees(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    seen = lens.inspect(nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 10)), split(x, y, 200))
    (layer,) = seen.layers
    features, labels, n, k = x.double().numpy(), y.numpy(), len(x), 10
    live = features.var(0) > 0
    f, _ = f_classif(features[:, live], labels)
    expected = f * (k - 1) / (f * (k - 1) + n - k)
    np.testing.assert_allclose(np.array(layer.stages[0].eta2)[live], expected, atol=1e-9)
    assert np.isnan(np.array(layer.stages[0].eta2)[~live]).all()

    # J is the mean squared canonical correlation: eta2 along each discriminant direction
    reader = LinearDiscriminantAnalysis(solver="svd").fit(features[:, live], labels)
    f, _ = f_classif(reader.transform(features[:, live]), labels)
    squared = f * (k - 1) / (f * (k - 1) + n - k)
    assert layer.stages[0].lda_fraction == pytest.approx(squared.mean(), abs=1e-6)
    assert layer.stages[0].rank == live.sum()
    assert "lens.note.constant" in layer.notes


@pytest.mark.parametrize(("size", "seed"), [(1, None), (7, None), (7, 1), (64, 2), (1000, 3)])
def test_batch_size_and_order_do_not_matter(
    digits: tuple[Tensor, Tensor], size: int, seed: int | None
) -> None:
    torch.manual_seed(0)
    linear, norm = nn.Linear(64, 8), nn.BatchNorm1d(8)
    model = nn.Sequential(linear, norm, nn.ReLU()).double()
    nn.init.normal_(norm.weight)
    x, y = digits[0][:300].double(), digits[1][:300]
    same(lens.inspect(model, split(x, y, size, seed)), lens.inspect(model, [(x, y)]))


def same(one: Inspection, two: Inspection) -> None:
    for a, b in zip(one.layers, two.layers, strict=True):
        np.testing.assert_array_equal(a.histogram, b.histogram)
        np.testing.assert_array_equal(a.firing, b.firing)
        np.testing.assert_allclose(a.class_mean, b.class_mean, rtol=3e-7, atol=1e-9)
        np.testing.assert_allclose(a.class_var, b.class_var, rtol=3e-7, atol=1e-9)
        for s, t in zip(a.stages, b.stages, strict=True):
            np.testing.assert_allclose(s.eta2, t.eta2, atol=1e-12)
            assert s.lda_fraction == pytest.approx(t.lda_fraction, abs=1e-10)
            assert s.nearest_mean_accuracy == t.nearest_mean_accuracy
            assert s.condition == pytest.approx(t.condition, rel=1e-6)
    assert one.counts == two.counts
    assert [layer.notes for layer in one.layers] == [layer.notes for layer in two.layers]


def test_a_sample_does_not_depend_on_batches_either(
    digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SAMPLE", 50)
    model = nn.Sequential(nn.BatchNorm1d(64), nn.ReLU()).double()
    x, y = digits[0][:400].double(), digits[1][:400]
    seen = lens.inspect(model, split(x, y, 33, seed=5))
    same(seen, lens.inspect(model, [(x, y)]))
    assert "lens.note.sampled" in seen.layers[0].notes
    accuracy = seen.layers[0].stages[0].nearest_mean_accuracy
    assert accuracy * 50 == pytest.approx(round(accuracy * 50))
    monkeypatch.undo()
    exact = lens.inspect(model, [(x, y)]).layers[0].stages[0].nearest_mean_accuracy
    assert accuracy == pytest.approx(exact, abs=0.2)


@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_information_is_invariant_and_geometry_is_not(
    request: pytest.FixtureRequest, digits: tuple[Tensor, Tensor], net: str
) -> None:
    seen = lens.inspect(request.getfixturevalue(net), split(*digits, 300))
    assert seen.invariance == max(layer.invariance for layer in seen.layers)
    assert 0 < seen.invariance < 1e-6
    for layer in seen.layers:
        x, z, y = (stages(layer)[name] for name in ("input", "normalised", "scaled_shifted"))
        np.testing.assert_allclose(x.eta2, z.eta2, atol=1e-6)
        np.testing.assert_allclose(z.eta2, y.eta2, atol=1e-6)
        assert x.lda_fraction == pytest.approx(z.lda_fraction, abs=1e-6)
        assert z.lda_fraction == pytest.approx(y.lda_fraction, abs=1e-6)
        assert x.condition != pytest.approx(z.condition, rel=1e-4)


class Bent(nn.BatchNorm1d):
    """Claims to be batch norm and is not affine."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y + 0.05 * y**2


class BentWithinImages(nn.BatchNorm2d):
    """Leaves the mean over positions, and so J, as batch norm would."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y + 0.5 * (y**2 - (y**2).mean((2, 3), keepdim=True))


@pytest.mark.parametrize(
    "modules",
    [
        [nn.Linear(64, 8), Bent(8)],
        [nn.Unflatten(1, (1, 8, 8)), BentWithinImages(1)],
    ],
    ids=["both", "eta2 only"],
)
def test_the_self_test_can_fail(digits: tuple[Tensor, Tensor], modules: list[nn.Module]) -> None:
    seen = lens.inspect(nn.Sequential(*modules), split(*digits, 300))
    assert seen.invariance > 3e-5
    (sentence,) = findings.verdict(seen)
    assert "In layer 1 " in sentence.en
    assert "1 层" in sentence.zh


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dead_channels(digits: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    linear, norm = nn.Linear(64, 8, dtype=dtype), nn.BatchNorm1d(8, dtype=dtype)
    with torch.no_grad():
        norm.weight[0] = 0
        norm.bias[:] = 0.1
        linear.weight[1] = 0
        linear.bias[1] = 1e4
    seen = lens.inspect(nn.Sequential(linear, norm), split(digits[0].to(dtype), digits[1], 300))
    (layer,) = seen.layers
    assert layer.notes == ("lens.note.gamma_zero", "lens.note.constant")
    assert layer.invariance < 1e-6
    assert math.isnan(layer.gate[0])
    assert layer.gate[2] == pytest.approx(-0.1)
    assert not math.isnan(layer.stages[0].eta2[0])
    assert math.isnan(layer.stages[2].eta2[0])
    assert math.isnan(layer.stages[0].eta2[1])
    assert [stage.rank for stage in layer.stages] == [7, 7, 6]
    assert {row[0] for row in layer.firing} == {1.0}


def test_fewer_directions_than_channels(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    first, second = nn.Linear(64, 4), nn.Linear(4, 8)
    norm = nn.BatchNorm1d(8)
    nn.init.normal_(norm.weight)
    seen = lens.inspect(nn.Sequential(first, second, norm), split(x, y, 300))
    (layer,) = seen.layers
    assert [stage.rank for stage in layer.stages] == [4, 4, 4]
    assert layer.invariance < 1e-6
    with torch.no_grad():
        hidden = first(x)
        features = second(hidden).double()
    four = two_pass(hidden.double().numpy(), y.numpy().astype(float))
    assert layer.stages[0].lda_fraction == pytest.approx(four["lda"], abs=1e-6)
    spectrum = np.linalg.eigvalsh(np.cov(features.numpy().T))
    assert layer.stages[0].condition == pytest.approx(spectrum[-1] / spectrum[-4], rel=1e-6)


def test_labels_with_gaps(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][digits[1] < 3], digits[1][digits[1] < 3]
    model = nn.BatchNorm1d(64)
    gaps = lens.inspect(model, [(x, torch.tensor([1, 4, 6])[y])])
    (one,), (two,) = gaps.layers, lens.inspect(model, [(x, y)]).layers
    assert gaps.counts == (0, 178, 0, 0, 182, 0, 177)
    for a, b in zip(one.stages, two.stages, strict=True):
        assert a.nearest_mean_accuracy == b.nearest_mean_accuracy
        assert a.lda_fraction == pytest.approx(b.lda_fraction, abs=1e-12)
    np.testing.assert_array_equal(one.histogram[4], two.histogram[1])


def test_outer_bins_hold_what_lies_beyond() -> None:
    model = nn.BatchNorm1d(1, eps=1e-12)  # z is x
    x = torch.tensor([[-100.0], [-6.0], [-5.9], [0.0], [0.1], [5.9], [100.0], [0.0]])
    (layer,) = lens.inspect(model, [(x, torch.tensor([0, 0, 0, 0, 0, 0, 0, 1]))]).layers
    counts = dict(enumerate(layer.histogram[0][0]))
    assert {place: n for place, n in counts.items() if n} == {0: 3, 32: 2, 63: 2}
    assert layer.bin_edges[0] == -layer.bin_edges[-1] == -6


def test_many_channels_are_thinned(
    digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "JOINT", 9)
    monkeypatch.setattr(layer_record, "JOINT", 9)
    model = nn.Sequential(nn.Linear(64, 33), nn.BatchNorm1d(33))
    seen = lens.inspect(model, split(*digits, 300))
    (layer,) = seen.layers
    assert layer.stages[0].rank == 9
    assert len(layer.stages[0].eta2) == 33
    assert layer.invariance < 1e-6
    assert layer.notes == ("lens.note.joint_channels",)
    kept = statistics.joint_channels(33).tolist()
    assert kept == [0, 4, 8, 12, 16, 20, 24, 28, 32]
    chosen = nn.Sequential(nn.Linear(64, 9), nn.BatchNorm1d(9))
    chosen[0].load_state_dict({"weight": model[0].weight[kept], "bias": model[0].bias[kept]})
    again = lens.inspect(chosen, split(*digits, 300)).layers[0]
    assert layer.stages[0].lda_fraction == pytest.approx(again.stages[0].lda_fraction, abs=1e-6)


def test_each_condition_is_a_layer_of_its_own(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:600], digits[1][:600]
    ids = torch.arange(600) % 2
    x = torch.where(ids.unsqueeze(1) == 1, 3 * x + 2, x)  # the second domain is another contrast
    norm = normscope.ConditionalBatchNorm1d(12, 2)
    model = nn.Sequential(nn.Linear(64, 12), norm, nn.ReLU())
    nn.init.normal_(norm.weight)
    with normscope.condition(ids):
        for _ in range(50):
            model(x)
    batches = [(x[r], y[r], ids[r]) for r in torch.arange(600).split(128)]
    seen = lens.inspect(model, batches)
    mixed, *each = seen.layers
    assert [layer.name for layer in seen.layers] == ["1", "1[condition 0]", "1[condition 1]"]
    assert mixed.notes == ("lens.note.mixed",)
    assert math.isnan(mixed.invariance)
    assert all(math.isnan(tau) for tau in mixed.gate)
    assert mixed.activation == "relu"
    # aligning the conditions is what lets the classes stand apart
    assert mixed.stages[1].eta2_mean > mixed.stages[0].eta2_mean + 0.05
    assert seen.invariance < 1e-6
    for k, layer in enumerate(each):
        plain = nn.BatchNorm1d(12)
        plain.load_state_dict({n: t[k] for n, t in norm.state_dict().items()})
        rows = ids == k
        one = nn.Sequential(model[0], plain, nn.ReLU())
        (expected,) = lens.inspect(one, split(x[rows], y[rows], 100)).layers
        np.testing.assert_allclose(layer.histogram, expected.histogram, atol=1)
        assert layer.gate == expected.gate
        for a, b in zip(layer.stages, expected.stages, strict=True):
            np.testing.assert_allclose(a.eta2, b.eta2, atol=1e-6)
            assert a.lda_fraction == pytest.approx(b.lda_fraction, abs=1e-6)


@pytest.mark.parametrize("missing", ["pooled", 2])
def test_conditional_layer_without_a_condition(digits: tuple[Tensor, Tensor], missing: Any) -> None:
    norm = normscope.ConditionalBatchNorm1d(64, 3, missing=missing)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    (layer,) = lens.inspect(norm, split(*digits, 300)).layers
    assert layer.name == "ConditionalBatchNorm1d"
    assert layer.invariance < 1e-6
    weight = norm.pooled()["weight"] if missing == "pooled" else norm.weight[2]
    np.testing.assert_allclose(layer.gamma, weight.tolist(), rtol=1e-6)


def test_what_is_no_map_per_channel_is_skipped(digits: tuple[Tensor, Tensor]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.frozen = normscope.BatchNorm1d(64), layers.FrozenBatchNorm1d(64)
            self.masked, self.mode = normscope.BatchNorm1d(64), layers.ModeNorm1d(64, 2)
            self.batch = normscope.BatchNorm1d(64).set_policy(layers.Policy(use="batch"))
            self.infers = normscope.ConditionalBatchNorm1d(64, 2, missing="infer")

        def forward(self, x: Tensor) -> Tensor:
            y = self.masked(self.frozen(self.plain(x)), mask=torch.arange(len(x)) > 3)
            z: Tensor = self.infers(self.batch(self.mode(y)))
            return z

    seen = lens.inspect(Model(), split(*digits, 300))
    assert [layer.name for layer in seen.layers] == ["plain", "frozen"]
    assert seen.invariance < 1e-6
    assert seen.skipped == {
        "masked": "lens.skip.masked",
        "mode": "lens.skip.not_per_channel",
        "batch": "lens.skip.no_statistics",
        "infers": "lens.skip.mixture",
    }


def test_reused_layer_is_followed_per_call(digits: tuple[Tensor, Tensor]) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(64)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.bn(torch.relu(self.bn(x)))
            return y

    first, second = lens.inspect(Twice(), split(*digits, 300)).layers
    assert (first.name, first.activation, second.name, second.activation) == (
        *("bn", "relu"),
        *("bn#2", None),
    )
    np.testing.assert_allclose(first.stages[3].eta2, second.stages[0].eta2, rtol=1e-12)
    assert len(second.stages) == 3


class Odd(nn.LayerNorm):
    """Is called a layer norm and is none."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).abs()


def test_what_cannot_be_followed_is_named_with_its_reason(digits: tuple[Tensor, Tensor]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.never = nn.BatchNorm1d(64), nn.BatchNorm1d(64)
            self.layer, self.batch = Odd(64), nn.BatchNorm1d(64, track_running_stats=False)
            self.folded, self.late = nn.BatchNorm1d(32), nn.BatchNorm1d(32)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.folded(self.batch(self.layer(self.bn(x))).view(-1, 32))
            self.late(y[:300] if len(x) == 300 else y)
            return y

    seen = lens.inspect(Model(), split(*digits, 300))
    assert [layer.name for layer in seen.layers] == ["bn"]
    assert seen.skipped == {
        "never": "lens.skip.not_called",
        "layer": "lens.skip.unknown_map",
        "batch": "lens.skip.no_statistics",
        "folded": "lens.skip.other_batch",
        "late": "lens.skip.other_batch",
    }


def test_classes_may_turn_up_late(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:400].double(), digits[1][:400]
    order = y.argsort(stable=True)
    model = nn.Sequential(nn.BatchNorm1d(64), nn.ReLU()).double()
    seen = lens.inspect(model, split(x[order], y[order], 50))
    same(seen, lens.inspect(model, [(x, y)]))
    names = [f"digit {k}" for k in range(12)]  # two of them without images
    named = lens.inspect(model, [(x, y)], classes=names, model_name="m", data_name="d")
    assert (named.model, named.data, named.classes) == ("m", "d", tuple(names))
    assert seen.classes == tuple("0123456789")
    assert named.counts == (*seen.counts, 0, 0)
    assert math.isnan(named.layers[0].class_mean[11][0])
    assert math.isnan(named.layers[0].firing[11][0])
    stage, expected = named.layers[0].stages[0], seen.layers[0].stages[0]
    assert stage.lda_fraction == pytest.approx(expected.lda_fraction, abs=1e-12)


def test_record_and_progress(digits: tuple[Tensor, Tensor], mlp: nn.Module) -> None:
    heard: list[int] = []
    seen = lens.inspect(mlp, split(*digits, 500), on_progress=heard.append)
    assert heard == [500, 1000, 1500, 1797]
    assert Inspection.from_json(seen.to_json()) == seen
    assert seen.layers[0].norm == "BatchNorm1d"
    norm = mlp.get_submodule("1")
    assert list(seen.layers[0].running_mean) == norm.running_mean.tolist()


def model_state(model: nn.Module) -> list[object]:
    return [
        {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    ]


@pytest.mark.parametrize("problem", [None, OSError("disk"), KeyboardInterrupt()], ids=str)
def test_no_trace_also_where_the_loader_raises(
    digits: tuple[Tensor, Tensor], mlp: nn.Module, problem: BaseException | None
) -> None:
    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        for place, batch in enumerate(split(*digits, 300)):
            if place == 2 and problem is not None:
                raise problem
            torch.rand(1)
            yield batch

    mlp[1].eval()
    before = model_state(mlp)
    if problem is None:
        lens.inspect(mlp, loader())
    else:
        expected = KeyboardInterrupt if isinstance(problem, KeyboardInterrupt) else InputError
        with pytest.raises(expected) as raised:
            lens.inspect(mlp, loader())
        if expected is InputError:
            assert str(raised.value) == (
                "the loader failed after 2 batches: OSError: disk; nothing was changed"
            )
    assert model_state(mlp) == before
    mlp[1].train()


X, Y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])


class Poisoned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / torch.zeros(())


def bn(**state: float) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(3)
    for name, value in state.items():
        getattr(norm, name).data.fill_(value)
    return norm


@pytest.mark.parametrize(
    ("model", "batches", "error", "sentence"),
    [
        (
            bn(),
            [(X, Y), (X, Y[:4])],
            InputError,
            r"the labels of batch 1 are int64 \(4,\), those of the batches before were one class",
        ),
        (bn(), [(X, Y + 3)], InputError, r"label 5; with 3 class names labels must lie in 0\.\.2"),
        (bn(), [], InputError, "the loader gave no samples"),
        (bn(), [(X[:0], Y[:0])], InputError, "the loader gave no samples"),
        (bn(), [(X / 0, Y)], InputError, "the inputs of batch 0 hold NaN or infinity"),
        (nn.Linear(3, 3), [(X, Y)], ModelError, r"\(Linear\) has no normalisation layer"),
        (
            nn.BatchNorm1d(3, track_running_stats=False),
            [(X, Y)],
            ModelError,
            r"no normalisation layer of the model can be followed \(it has BatchNorm1d\)",
        ),
        (
            nn.Sequential(bn(), nn.Linear(4, 1)),
            [(X, Y)],
            ModelError,
            r"layer 1 \(Linear\) failed on batch 0, given \(6, 3\) torch.float32, .*: RuntimeError: ",
        ),
        (
            nn.Sequential(bn(), nn.ReLU(), Poisoned(), bn()),
            [(X, Y)],
            ModelError,
            r"layer 3 \(BatchNorm1d\): its input holds NaN or infinity in batch 0",
        ),
        (
            nn.Sequential(bn(), bn(running_var=math.nan), bn()),
            [(X, Y)],
            ModelError,
            r"layer 1 \(BatchNorm1d\): its output holds NaN or infinity in batch 0",
        ),
    ],
)
def test_bad_input_is_one_sentence(
    model: nn.Module, batches: Any, error: type[Exception], sentence: str
) -> None:
    before = model_state(model)
    with pytest.raises(error, match=sentence) as raised:
        lens.inspect(model, batches, classes=["a", "b", "c"])
    assert "\n" not in str(raised.value)
    assert str(model_state(model)) == str(before)  # as text: NaN is not equal to itself


def test_too_many_classes_are_refused_before_memory_is_taken() -> None:
    with pytest.raises(
        ModelError, match=r"1,000,000,001 classes in 3 channels of 1 layers need .* MiB"
    ):
        lens.inspect(bn(), [(X, torch.tensor([0, 1, 2, 3, 4, 10**9]))])


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("lang", LANGUAGES)
def test_text(lang: Any, width: int, digits: tuple[Tensor, Tensor], mlp: nn.Module) -> None:
    seen = lens.inspect(mlp, split(*digits, 300))
    noted = replace(seen.layers[0], name="[red]mixed", notes=("lens.note.mixed",))
    seen = replace(seen, layers=(*seen.layers, noted), skipped={"norm": "lens.skip.per_sample"})
    console = Console(width=width, file=io.StringIO())
    terminal.show(document(seen), lang, console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert f"{seen.invariance:.1g}" in text
    assert f"{seen.layers[1].stages[3].lda_fraction:.3g}" in text
    assert f"{100 * seen.layers[0].firing_spread:.1f}%" in text
    assert "[red]mixed" in text
    for key in ("lens.note.mixed", "lens.skip.per_sample"):
        start = catalogue()[key][lang][:8]
        assert start in text


def test_every_key_of_the_lens_has_a_sentence() -> None:
    for key, sentence in catalogue().items():
        if key.startswith("lens."):
            assert set(sentence) == set(LANGUAGES), key
            assert sentence["en"] != sentence["zh"], key


def test_a_record_names_model_and_data_where_the_caller_does_not(
    digits: tuple[Tensor, Tensor],
) -> None:
    x, y = digits[0][:64], digits[1][:64]
    model = nn.Sequential(nn.BatchNorm1d(64), nn.ReLU())
    wrapped = nn.DataParallel(model, [])
    seen = lens.inspect(wrapped, [(x, y)])
    assert (seen.model, seen.data) == ("Sequential", "data")
    loader = DataLoader(TensorDataset(x, y), batch_size=32)
    assert lens.inspect(model, loader).data == "TensorDataset"
    assert lens.inspect(model, loader, model_name="a", data_name="b").data == "b"


def test_a_layer_whose_gammas_are_all_zero_is_named() -> None:
    """The last norm of a residual block begins so: nothing is left to compare behind it."""
    first, last = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
    model = nn.Sequential(nn.Linear(4, 6), first, nn.ReLU(), nn.Linear(6, 6), last)
    draw = torch.Generator().manual_seed(0)
    batch = (torch.randn(60, 4, generator=draw), torch.arange(60) % 3)
    nn.init.zeros_(last.weight)
    held, lost, *_ = (text.read("en") for text in findings.verdict(lens.inspect(model, [batch])))
    assert "in the only layer " in held
    assert lost == "Only where γ is 0, as in 4, is what a channel held gone."
    nn.init.zeros_(first.weight)
    lost, *_ = (text.read("en") for text in findings.verdict(lens.inspect(model, [batch])))
    assert lost == "Only where γ is 0, as in 1, 4, is what a channel held gone."
