"""The lens without labels, with masks, with one number per sample: every task has an inspection."""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from typer.testing import CliRunner

import normscope
from normscope import InputError, lens
from normscope.cli.app import app
from normscope.environment import threads
from normscope.lens.classes import at_positions
from normscope.records import Inspection, Layer
from normscope.records.inspection import BETWEEN
from normscope.report import html, terminal
from normscope.report.inspection import brief, document
from tests.report.chromium import chromium

Array = NDArray[np.float64]
N = 24
draw = torch.Generator().manual_seed(0)
MASKS = torch.randint(0, 3, (N, 8, 8), generator=draw)
MASKS[:, :2] = 255
MASKS[:, 2, 0] = -100
IMAGES = torch.randn(N, 2, 8, 8, generator=draw) + MASKS.clamp(0, 3).unsqueeze(1)
Y = torch.arange(N) % 3
TARGET = torch.randn(N, generator=draw).exp()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with threads(1):
        yield


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    first = [nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU()]
    second = [nn.Conv2d(5, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)]
    made = nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))
    made.train()(IMAGES)  # running statistics that are near those of the data
    return made.eval()


def batches(*columns: Any, size: int = 10) -> list[tuple[Any, ...]]:
    return [tuple(c[i : i + size] for c in columns) for i in range(0, N, size)]


@pytest.fixture(scope="module")
def alone(net: nn.Module) -> Inspection:
    return lens.inspect(net, batches(IMAGES, TARGET.unsqueeze(1)), model_name="net", data_name="d")


def test_what_needs_no_classes_is_that_of_a_pass_with_classes(
    net: nn.Module, alone: Inspection
) -> None:
    known = lens.inspect(net, batches(IMAGES, Y))
    assert (alone.classes, alone.counts, alone.images) == (("all samples",), (N,), N)
    assert (alone.labels, alone.targets) == ("none", "float32 (10, 1)")
    share = np.array(known.counts)[:, None] / N
    for one, other in zip(alone.layers, known.layers, strict=True):
        for name in ("gamma", "beta", "running_mean", "running_var", "gate", "drift"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9)
        np.testing.assert_array_equal(one.histogram[0], other.histogram.sum(0))
        np.testing.assert_allclose(one.firing[0], (share * other.firing).sum(0), rtol=1e-6)
        np.testing.assert_allclose(one.class_mean[0], (share * other.class_mean).sum(0), atol=1e-6)
        for a, b in zip(one.stages, other.stages, strict=True):
            assert (a.name, a.rank) == (b.name, b.rank)
            assert a.condition == pytest.approx(b.condition, rel=1e-6)
            assert a.more == pytest.approx(b.more, rel=1e-6)
    with torch.no_grad():
        x = net[0](IMAGES).double()
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0) + 1e-5
    stored_mean, stored = net[1].running_mean.double(), net[1].running_var.double() + 1e-5
    drift = ((mean - stored_mean) ** 2 + (var.sqrt() - stored.sqrt()) ** 2).sqrt() / stored.sqrt()
    np.testing.assert_allclose(alone.layers[0].drift, drift, rtol=1e-5)


def test_measures_between_classes_are_absent(alone: Inspection) -> None:
    assert not alone.compared
    assert not {row["measure"] for row in alone.to_rows()} & BETWEEN
    assert {"condition", "participation", "drift"} <= {row["measure"] for row in alone.to_rows()}
    plain = json.loads(alone.to_json())
    assert plain["collapse"] is None
    assert plain["separation"] == plain["work"] == []
    for layer in plain["layers"]:
        for name in BETWEEN & layer.keys():
            assert layer[name] in (None, []), name
        for stage in layer["stages"]:
            assert stage["eta2"] == []
            assert all(stage[name] is None for name in BETWEEN & stage.keys())
    assert Inspection.from_json(alone.to_json()).layers == alone.layers
    assert lens.compare(alone, alone).layers[0].moved == 0


