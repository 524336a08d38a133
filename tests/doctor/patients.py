"""A small network on digits, trained once, and ways to make it ill."""

import copy
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.experiment.data import load

Batches = list[tuple[Tensor, ...]]


def network(dropout: float = 0.0) -> nn.Sequential:
    drop = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), *drop,
        nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def in_training(size: int = 64, kind: str = "shuffled") -> Batches:
    data = load("digits")
    order = torch.randperm(len(data.train_x), generator=torch.Generator().manual_seed(5))
    if kind == "sorted":
        order = order[data.train_y[order].argsort(stable=True)]
    return [(data.train_x[i], data.train_y[i]) for i in order.split(size) if len(i) > 1]


def judges() -> Batches:
    data = load("digits")
    return list(zip(data.test_x.split(128), data.test_y.split(128), strict=True))


def trained(model: nn.Module, epochs: int = 5, size: int = 64, lr: float = 0.1) -> nn.Module:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for x, y in in_training(size):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


@cache
def _healthy() -> nn.Module:
    torch.manual_seed(0)
    return trained(network())


def healthy() -> nn.Module:
    return copy.deepcopy(_healthy())


def norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if hasattr(m, "running_mean")]


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    pairs = [(model(x).argmax(1) == y) for x, y in judges()]
    return float(torch.cat(pairs).double().mean())


def state(model: nn.Module) -> dict[str, bytes]:
    return {k: v.detach().numpy().tobytes() for k, v in model.state_dict().items()}
