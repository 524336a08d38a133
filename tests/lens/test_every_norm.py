"""Layers that normalise each sample by itself, and layers behind an activation."""

import io
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from normscope import lens
from normscope.layers import EvalNorm2d
from normscope.records import Inspection, Layer
from normscope.report import findings, format, html, terminal
from normscope.report.inspection import document as inspection_document
from normscope.report.messages import LANGUAGES, catalogue

Array = NDArray[np.float64]
Batches = list[tuple[Tensor, Tensor]]
KINDS, SIZE = 3, 40


def batches(shape: tuple[int, ...], images: int = 120) -> Batches:
    """Images of three classes of different mean and spread per channel."""
    draw = torch.Generator().manual_seed(2)
    y = torch.randint(0, KINDS, (images,), generator=draw)
    shift = torch.randn(KINDS, *shape, generator=draw)
    x = torch.randn(images, *shape, generator=draw) * (1 + y.view(-1, *[1] * len(shape)))
    return list(zip((x + shift[y]).split(SIZE), y.split(SIZE), strict=True))


def standardised(
    x: Array, axes: tuple[int, ...], *, centred: bool = True, eps: float = 1e-5
) -> Array:
    x = x - x.mean(axes, keepdims=True) if centred else x
    return np.asarray(x / np.sqrt((x**2).mean(axes, keepdims=True) + eps))


def by_group(x: Array, groups: int = 3) -> Array:
    return standardised(x.reshape(len(x), groups, -1), (2,)).reshape(x.shape)


def own_weighted(x: Array, w: float = 0.3) -> Array:
    """By w of each sample's statistics and 1 - w of running ones of mean 0.5 and variance 4."""
    mean, var = x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True)
    mixed = w * var + (1 - w) * 4 + w * (1 - w) * (mean - 0.5) ** 2
    return np.asarray((x - (w * mean + (1 - w) * 0.5)) / np.sqrt(mixed + 1e-5))


def eval_norm(timm: Any, **options: Any) -> nn.Module:
    layer = EvalNorm2d(6, own_weight=0.3, **options)
    layer.load_state_dict({**layer.state_dict(), "running_mean": torch.full((6,), 0.5),
                           "running_var": torch.full((6,), 4.0)})  # fmt: skip
    return layer.eval()


def timm_layer(name: str, *args: Any, **kwargs: Any) -> Callable[[Any], nn.Module]:
    return lambda timm: getattr(timm.layers, name)(*args, **kwargs)


def llama(timm: Any) -> nn.Module:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    return LlamaRMSNorm(6, eps=1e-5)


def gemma(timm: Any) -> nn.Module:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    return GemmaRMSNorm(6, eps=1e-5)


def convnext(timm: Any) -> nn.Module:
    from transformers.models.convnext.modeling_convnext import ConvNextLayerNorm

    layer: nn.Module = ConvNextLayerNorm(6, eps=1e-5, data_format="channels_first")
    return layer


TOKENS, IMAGE = (5, 6), (6, 4, 4)
CASES: dict[str, tuple[Callable[[Any], nn.Module], tuple[int, ...], int, Callable[[Array], Array]]]
CASES = {
    "vector": (lambda _: nn.LayerNorm(6), (6,), 1, lambda x: standardised(x, (1,))),
    "tokens": (lambda _: nn.LayerNorm(6), TOKENS, 2, lambda x: standardised(x, (2,))),
    "no beta": (lambda _: nn.LayerNorm(6, bias=False), TOKENS, 2, lambda x: standardised(x, (2,))),
    "map": (lambda _: nn.LayerNorm(6), (4, 4, 6), 3, lambda x: standardised(x, (3,))),
    "whole": (
        lambda _: nn.LayerNorm((6, 4, 4), elementwise_affine=False),
        IMAGE,
        1,
        lambda x: standardised(x, (1, 2, 3)),
    ),
    "rms": (
        lambda _: nn.RMSNorm(6, eps=1e-5),
        TOKENS,
        2,
        lambda x: standardised(x, (2,), centred=False),
    ),
    "group": (lambda _: nn.GroupNorm(3, 6), IMAGE, 1, by_group),
    "one group": (lambda _: nn.GroupNorm(1, 6), IMAGE, 1, lambda x: standardised(x, (1, 2, 3))),
    "instance": (
        lambda _: nn.InstanceNorm2d(6, affine=True),
        IMAGE,
        1,
        lambda x: standardised(x, (2, 3)),
    ),
    "bare instance": (lambda _: nn.InstanceNorm1d(6), (6, 9), 1, lambda x: standardised(x, (2,))),
    "timm": (timm_layer("LayerNorm2d", 6, eps=1e-5), IMAGE, 1, lambda x: standardised(x, (1,))),
    "timm rms": (
        timm_layer("RmsNorm", 6, eps=1e-5),
        TOKENS,
        2,
        lambda x: standardised(x, (2,), centred=False),
    ),
    "timm act": (timm_layer("GroupNormAct", 6, 3), IMAGE, 1, by_group),
    "llama": (llama, TOKENS, 2, lambda x: standardised(x, (2,), centred=False)),
    "gemma": (gemma, TOKENS, 2, lambda x: standardised(x, (2,), centred=False)),
    "evalnorm": (eval_norm, IMAGE, 1, own_weighted),
    "evalnorm act": (partial(eval_norm, act="relu"), IMAGE, 1, own_weighted),
    "convnext": (convnext, IMAGE, 1, lambda x: standardised(x, (1,))),
}