@pytest.mark.parametrize("width", [60, 80, 140])
def test_every_output_says_what_is_missing_and_how_to_give_it(
    alone: Inspection, width: int
) -> None:
    for lang, sentence in (("en", "need classes"), ("zh", "需要类别")):
        console = Console(width=width, file=io.StringIO())
        terminal.show(document(alone), lang, console)
        text = console.file.getvalue()
        whole = "".join(text.split()) if lang == "zh" else " ".join(text.split())
        assert sentence in whole
        assert "labels=" in whole
        assert "nan" not in whole.lower()
        assert "not finite" not in whole
        for name in ("NCM", "CDNV", "separation D", "self-test:η²"):
            assert name not in whole
    assert "float32 (10, 1), which are no classes" in " ".join(repr(alone).split())
    for of in (document(alone), brief(alone)):
        assert "which are no classes" in html.fragment(of, "en")


def test_the_page_of_all_samples(alone: Inspection, tmp_path: Path) -> None:
    path = alone.save_html(tmp_path / "a.html", "en")
    with chromium() as browser:
        page = browser.new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda problem: wrong.append(str(problem)))
        page.goto(path.as_uri())
        page.locator("svg .lane").first.wait_for()
        assert page.locator("svg .lane").first.text_content() == "all samples"
        assert "of the values pass" in page.content()
        page.locator("[data-lang=zh]").click()
        assert page.locator("svg .lane").first.text_content() == "全部样本"
        assert not wrong
        page.close()


@pytest.mark.parametrize(
    "given",
    [
        [(x,) for (x,) in batches(IMAGES)],
        [(x, [{"boxes": torch.ones(2, 4), "labels": torch.ones(2)}] * len(x)) for (x,) in batches(IMAGES)],
        [(x, x) for (x,) in batches(IMAGES)],
        [(x, ["cat"] * len(x)) for (x,) in batches(IMAGES)],
        batches(IMAGES, Y - 1),
        batches(IMAGES, torch.rand(N, 8, 8)),
        batches(IMAGES, torch.randint(0, 2000, (N, 8, 8))),
        batches(IMAGES, torch.randint(0, 9, (N, 5))),
    ],
    ids=["images", "boxes", "images twice", "text", "below zero", "depth", "numbers", "columns"],
)  # fmt: skip
def test_what_has_no_classes_is_shown_together(net: nn.Module, given: Any) -> None:
    seen = lens.inspect(net, given, classes=["a", "b"])
    assert (seen.labels, seen.counts) == ("none", (N,))
    assert len(seen.layers) == 3


def test_one_class_is_shown_and_said(net: nn.Module) -> None:
    seen = lens.inspect(net, batches(IMAGES, Y * 0 + 1), classes=["a", "b", "c"])
    assert (seen.counts, seen.compared) == ((0, N, 0), False)
    assert "All 24 samples are of the class b" in " ".join(repr(seen).split())


def test_floats_of_0_and_1_are_two_classes(net: nn.Module) -> None:
    ones = (Y == 1).float()
    wanted = lens.inspect(net, batches(IMAGES, ones.long())).to_json()
    for given in (ones, ones.unsqueeze(1)):
        assert lens.inspect(net, batches(IMAGES, given)).to_json() == wanted


# --- one number per sample ------------------------------------------------------------------------


def test_terciles_are_three_groups_of_the_target(net: nn.Module) -> None:
    low, high = np.quantile(TARGET.double(), [1 / 3, 2 / 3])
    groups = torch.tensor(np.digitize(TARGET.double(), [low, high]))
    wanted = lens.inspect(net, batches(IMAGES, groups))
    generator = iter(batches(IMAGES, TARGET.unsqueeze(1)))
    seen = lens.inspect(net, generator, labels="terciles")
    assert seen.classes == (f"y < {low:.3g}", f"{low:.3g} ≤ y < {high:.3g}", f"y ≥ {high:.3g}")
    assert seen.counts == wanted.counts == (8, 8, 8)
    assert seen.layers == wanted.layers
    named = lens.inspect(net, batches(IMAGES, TARGET), labels="terciles", classes=["l", "m", "h"])
    assert named.classes == ("l", "m", "h")


