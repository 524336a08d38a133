"""Dense outputs: masks, heatmaps, depth, boxes."""

import copy
import io
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from normscope.report import terminal
from normscope.report.diagnosis import document
from tests.situations.situation import (
    assert_cleared,
    assert_kept,
    assert_stale,
    blamed,
    by_hand,
    epoch_ago,
    look,
    mended,
    norms,
    reset,
    settled,
    train,
)


def block(i: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


def text_of(found: Any) -> str:
    out = io.StringIO()
    terminal.show(document(found), "en", Console(file=out, width=200))
    return out.getvalue().lower()


def cells(n: int, seed: int, ignore: int) -> tuple[Tensor, Tensor]:
    """Microscope fields: round bright cells and dark ones on a stained ground; rims are not annotated."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:16, :16]
    image, mask = np.zeros((n, 16, 16)), np.zeros((n, 16, 16), dtype=np.int64)
    for i in range(n):
        for kind, level in ((1, 1.0), (2, -1.0)):
            row, column, radius = random.uniform(3, 13), random.uniform(3, 13), random.uniform(2, 4)
            away = np.hypot(rows - row, columns - column)
            image[i][away < radius], mask[i][away < radius] = level, kind
            mask[i][np.abs(away - radius) < 0.4] = ignore
    x = torch.tensor(image + 0.3 * random.standard_normal(image.shape), dtype=torch.float32)
    return torch.stack([x, 0.5 * x + 0.2], 1), torch.tensor(mask)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(block(2, 12), block(12, 12))
        self.main, self.aux = nn.Conv2d(12, 3, 1), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return self.main(features), self.aux(features)


def segmenter(ignore: int) -> tuple[nn.Module, list[Any]]:
    x, y = cells(192, 0, ignore)
    batches = list(zip(x.split(16), y.split(16), strict=True))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        main, aux = model(batch[0])
        first, second = (F.cross_entropy(o, batch[1], ignore_index=ignore) for o in (main, aux))
        return first + second

    torch.manual_seed(0)
    return settled(train(TwoHeads(), batches, loss), batches), batches


def pixel_accuracy(model: nn.Module, ignore: int) -> float:
    x, y = cells(64, 9, ignore)
    with torch.no_grad():
        guess = copy.deepcopy(model).eval()(x)[0].argmax(1)
    return 100 * float((guess == y)[y != ignore].double().mean())


def test_cells_unannotated_rims_are_255_and_the_statistics_are_of_another_epoch() -> None:
    model, batches = segmenter(255)
    best = pixel_accuracy(model, 255)
    epoch_ago(model, dose=1.5)
    before = pixel_accuracy(model, 255)
    assert before < best - 3, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    assert "nan" not in text_of(found)
    assert pixel_accuracy(model, 255) > best - 1, done.record.kept


def test_cells_where_the_rims_are_minus_100() -> None:
    model, batches = segmenter(-100)
    best = pixel_accuracy(model, -100)
    reset(model)
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert pixel_accuracy(model, -100) > best - 1
    if found.gap is not None and found.gap.train_accuracy == found.gap.train_accuracy:
        # the accuracy of pixels, and not of flattened pictures
        assert found.gap.train_accuracy > 0.8


def test_a_healthy_segmenter_is_healthy() -> None:
    model, batches = segmenter(255)
    assert_cleared(look(model, batches))


def test_one_hot_masks() -> None:
    """The masks come as (N, K, H, W) floats, as for a dice loss."""
    x, y = cells(160, 0, 0)
    batches = [
        (a, F.one_hot(b, 3).movedim(-1, 1).float())
        for a, b in zip(x.split(16), y.split(16), strict=True)
    ]
    torch.manual_seed(0)
    model = nn.Sequential(block(2, 12), block(12, 12), nn.Conv2d(12, 3, 1))
    train(model, batches, lambda m, b: F.cross_entropy(m(b[0]), b[1]))
    model = settled(model, batches)
    assert_cleared(look(model, batches))
    reset(model)
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)


def test_key_points_as_heatmaps() -> None:
    """The output is a map per joint, (N, 3, 16, 16) floats; argmax over it is no class."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :16]
    x, y = np.zeros((160, 1, 16, 16)), np.zeros((160, 3, 16, 16))
    for i in range(160):
        for joint in range(3):
            at = random.uniform(2, 13, 2)
            away = (rows - at[0]) ** 2 + (columns - at[1]) ** 2
            y[i, joint] = np.exp(-away / 4)
            x[i, 0] += (joint + 1) * np.exp(-away / (1 + joint))
    x += 0.1 * random.standard_normal(x.shape)
    images, maps = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    batches = list(zip(images.split(16), maps.split(16), strict=True))
    torch.manual_seed(0)
    model = nn.Sequential(block(1, 16), block(16, 16), nn.Conv2d(16, 3, 1))
    train(model, batches, lambda m, b: F.mse_loss(m(b[0]), b[1]), epochs=4)
    model = settled(model, batches)
    healthy = look(model, batches)
    assert_cleared(healthy)
    good = F.mse_loss(model(images), maps).item()
    epoch_ago(model)
    bad = F.mse_loss(model(images), maps).item()
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert F.mse_loss(model(images), maps).item() < good + 0.1 * (bad - good)


def depths(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A floor that recedes and a box on it; the sensor gives no depth for 15 % of the pixels."""
    random = np.random.default_rng(seed)
    depth = np.repeat(np.linspace(4, 1, 16)[None, :, None], n, 0).repeat(16, 2)
    for picture in depth:
        row, column = random.integers(0, 10, 2)
        picture[row : row + 5, column : column + 5] = random.uniform(0.5, 2)
    shade = 1 / depth + 0.05 * random.standard_normal(depth.shape)
    depth[random.random(depth.shape) < 0.15] = np.nan
    pictures = np.stack([shade, shade**2, np.sqrt(np.abs(shade))], 1)
    return torch.tensor(pictures, dtype=torch.float32), torch.tensor(depth, dtype=torch.float32)[
        :, None
    ]


def test_depth_with_missing_pixels() -> None:
    """One channel out; the targets hold NaN where nothing was measured. The inputs are clean."""
    x, y = depths(160, 0)
    batches = list(zip(x.split(16), y.split(16), strict=True))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        known = ~batch[1].isnan()
        return F.l1_loss(model(batch[0])[known], batch[1][known])

    torch.manual_seed(0)
    model = settled(
        train(nn.Sequential(block(3, 12), block(12, 12), nn.Conv2d(12, 1, 1)), batches, loss),
        batches,
    )
    assert_cleared(look(model, batches))
    good = loss(model, (x, y)).item()
    reset(model)
    bad = loss(model, (x, y)).item()
    found, done = mended(model, batches, loss=lambda out, b: float((out - b[1]).abs().nanmean()))
    assert_stale(found)
    assert_kept(done)
    assert loss(model, (x, y)).item() < good + 0.1 * (bad - good)
    assert "nan" not in text_of(found)


class Detector(nn.Module):
    """As torchvision's: a list of pictures in; losses in train(), boxes after suppression in eval()."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.score, self.box = (
            nn.Sequential(block(1, 8), block(8, 8)),
            nn.Conv2d(8, 1, 1),
            nn.Conv2d(8, 2, 1),
        )

    def forward(
        self, pictures: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> Any:
        features = self.trunk(torch.stack(pictures))
        score, size = self.score(features).flatten(1), self.box(features).flatten(2)
        if self.training:
            assert targets is not None
            where = torch.stack([t["boxes"][0, :2].long() @ torch.tensor([1, 16]) for t in targets])
            wide = torch.stack([t["boxes"][0, 2:] - t["boxes"][0, :2] for t in targets])
            there = size[torch.arange(len(where)), :, where]
            return {"loss_class": F.cross_entropy(score, where), "loss_box": F.l1_loss(there, wide)}
        found = []
        for one, sizes in zip(score, size, strict=True):
            keep = (one > one.max() - 2).nonzero().flatten()  # another number of boxes every time
            corner = torch.stack([keep % 16, keep // 16], 1).float()
            found.append(
                {"boxes": torch.cat([corner, corner + sizes[:, keep].T], 1), "scores": one[keep]}
            )
        return found


def pictures(n: int, seed: int) -> list[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    random = np.random.default_rng(seed)
    batches = []
    for _ in range(n):
        xs, ts = [], []
        for _ in range(16):
            column, row, side = *random.integers(0, 10, 2), random.integers(3, 6)
            x = 0.2 * random.standard_normal((1, 16, 16)) + 2
            x[0, row : row + side, column : column + side] += 2
            xs.append(torch.tensor(x, dtype=torch.float32))
            box = torch.tensor([[column, row, column + side, row + side]], dtype=torch.float32)
            ts.append({"boxes": box, "labels": torch.ones(1, dtype=torch.long)})
        batches.append((xs, ts))
    return batches


def best_corner(output: Any, batch: Any) -> float:
    """Share of pictures whose best box begins within a pixel of the true one."""
    hits = []
    for found, target in zip(output, batch[1], strict=True):
        best = found["boxes"][found["scores"].argmax(), :2]
        hits.append(float((best - target["boxes"][0, :2]).abs().max() <= 1))
    return sum(hits) / len(hits)


def detector() -> tuple[nn.Module, list[Any]]:
    batches = pictures(12, 0)
    torch.manual_seed(0)
    model = train(Detector(), batches, lambda m, b: sum(m(*b).values()), epochs=6, lr=1e-2)
    return settled(model, batches, lambda m, b: m(b[0])), batches


def test_a_detector_whose_boxes_differ_in_number_between_modes() -> None:
    model, batches = detector()
    test = pictures(3, 5)

    def score(net: nn.Module) -> float:
        return sum(best_corner(net(b[0]), b) for b in test) / 3

    best = score(model)
    epoch_ago(model, dose=2.0)
    before = score(model)
    assert before < best - 0.2, "the fault must show"
    more: dict[str, Any] = {"forward": lambda m, b: m(b[0]), "metric": best_corner}
    found, done = mended(model, batches, **more)
    assert_stale(found)
    assert_kept(done)
    assert score(model) > best - 0.05


def test_a_detector_without_a_word_about_what_good_is() -> None:
    """Neither metric nor labels: nothing raises, the statistics are named, no accuracy is made up."""
    model, batches = detector()
    reset(model)
    found, _ = mended(model, batches, forward=lambda m, b: m(b[0]))
    assert_stale(found)
    assert "accuracy" not in text_of(found)


def test_a_healthy_detector_is_healthy() -> None:
    model, batches = detector()
    assert_cleared(look(model, batches, forward=lambda m, b: m(b[0])))


class Pyramid(nn.Module):
    """As RetinaNet's head: a list of levels, each with scores and offsets, of several sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = block(1, 8), block(8, 8), nn.Conv2d(8, 5, 1)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        fine = self.first(images)
        levels = [fine, self.second(F.avg_pool2d(fine, 2))]
        return [{"scores": self.head(f)[:, :1], "offsets": self.head(f)[:, 1:]} for f in levels]


def test_a_pyramid_of_score_maps() -> None:
    """A dict batch: images, a list of boxes of several lengths, and file names."""
    batches = [
        {
            "images": torch.stack(xs),
            "boxes": [t["boxes"] for t in ts],
            "file_names": [f"{i}.jpg" for i in range(16)],
        }
        for xs, ts in pictures(10, 0)
    ]
    torch.manual_seed(0)
    model = settled(Pyramid(), batches, lambda m, b: m(b["images"]))
    assert_cleared(look(model, batches))
    right = norms(by_hand(model, batches, lambda m, b: m(b["images"])))
    reset(model)
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    for norm, other in zip(norms(model), right, strict=True):
        torch.testing.assert_close(norm.running_mean, other.running_mean, rtol=0.05, atol=0.02)
    assert "NS008" not in blamed(found)