def shares(values: Array, labels: Array) -> Array:
    """eta2 of values (N, C, P)."""
    flat = np.moveaxis(values, 1, 2).reshape(-1, values.shape[1])
    owner = np.repeat(labels, values.shape[2])
    between = sum(
        (owner == k).sum() * (flat[owner == k].mean(0) - flat.mean(0)) ** 2 for k in range(KINDS)
    )
    return np.asarray(between / ((flat - flat.mean(0)) ** 2).sum(0))


def fraction(values: Array, labels: Array) -> float:
    """J of values (N, C, P)."""
    f = values.mean(2)
    f = f - f.mean(0)
    share = np.array([(labels == k).mean() for k in range(KINDS)])
    means = np.stack([f[labels == k].mean(0) for k in range(KINDS)])
    scale = 1 / f.std(0)
    means, f = means * scale, f * scale
    total, between = f.T @ f / len(f), (means * share[:, None]).T @ means
    values, vectors = np.linalg.eigh(total)
    kept = values > 1e-8
    turned = vectors[:, kept].T @ between @ vectors[:, kept]
    return float((np.diag(turned) / values[kept]).sum() / (KINDS - 1))


def channels(values: Array, axis: int) -> Array:
    moved = np.moveaxis(values, axis, 1)
    return moved.reshape(*moved.shape[:2], -1)


@pytest.mark.parametrize("name", list(CASES))
def test_each_sample_has_a_map_of_its_own(name: str, timm: Any) -> None:
    make, shape, axis, oracle = CASES[name]
    torch.manual_seed(0)
    layer = make(timm)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0.7, 0.5)
    loader = batches(shape)
    model = nn.Sequential(layer, nn.ReLU()).eval()
    record = lens.inspect(model, loader)
    (found,) = record.layers
    x = torch.cat([b[0] for b in loader])
    labels = torch.cat([b[1] for b in loader]).numpy()
    z = channels(oracle(x.double().numpy()), axis)
    with torch.no_grad():
        a = channels(model(x).double().numpy(), axis)
    gamma, beta = (np.array(t)[:, None] for t in (found.gamma, found.beta))
    y = gamma * z + beta
    np.testing.assert_allclose(
        np.maximum(y, 0), a, atol=1e-4
    )  # gamma and beta are those of the layer
    x_rows = channels(x.double().numpy(), axis)
    expected = {"input": x_rows, "normalised": z, "scaled_shifted": y, "activated": a}
    assert [s.name for s in found.stages] == list(expected)
    for stage in found.stages:
        np.testing.assert_allclose(
            stage.eta2, shares(expected[stage.name], labels), atol=1e-4, err_msg=stage.name
        )
        if "instance" not in name or stage.name == "input":
            assert stage.lda_fraction == pytest.approx(
                fraction(expected[stage.name], labels), abs=2e-3
            ), stage.name
    assert found.maps == "per_sample"
    assert found.activation == "relu"
    assert math.isnan(found.invariance)
    assert math.isnan(record.invariance)
    assert found.eta2_change == pytest.approx(
        shares(y, labels).mean() - shares(x_rows, labels).mean(), abs=1e-4
    )
    assert all(map(math.isnan, found.running_mean))
    np.testing.assert_allclose(
        found.firing, [(y[labels == k] > 0).mean((0, 2)) for k in range(KINDS)], atol=2e-3
    )
    edges = np.array([-np.inf, *found.bin_edges[1:-1], np.inf])
    for k in range(KINDS):
        for c in range(6):
            counts = np.histogram(z[labels == k, c], edges)[0]
            assert np.abs(counts - found.histogram[k, c]).sum() <= 4  # float32 at the edges
    assert Inspection.from_json(record.to_json()).to_json() == record.to_json()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_in_other_precisions(dtype: torch.dtype) -> None:
    layer = nn.LayerNorm(6, dtype=dtype)
    loader = [(x.to(dtype), y) for x, y in batches(TOKENS)]
    (found,) = lens.inspect(layer, loader).layers
    assert found.maps == "per_sample"


