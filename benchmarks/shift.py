"""Digits as they were trained on, and under a shift: what changing the statistics gives back.

For each shift, over five seeds: the network as it is, recalibrated on the shifted training part,
with one set of statistics per domain (domain known, trained on clean data only), adapted to the
unlabelled test part with prior 16, and adapted with gamma and beta learning from the entropy. The
last column is what the doctor says beforehand, from unlabelled data alone, in how many seeds.
Prints a Markdown table.
"""

import copy
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope import condition
from normscope.conversion import convert
from normscope.doctor import adapt, certainty, recalibrate
from normscope.experiment.data import load
from normscope.experiment.domains import DOMAINS
from normscope.experiment.nets import build

SEEDS = 5
SHIFTS = ("contrast", "brightness", "noise", "invert")
COLUMNS = ("source", "recalibrated", "domain-specific", "adapted", "adapted, learning")


def trained(data: Any, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build("cnn", "batch", data, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    for _ in range(6):
        for rows in torch.randperm(len(data.train_x)).split(64):
            if len(rows) > 1:
                optimizer.zero_grad()
                F.cross_entropy(model(data.train_x[rows]), data.train_y[rows]).backward()
                optimizer.step()
        schedule.step()
    return model.eval()


def shifted(x: Tensor, name: str, low: float, high: float, seed: int) -> Tensor:
    unit = (x.double().numpy() - low) / (high - low)
    moved = DOMAINS[name](unit, np.random.default_rng(seed))
    return torch.from_numpy(moved * (high - low) + low).float()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).double().mean())


def one(name: str, seed: int) -> tuple[list[float], bool]:
    data = load("digits", seed=seed)
    model = trained(data, seed)
    low, high = float(data.train_x.min()), float(data.train_x.max())
    train = shifted(data.train_x, name, low, high, seed)
    x, y = shifted(data.test_x, name, low, high, seed + 1), data.test_y
    found = [accuracy(model, x, y)]
    again = copy.deepcopy(model)
    recalibrate(again, train.split(64))
    found.append(accuracy(again, x, y))
    by_domain = copy.deepcopy(model)
    convert(by_domain, "conditional", num_conditions=2, affine="shared")
    both = [(data.train_x, 0), (train, 1)]
    batches = [
        (part, torch.zeros(len(part)), torch.full((len(part),), k))
        for samples, k in both
        for part in samples.split(64)
    ]
    recalibrate(by_domain, batches)
    with condition(torch.ones(len(x), dtype=torch.int64)):
        found.append(accuracy(by_domain, x, y))
    sure = certainty(model, [data.test_x])  # unseen, as the shifted ones
    adapted = copy.deepcopy(model)
    promising = adapt(adapted, x.split(64), prior=16).promising(sure)
    found.append(accuracy(adapted, x, y))
    learning = copy.deepcopy(model)
    adapt(learning, x.split(64), prior=16, learn=True)
    found.append(accuracy(learning, x, y))
    return found, promising


def main() -> None:
    """Measure and print."""
    print("| shift | " + " | ".join(COLUMNS) + " | said to help |")
    print("|" + " --- |" * (len(COLUMNS) + 2))
    for name in SHIFTS:
        runs = [one(name, seed) for seed in range(SEEDS)]
        cells = []
        for column in zip(*(figures for figures, _ in runs), strict=True):
            cells.append(f"{100 * fmean(column):.1f} ± {100 * stdev(column):.1f}")
        said = sum(promising for _, promising in runs)
        print(f"| {name} | " + " | ".join(cells) + f" | {said} of {SEEDS} |", flush=True)


if __name__ == "__main__":
    main()