def test_terciles_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "def model():\n    return torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.ReLU())\n"
        "def loader():\n    x = torch.randn(40, 3)\n    return [(x[:20], x[:20, 0]), (x[20:], x[20:, 0])]\n"
    )
    given = ["inspect", "--model", f"{file}:model", "--loader", f"{file}:loader", "--json"]
    found = CliRunner().invoke(app, [*given, "--labels", "terciles"])
    assert Inspection.from_json(found.stdout).counts == (13, 13, 14)
    assert Inspection.from_json(CliRunner().invoke(app, given).stdout).counts == (40,)


def test_a_part_continues_with_the_same_groups(net: nn.Module) -> None:
    every = batches(IMAGES, TARGET)
    state = lens.accumulate(net, every, labels="terciles", batch_limit=2)
    cuts = state.cuts
    lens.accumulate(net, every, into=state, labels="terciles")
    assert (state.cuts, state.images) == (cuts, N)
    other = lens.accumulate(net, every[1:], labels="terciles")
    with pytest.raises(InputError, match=r"have different labels, groups at .* and groups at"):
        state.merge(other)
    with pytest.raises(InputError, match="have different labels, groups at .* and none"):
        state.merge(lens.accumulate(net, every))


# --- masks ----------------------------------------------------------------------------------------


def nearest(masks: Tensor, side: int) -> Array:
    """The class at the middle of each of side x side cells, -1 where there is none."""
    at = ((np.arange(side) + 0.5) * masks.shape[-1] / side).astype(int)
    ids = masks.numpy()[:, at][:, :, at]
    return np.where((ids < 0) | (ids == 255), -1, ids).astype(float)


def truth(values: Tensor, ids: Array) -> dict[str, Any]:
    """Measures of positions and of regions, from stored values in float64."""
    x = np.moveaxis(values.double().numpy(), 1, -1)
    k = ids[ids >= 0]
    flat = x[ids >= 0]
    means = np.stack([flat[k == c].mean(0) for c in range(3)])
    centre = flat.mean(0)
    between = sum((k == c).sum() * (means[c] - centre) ** 2 for c in range(3))
    places = [(i, c) for i in range(N) for c in range(3) if (ids[i] == c).any()]
    size = np.array([(ids[i] == c).sum() for i, c in places])
    features = np.stack([x[i][ids[i] == c].mean(0) for i, c in places])
    offset = features - centre
    s_t = (offset * size[:, None]).T @ offset / size.sum()
    spread = (means - centre) * np.sqrt([[(k == c).mean()] for c in range(3)])
    near = np.linalg.norm(features[:, None] - means, axis=2).argmin(1)
    return {
        "eta2": between / ((flat - centre) ** 2).sum(0),
        "lda": np.trace(np.linalg.solve(s_t, spread.T @ spread)) / 2,
        "nearest": (near == [c for _, c in places]).mean(),
        "means": means,
        "var": np.stack([flat[k == c].var(0) for c in range(3)]),
        "firing": np.stack([(flat[k == c] > 0).mean(0) for c in range(3)]),
        "regions": len(places),
    }


@pytest.fixture(scope="module")
def dense(net: nn.Module) -> Inspection:
    return lens.inspect(net, batches(IMAGES, MASKS))