def test_what_is_scaled_by_position_or_by_another_rule_is_skipped() -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x.abs().amax(1, keepdim=True)

    class LayerNormOfOurs(Other):
        pass

    LayerNormOfOurs.__name__ = "ScaleLayerNorm"
    by_position = nn.LayerNorm(IMAGE)
    nn.init.normal_(by_position.weight)
    model = nn.Sequential(
        nn.BatchNorm2d(6), by_position, nn.LocalResponseNorm(2), LayerNormOfOurs()
    )
    record = lens.inspect(model, batches(IMAGE))
    assert [layer.name for layer in record.layers] == ["0"]
    assert set(record.skipped) == {"1", "2", "3"}
    assert set(record.skipped.values()) == {"lens.skip.unknown_map"}


def test_the_model_comes_back_and_parts_merge(tmp_path: Path) -> None:
    torch.manual_seed(1)
    norm = nn.GroupNorm(2, 8)
    nn.init.normal_(norm.weight)
    model = nn.Sequential(nn.Conv2d(6, 8, 3), norm, nn.GELU(), nn.Flatten(), nn.Linear(32, 5))
    model = nn.Sequential(model, nn.LayerNorm(5)).double().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    loader = [(x.double(), y) for x, y in batches(IMAGE)]
    whole = lens.inspect(model, loader)
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    first = lens.accumulate(model, loader[:1])
    path = lens.accumulate(model, loader[1:]).save(tmp_path / "rest.pt")
    merged = lens.inspection(first.merge(lens.InspectionState.load(path)))
    for a, b in zip(merged.layers, whole.layers, strict=True):
        assert a.maps == b.maps == "per_sample"
        np.testing.assert_array_equal(a.histogram, b.histogram)
        for s, t in zip(a.stages, b.stages, strict=True):
            np.testing.assert_allclose(s.eta2, t.eta2, atol=1e-11)
            assert s.lda_fraction == pytest.approx(t.lda_fraction, abs=1e-8)
            assert s.cdnv == pytest.approx(t.cdnv, rel=1e-9)


def test_a_pass_goes_on_where_only_the_input_tells_the_channels() -> None:
    model, loader = (
        nn.Sequential(nn.InstanceNorm2d(6), nn.LayerNorm(4, elementwise_affine=False)),
        batches(IMAGE),
    )
    state = lens.accumulate(model, loader[:1])
    lens.accumulate(model, loader, into=state)
    whole = lens.inspect(model, loader)
    for a, b in zip(lens.inspection(state).layers, whole.layers, strict=True):
        assert a.histogram_channels == b.histogram_channels == tuple(range(b.channels))
        np.testing.assert_array_equal(a.histogram, b.histogram)


def told(record: Inspection, lang: Any = "en") -> str:
    console = Console(width=150, file=io.StringIO())
    terminal.show(inspection_document(record), lang, console)
    text: str = console.file.getvalue()
    return text


def test_it_is_said_by_how_much_they_change_the_classes() -> None:
    torch.manual_seed(0)
    mixed = nn.Sequential(nn.BatchNorm2d(6), nn.GroupNorm(3, 6), nn.InstanceNorm2d(6))
    record = lens.inspect(mixed, batches(IMAGE))
    batch, group, instance = record.layers
    assert batch.maps == "one"
    assert record.invariance == batch.invariance < 1e-5
    assert abs(group.eta2_change) > 0.001
    assert math.isnan(instance.lda_change)
    assert "lens.note.same_means" in instance.notes
    text = told(record)
    assert "in the only layer" in text
    assert "normalise each sample by itself (GroupNorm, InstanceNorm2d: 1, 2)" in " ".join(
        text.split()
    )
    assert "1 *" in text
    assert "nan" not in text
    alone = lens.inspect(nn.GroupNorm(3, 6), batches(IMAGE))
    change = format.signed(alone.layers[0].lda_change)
    for lang in LANGUAGES:
        text = told(alone, lang)
        assert catalogue()["lens.selftest.none"][lang] in text
        assert change in text
        assert change in html.page(inspection_document(alone), lang)
    headline = findings.verdict(alone)[0]
    assert "normalise each sample by itself" in headline.en


# --- behind an activation ---


