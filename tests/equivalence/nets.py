"""Four small networks with trained-looking norms, and what can be done to them."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mlp(nn.Module):
    chain = ("fc1", "norm1", "fc2")
    shape = (24, 12)

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(12, 16, bias=False), nn.BatchNorm1d(16)
        self.fc2, self.norm2 = nn.Linear(16, 16), nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.fc1(x)))
        y: Tensor = self.head(F.relu(self.norm2(self.fc2(x))))
        return y


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    chain = ("blocks.0.conv1", "blocks.0.bn1", "blocks.0.conv2")
    shape = (8, 3, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


class MobileNet(nn.Module):
    """Pointwise, depthwise, linear bottleneck."""

    chain = ("project", "bn3", "last")
    shape = (8, 3, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depth = nn.Conv2d(12, 12, 3, 2, 1, groups=12, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.project, self.bn3 = nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.last, self.bn4 = nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn1(self.expand(x)))
        x = self.bn3(self.project(F.relu6(self.bn2(self.depth(x)))))
        x = F.hardswish(self.bn4(self.last(x)))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


class Crepe(nn.Module):
    """As torchcrepe's tiny network, with fewer and shorter kernels: conv, ReLU, norm, pooling."""

    chain = ("conv1", "conv1_BN", "conv2")
    shape = (8, 128)

    def __init__(self) -> None:
        super().__init__()
        sizes = (1, 16, 12, 12)
        for i in (1, 2, 3):
            kernel, stride = (32, 4) if i == 1 else (8, 1)
            conv = nn.Conv2d(sizes[i - 1], sizes[i], (kernel, 1), (stride, 1))
            setattr(self, f"conv{i}", conv)
            norm = nn.BatchNorm2d(sizes[i], eps=0.0010000000474974513, momentum=0.0)
            setattr(self, f"conv{i}_BN", norm)
        self.classifier = nn.Linear(12 * 4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for i in (1, 2, 3):
            padding = (0, 0, 14, 14) if i == 1 else (0, 0, 3, 4)
            x = F.relu(getattr(self, f"conv{i}")(F.pad(x, padding)))
            x = F.max_pool2d(getattr(self, f"conv{i}_BN")(x), (2, 1), (2, 1))
        y: Tensor = torch.sigmoid(self.classifier(x.flatten(1)))
        return y


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": Mlp,
    "resnet": ResNet,
    "mobilenet": MobileNet,
    "crepe": Crepe,
}


def batch(kind: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NETS[kind].shape, generator=generator) * 1.5 + 0.4


def trained(kind: str, seed: int = 0) -> nn.Module:
    """One of the networks whose norms hold what training leaves: no two channels alike."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = NETS[kind]()
        norms = norms_of(net)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.5
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
        for step in range(6):
            net(batch(kind, 10 + step))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return net.eval()


def norms_of(net: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def names_of(net: nn.Module) -> list[str]:
    return [n for n, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def with_dead(net: nn.Module, dead: tuple[int, ...]) -> nn.Module:
    """A copy in which these channels of the chain's norm give 0 whatever comes."""
    net = copy.deepcopy(net)
    norm = net.get_submodule(net.chain[1])
    with torch.no_grad():
        norm.weight[list(dead)] = 0
        norm.bias[list(dead)] = 0
    return net


def without(net: nn.Module, dead: tuple[int, ...]) -> nn.Module:
    """A copy without these channels: a row less before, a column less behind."""
    net = copy.deepcopy(net)
    before, norm, behind = (net.get_submodule(name) for name in net.chain)
    kept = [c for c in range(norm.num_features) if c not in dead]
    before.weight = nn.Parameter(before.weight[kept])
    if before.bias is not None:
        before.bias = nn.Parameter(before.bias[kept])
    behind.weight = nn.Parameter(behind.weight[:, kept])
    for key in ("weight", "bias"):
        setattr(norm, key, nn.Parameter(getattr(norm, key)[kept]))
    for key in ("running_mean", "running_var"):
        setattr(norm, key, getattr(norm, key)[kept])
    for layer, out, inward in ((before, "out", ""), (behind, "", "in")):
        for way in filter(None, (out, inward)):
            key = f"{way}_features" if isinstance(layer, nn.Linear) else f"{way}_channels"
            setattr(layer, key, len(kept))
    setattr(norm, "num_features", len(kept))  # noqa: B010
    return net