def test_each_position_has_the_class_of_its_mask(net: nn.Module, dense: Inspection) -> None:
    ids = nearest(MASKS, 8)
    assert dense.labels == "positions"
    assert dense.counts == tuple((ids == c).sum() for c in range(3))
    assert dense.images == N
    assert [layer.name for layer in dense.layers] == ["1", "4"]
    assert dense.skipped == {"6": "lens.skip.no_positions"}
    with torch.no_grad():
        steps = [net[:n](IMAGES) for n in (1, 2, 3, 4, 5)]
    stages: dict[tuple[str, int], tuple[Tensor, int]] = {
        ("1", 0): (steps[0], 8), ("1", 2): (steps[1], 8), ("1", 3): (steps[2], 8),
        ("4", 0): (steps[3], 4), ("4", 2): (steps[4], 4),
    }  # fmt: skip
    layers: dict[str, Layer] = {layer.name: layer for layer in dense.layers}
    for (name, place), (values, side) in stages.items():
        wanted, stage = truth(values, nearest(MASKS, side)), layers[name].stages[place]
        np.testing.assert_allclose(stage.eta2, wanted["eta2"], atol=1e-6)
        assert stage.lda_fraction == pytest.approx(wanted["lda"], abs=1e-6)
        assert stage.nearest_mean_accuracy == pytest.approx(wanted["nearest"], abs=0.02)
        assert layers[name].images == wanted["regions"]
        if place == 0:
            np.testing.assert_allclose(layers[name].class_mean, wanted["means"], rtol=1e-5)
            np.testing.assert_allclose(layers[name].class_var, wanted["var"], rtol=1e-5)
        if place == 2:
            np.testing.assert_allclose(layers[name].firing, wanted["firing"], rtol=1e-6)
    z = (steps[0] - net[1].running_mean.view(-1, 1, 1)) / (net[1].running_var + 1e-5).sqrt().view(
        -1, 1, 1
    )
    edges = [-np.inf, *layers["1"].bin_edges[1:-1], np.inf]
    for c in range(3):
        inside = z.movedim(1, -1).numpy()[ids == c]
        counted = layers["1"].histogram[c, 2]
        assert abs(counted - np.histogram(inside[:, 2], edges)[0]).sum() <= 2  # rounding at an edge
        assert counted.sum() == len(inside)
    assert dense.invariance < 1e-6
    assert dense.batches is not None
    assert math.isnan(dense.batches.excess)


@pytest.mark.parametrize("form", ["channel", "float", "int32", "by forward", "in parts"])
def test_every_form_of_a_mask_is_the_same(net: nn.Module, dense: Inspection, form: str) -> None:
    one_hot = nn.functional.one_hot(MASKS.clamp(0, 2), 3).movedim(3, 1)
    masks: dict[str, Tensor] = {
        "channel": MASKS.unsqueeze(1), "float": MASKS.double().unsqueeze(1), "int32": MASKS.int(),
    }  # fmt: skip
    every = batches(IMAGES, masks.get(form, MASKS))
    if form == "by forward":
        seen = lens.inspect(net, every, forward=lambda model, batch: model(batch[0]))
    elif form == "in parts":
        state = lens.accumulate(net, every[:1]).merge(lens.accumulate(net, every[1:]))
        seen = lens.inspection(state)
        for one, other in zip(seen.layers, dense.layers, strict=True):
            np.testing.assert_allclose(one.stages[0].eta2, other.stages[0].eta2, rtol=1e-10)
            assert one.stages[0].lda_fraction == pytest.approx(other.stages[0].lda_fraction)
        return
    else:
        seen = lens.inspect(net, every)
    assert seen.layers == dense.layers
    whole = lens.inspect(net, batches(IMAGES, MASKS.clamp(0, 2)))
    assert lens.inspect(net, batches(IMAGES, one_hot)).layers == whole.layers


def test_labels_of_tokens() -> None:
    """As for naming entities: one label per token, -100 where there is none, LayerNorm."""
    torch.manual_seed(0)
    ids, labels = torch.randint(0, 9, (N, 7)), torch.randint(0, 3, (N, 7))
    labels[:, -1] = -100
    model = nn.Sequential(nn.Embedding(9, 6), nn.LayerNorm(6))
    seen = lens.inspect(model, [{"input": ids, "labels": labels}])
    assert seen.labels == "positions"
    assert sum(seen.counts) == N * 6
    (layer,) = seen.layers
    with torch.no_grad():
        inside = model[0](ids)[labels == 1].numpy()
    np.testing.assert_allclose(layer.class_mean[1], inside.mean(0), rtol=1e-5, atol=1e-7)
    assert layer.maps == "per_sample"