class Behind(nn.Module):
    """Convolution, activation, norm."""

    def __init__(self, act: nn.Module | Callable[[Tensor], Tensor], norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.act, self.norm = nn.Conv2d(6, 5, 3), act, norm
        self.after = nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.norm(self.act(self.conv(F.relu(x)))))
        return F.relu(y)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(5), nn.GroupNorm(1, 5)], ids=["batch", "group"])
@pytest.mark.parametrize(
    "act",
    [nn.ReLU(), nn.ReLU(inplace=True), F.relu_, F.gelu, nn.SiLU()],
    ids=["module", "in place", "function in place", "function", "silu"],
)
def test_the_stage_before_the_activation_that_makes_the_input(act: Any, norm: Any) -> None:
    torch.manual_seed(3)
    model = Behind(act, norm).eval()
    loader = batches(IMAGE)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    record = lens.inspect(model, loader)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    (layer,) = record.layers
    labels = torch.cat([y for _, y in loader]).numpy()
    with torch.no_grad():
        given = torch.cat([model.conv(F.relu(x)) for x, _ in loader]).double().flatten(2).numpy()
    assert layer.pre_activation is not None
    assert layer.pre_activation.name == "pre_activation"
    np.testing.assert_allclose(layer.pre_activation.eta2, shares(given, labels), atol=1e-5)
    assert layer.pre_activation.lda_fraction == pytest.approx(fraction(given, labels), abs=1e-3)
    assert layer.activation is None
    name = {"SiLU": "silu", "gelu": "gelu"}.get(
        getattr(act, "__name__", type(act).__name__), "relu"
    )
    assert layer.input_activation == name
    assert record.counts == tuple(np.bincount(labels))
    first, *_ = record.work
    assert (first.by, first.layer) == ("activation", "norm")
    assert first.lda == layer.stages[0].lda_fraction - layer.pre_activation.lda_fraction
    text = told(record)
    assert f"behind {name}" in text
    assert "before its activation p" in " ".join(text.split())
    page = html.page(inspection_document(record), "zh")
    assert f"{name} 之后" in page
    assert "激活函数之前 p" in page
    again = Inspection.from_json(record.to_json())
    assert again.layers[0].pre_activation == layer.pre_activation


def test_what_other_activations_are_given_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + F.relu(self.norm(self.conv(x))))

    kept = list[int]()
    observer = sys.modules["normscope.probe.observe"]._Observer
    keep = observer._keep

    def counted(self: Any, subject: object) -> Any:
        found = keep(self, subject)
        kept.append(found is not None and found.values is not None)
        return found

    monkeypatch.setattr(observer, "_keep", counted)
    record = lens.inspect(nn.Sequential(Residual(), Residual()), batches(IMAGE))
    assert kept == [0] * 6
    assert all(layer.pre_activation is None for layer in record.layers)
    assert "behind" not in told(record).split("Geometry")[0]


# --- chance ---


def random_labels(images: int) -> tuple[Inspection, Layer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    x, y = torch.randn(images, 16), torch.arange(images) % 4
    record = lens.inspect(model, [(x, y)])
    return record, record.layers[0]


def test_where_chance_separates_the_classes_that_is_the_headline() -> None:
    record, layer = random_labels(28)
    assert layer.stages[-1].lda_fraction > 0.9  # which says nothing
    first, *others = (text.en for text in findings.verdict(record))
    assert first.startswith("28 images are too few")
    assert "random J would already be 1.00" in first
    assert "more than 65 images" in first
    assert not findings.too_few([random_labels(66)[1]])
    assert not any("raises J" in text for text in others)
    assert not any("nearest class mean" in text for text in others)
    assert not any("firing" in text for text in others)


@pytest.mark.parametrize("images", [120, 1000])
def test_random_labels_have_no_finding(images: int) -> None:
    record, layer = random_labels(images)
    sentences = [text.en for text in findings.verdict(record)]
    assert len(sentences) == 2
    assert "are the same at the input" in sentences[0]
    assert "raises J in none of them by more than chance" in sentences[1]
    expected = layer.stages[0].rank / (images - 1)
    assert findings.chance(layer, layer.stages[0]) == expected
    assert layer.stages[0].lda_fraction == pytest.approx(expected, abs=0.1)
    assert layer.firing_spread == pytest.approx(layer.firing_chance, rel=0.5)


def test_the_spread_that_chance_gives() -> None:
    _, layer = random_labels(400)
    draw = np.random.default_rng(0)
    rates = draw.normal(size=(4000, 4))  # four class means of deviation 1
    ranges = np.ptp(rates, axis=1).mean()
    assert ranges == pytest.approx(2 * 1.0294, rel=0.02)
    assert layer.firing_chance == pytest.approx(2 * 1.0294 * 0.5 / math.sqrt(100), rel=0.1)
