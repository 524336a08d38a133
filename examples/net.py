"""A network for the first tries: digits, three layers with batch norm, and a fault to find."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


def batches() -> list[tuple[Tensor, Tensor]]:
    """Return scikit-learn's 8 x 8 digits in batches of 64, in random order."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(digits.data / 16, dtype=torch.float32)[order]
    y = torch.tensor(digits.target)[order]
    return list(zip(x.split(64), y.split(64), strict=True))


def trained() -> nn.Module:
    """Train a small network for six epochs."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (64, 32, 32):
        layers += [nn.Linear(inputs, 32), nn.BatchNorm1d(32), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(6):
        for x, y in batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def stale() -> nn.Module:
    """Return the same network with running statistics that stand still: a frequent accident."""
    model = trained()
    for layer in model:
        if isinstance(layer, nn.BatchNorm1d):
            layer.reset_running_stats()
    return model
