"""Whole networks of torch's layers, as they are built with them, and their steps."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from normscope.bench.cases import tensors
from normscope.conversion import convert
from normscope.records.bench import Setting

CLASSES = 10
WIDTH = 64  # of the mlp
CHANNELS = (32, 64, 128, 128, 256, 256)  # of the network of separable convolutions
STAGES = (64, 128, 256, 512)  # of resnet18, two blocks each


def built(setting: Setting, *, fused: bool) -> nn.Module:
    """Build the network of a setting; fused: by normscope's layers, with what follows them."""
    torch.manual_seed(0)
    model = MODELS[setting.model]()
    if fused:
        convert(model, "batch", fuse=True)
    if setting.layout == "channels_last":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.train(setting.training)


def step(
    setting: Setting, *, fused: bool
) -> tuple[Callable[[], Tensor], Callable[[Tensor], object]]:
    """Run a step of SGD; in eval() forward alone, without gradients."""
    model = built(setting, fused=fused)
    x = tensors(setting)[0].detach()
    if not setting.training:

        def infer() -> Tensor:
            with torch.no_grad():
                return model(x)  # type: ignore[no-any-return]

        return infer, lambda y: None
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    labels = torch.arange(len(x)) % CLASSES

    def forward() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        return nn.functional.cross_entropy(model(x), labels)

    def backward(loss: Tensor) -> None:
        loss.backward()
        optimizer.step()

    return forward, backward


def _mlp() -> nn.Module:
    parts: list[nn.Module] = []
    for _ in range(3):
        parts += [nn.Linear(WIDTH, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(WIDTH, CLASSES))


def _conv(before: int, after: int, size: int, stride: int = 1, groups: int = 1) -> list[Any]:
    conv = nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(after)]


def _mobilenet() -> nn.Module:
    parts: list[nn.Module] = [*_conv(3, CHANNELS[0], 3, 2), nn.ReLU(inplace=True)]
    for before, after in pairwise(CHANNELS):
        depthwise = _conv(before, before, 3, 2 if after > before else 1, groups=before)
        parts += [*depthwise, nn.ReLU(inplace=True)]
        parts += [*_conv(before, after, 1), nn.ReLU(inplace=True)]
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*parts, *pool, nn.Linear(CHANNELS[-1], CLASSES))


class Block(nn.Module):
    """A basic block of a residual network, with one ReLU module for both of its calls."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(before, after, 3, stride)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = _conv(after, after, 3)
        same = before == after and stride == 1
        self.downsample = None if same else nn.Sequential(*_conv(before, after, 1, stride))

    def forward(self, x: Tensor) -> Any:
        """Return relu(norm(conv(relu(norm(conv(x))))) + x)."""
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def _resnet18() -> nn.Module:
    parts: list[nn.Module] = [*_conv(3, 64, 7, 2), nn.ReLU(inplace=True)]
    parts.append(nn.MaxPool2d(3, 2, 1))
    before = 64
    for after in STAGES:
        parts += [Block(before, after, 1 if after == 64 else 2), Block(after, after, 1)]
        before = after
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*parts, *pool, nn.Linear(before, CLASSES))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": _mlp,
    "mobilenet": _mobilenet,
    "resnet18": _resnet18,
}