def test_tokens_of_a_grid_lie_row_by_row() -> None:
    masks = torch.arange(32).view(1, 4, 8)
    found = at_positions(masks, (8,))
    assert found is not None
    assert found.tolist() == at_positions(masks, (2, 4)).flatten(1).tolist()
    for shape in ((7,), (9,), (1, 1), (), (2, 4, 2)):
        assert at_positions(masks, shape) is None


def test_a_batch_without_a_labelled_position_is_passed_over(net: nn.Module) -> None:
    masks = MASKS.clone()
    masks[10:20] = 255
    seen = lens.inspect(net, batches(IMAGES, masks))
    assert seen.images == N
    assert seen.layers[0].images < 45


def test_domains_and_masks_go_together() -> None:
    torch.manual_seed(0)
    ids = Y % 2
    norm = normscope.ConditionalBatchNorm2d(2, 2)
    nn.init.normal_(norm.weight)
    images = torch.where(ids.view(-1, 1, 1, 1) == 1, 3 * IMAGES + 2, IMAGES)
    with torch.no_grad(), normscope.condition(ids):
        for _ in range(50):
            norm(images)
        after = norm.eval()(images)
    model = nn.Sequential(norm, nn.ReLU())
    masks = MASKS.clone()
    masks[:2] = 255  # no position of condition 1 has a class in the first batch of two
    seen = lens.inspect(model, batches(images, masks, ids, size=2))
    mixed, *each = seen.layers
    assert [layer.name for layer in seen.layers] == ["0", "0[condition 0]", "0[condition 1]"]
    centre, spread = (t[ids].view(N, 2, 1, 1) for t in (norm.running_mean, norm.running_var))
    z = (images - centre) / (spread + norm.eps).sqrt()
    places = {0: images, 1: z, 2: after, 3: after.relu()}
    for place, values in places.items():
        wanted = truth(values, nearest(masks, 8))
        np.testing.assert_allclose(mixed.stages[place].eta2, wanted["eta2"], atol=1e-6)
        assert mixed.stages[place].lda_fraction == pytest.approx(wanted["lda"], abs=1e-6)
    np.testing.assert_array_equal(mixed.histogram, sum(layer.histogram for layer in each))
    for k, layer in enumerate(each):
        plain = nn.BatchNorm2d(2)
        plain.load_state_dict({n: t[k] for n, t in norm.state_dict().items()})
        one = nn.Sequential(plain, nn.ReLU())
        (expected,) = lens.inspect(one, [(images[ids == k], masks[ids == k])]).layers
        np.testing.assert_array_equal(layer.histogram, expected.histogram)
        np.testing.assert_allclose(layer.class_var, expected.class_var, rtol=1e-6)
        for a, b in zip(layer.stages, expected.stages, strict=True):
            np.testing.assert_allclose(a.eta2, b.eta2, atol=1e-6)
            assert a.lda_fraction == pytest.approx(b.lda_fraction, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "options", "sentence"),
    [
        (
            batches(IMAGES, Y)[:1] + batches(IMAGES, TARGET),
            {},
            "of batch 1 are float32 .10,., those",
        ),
        (batches(IMAGES, MASKS)[:1] + batches(IMAGES, Y), {}, "before were masks; labels=lambda"),
        (batches(IMAGES, MASKS), {"classes": ["a", "b"]}, r"label 2; with 2 class names"),
        (
            batches(IMAGES, TARGET),
            {"labels": 1},
            r"are float32 .10,.; classes are one whole number",
        ),
        (batches(IMAGES, MASKS), {"labels": "terciles"}, "needs one number per sample"),
        (batches(IMAGES), {"labels": "terciles"}, "are none that are numbers"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    net: nn.Module, given: Any, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as refused:
        lens.inspect(net, given, **options)
    assert "\n" not in str(refused.value)
    assert lens.inspect(net, given, labels=lambda batch: None).labels == "none"
