"""The second ward: other networks, splits, seeds, batch sizes and doses than the first.

Nothing in the doctor was chosen by looking at these.
"""

import copy
import importlib
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from first_ward import (
    Batches,
    Enlarged,
    Patient,
    both,
    in_order,
    mode,
    norms,
    reset,
    set_one,
    spoiled,
    times,
    trained,
    twice,
)
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from normscope.doctor import recalibrate
from normscope.experiment.data import Data, load

SEED = 11
DATA = load("digits", seed=3)
TABLE = load("breast_cancer", seed=2)
SITES = load("digits", domains=("clean", "noise", "brightness"), seed=3)


def wide(data: Data = DATA, *, dropout: float = 0.0, **settings: Any) -> nn.Module:
    """Two unequal hidden layers of torch's own norms."""
    torch.manual_seed(SEED)
    drop = [nn.Dropout(dropout)] if dropout else []
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(data.shape), 128, bias=False), nn.BatchNorm1d(128),
        nn.ReLU(), *drop, nn.Linear(128, 48), nn.BatchNorm1d(48), nn.GELU(),
        nn.Linear(48, len(data.classes)),
    )  # fmt: skip
    for norm in norms(model):
        for name, value in settings.items():
            setattr(norm, name, value)
    return model


class Residual(nn.Module):
    """A stem and two blocks with skips."""

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.stem = nn.Conv2d(1, 24, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24, momentum=momentum)
        for name, stride in (("a", 1), ("b", 2)):
            self.add_module(f"{name}1", nn.Conv2d(24, 24, 3, stride, 1, bias=False))
            self.add_module(f"{name}_norm1", nn.BatchNorm2d(24, momentum=momentum))
            self.add_module(f"{name}2", nn.Conv2d(24, 24, 3, 1, 1, bias=False))
            self.add_module(f"{name}_norm2", nn.BatchNorm2d(24, momentum=momentum))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        part = dict(self.named_children())
        x = self.norm(self.stem(x)).relu()
        for name in ("a", "b"):
            y = part[f"{name}_norm1"](part[f"{name}1"](x)).relu()
            y = part[f"{name}_norm2"](part[f"{name}2"](y))
            x = (y + F.avg_pool2d(x, 2) if name == "b" else y + x).relu()
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


class Branches(nn.Module):
    """Both halves of an image through one trunk, as in a siamese network; one half is brighter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.trunk, self.norm = nn.Linear(32, 64), nn.BatchNorm1d(64)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        halves = x[..., :4].flatten(1), 4 * x[..., 4:].flatten(1) + 3
        scores: Tensor = self.head(torch.cat([self.norm(self.trunk(h)).relu() for h in halves], 1))
        return scores


@cache
def _well(net: str) -> nn.Module:
    if net == "timm":
        torch.manual_seed(SEED)
        timm = importlib.import_module("timm")
        model = Enlarged(timm.create_model("test_efficientnet", num_classes=10, in_chans=1))
        return trained(model, DATA, epochs=4, size=96, lr=0.05)
    if net == "table":
        return trained(wide(TABLE), TABLE, epochs=8, size=32, lr=0.03)
    return trained(wide() if net == "wide" else Residual(), DATA, epochs=5, size=48, lr=0.06)


def well(net: str) -> Callable[[], nn.Module]:
    return lambda: copy.deepcopy(_well(net))


def ill(net: str, change: Callable[[list[Any]], object], *codes: str) -> Callable[[], Patient]:
    return spoiled(well(net), change, *codes, data=TABLE if net == "table" else DATA)


def fitted(
    make: Callable[[], nn.Module], *codes: tuple[str, ...], data: Data = DATA, **options: Any
) -> Callable[[], Patient]:
    """Trained on with what is wrong with it."""
    return lambda: Patient(trained(make(), data, **{"lr": 0.06} | options), codes, data=data)


def down(found: list[Any]) -> None:
    found[0].running_mean -= 2 * found[0].running_var.sqrt()


def shut_half(found: list[Any]) -> None:
    found[1].bias[::2] -= 6


def early() -> Patient:
    kept: dict[str, Tensor] = {}

    def each(epoch: int, model: nn.Module) -> None:
        if epoch == 0:
            kept.update({k: v.clone() for k, v in model.state_dict().items() if "running" in k})

    model = trained(wide(), DATA, size=48, each=each)
    model.load_state_dict(kept, strict=False)
    return Patient(model, (("NS003",),), data=DATA)


def other_eps() -> Patient:
    model = well("wide")()
    with torch.no_grad():
        for linear, norm in zip((model[1], model[4]), norms(model), strict=True):
            for p in linear.parameters():
                p *= 0.05
            norm.running_mean *= 0.05
            norm.running_var *= 0.05**2
            norm.eps = 1e-2
    return Patient(model, (("NS006",),), data=DATA)


def few() -> Patient:
    model = trained(wide(), DATA, size=3, epochs=1, lr=0.01)
    return Patient(model, (("NS007",),), in_order(DATA, 3), DATA)


def by_class() -> Patient:
    model = trained(Residual(), DATA, kind="sorted", lr=0.02, size=32)
    return Patient(model, (("NS008",),), in_order(DATA, 32, "sorted"), DATA)


def frozen() -> Patient:
    model = well("res")()
    for norm in norms(model):
        norm.requires_grad_(requires_grad=False)
    model.train()
    for x, *_ in in_order(DATA, 48):
        model(0.5 * x - 0.5)
    return Patient(model, (("NS014",),), data=DATA)


def averaged() -> Patient:
    base = trained(Residual(), DATA, epochs=2, size=48)
    average = AveragedModel(base)
    for lr in (0.2, 0.3, 0.25, 0.35):
        average.update_parameters(trained(copy.deepcopy(base), DATA, epochs=1, lr=lr))
    return Patient(average.eval(), (("NS015",),), data=DATA)


def by_site() -> Patient:
    model = trained(Residual(), SITES, kind="domains", epochs=4, lr=0.06)
    return Patient(model, (("NS021",),), in_order(SITES, 64, "domains"), SITES)


def far() -> Patient:
    model = well("wide")()
    with torch.no_grad():
        model[4].bias += 3e4
        norms(model)[1].running_mean += 3e4
    return Patient(model, (("NS023",),), data=DATA)


def leaking() -> Patient:
    model = wide()
    for name, value in {"track_running_stats": False, "running_mean": None, "running_var": None,
                        "num_batches_tracked": None}.items():  # fmt: skip
        setattr(norms(model)[0], name, value)
    return Patient(trained(model, DATA, lr=0.06), (("NS026",),), data=DATA)


def again() -> Patient:
    model = well("res")()
    recalibrate(model, batches(200), propagate="sequential")
    return Patient(model, data=DATA)


def batches(size: int) -> Batches:
    return in_order(DATA, size)


PATIENTS: dict[str, Callable[[], Patient]] = {
    "layer left in train(), residual": ill("res", mode(3), "NS001"),
    "layer left in train(), timm": ill("timm", mode(6), "NS001"),
    "momentum 0.003, wide": fitted(lambda: wide(momentum=0.003), ("NS002",), epochs=5),
    "momentum 0.02, residual": fitted(lambda: Residual(0.02), ("NS002",), epochs=2, size=96),
    "never updated, residual": ill("res", reset(2), "NS002"),
    "stale mean, wide": ill("wide", down, "NS003"),
    "stale variance, residual": ill("res", times(0.2), "NS003"),
    "stale variance, table": ill("table", times(5), "NS003"),
    "statistics of epoch 1, wide": early,
    "momentum 0.95, batches of 24, wide": fitted(lambda: wide(momentum=0.95), ("NS005",), size=24),
    "momentum 0, wide": fitted(lambda: wide(momentum=0.0), ("NS005", "NS002")),
    "eps of another library, wide": other_eps,
    "batches of 3, wide": few,
    "batches of one class, residual": by_class,
    "NaN variance, timm": ill("timm", set_one(5, "running_var", math.nan), "NS009"),
    "negative variance, residual": ill("res", set_one(1, "running_var", -0.5), "NS009"),
    "infinite mean, table": ill("table", set_one(1, "running_mean", math.inf), "NS009"),
    "dead gates, residual": ill("res", shut_half, "NS011"),
    "dropout before norms, wide": fitted(lambda: wide(dropout=0.6), ("NS013",), size=48),
    "fake freeze, residual": frozen,
    "averaged weights, residual": averaged,
    "shared trunk": fitted(Branches, ("NS017",), size=48),
    "batches of one domain, residual": by_site,
    "mean of 30,000, wide": far,
    "no running statistics, wide": leaking,
    "double updates, residual": ill("res", twice, "NS027"),
    "two: infinite mean and stale variance, residual": ill(
        "res", both(set_one(0, "running_mean", math.inf), times(6, slice(3, 5))), "NS009", "NS003"
    ),
    "two: never updated and train(), timm": ill("timm", both(reset(2), mode(5)), "NS002", "NS001"),
    "two: momentum 0.95 and dropout, wide": fitted(
        lambda: wide(dropout=0.6, momentum=0.95), ("NS005",), ("NS013",), size=24
    ),
    "two: NaN and dead gates, residual": ill(
        "res", both(set_one(0, "running_var", math.nan), shut_half), "NS009", "NS011"
    ),
    "two: momentum 0.003 and dropout, wide": fitted(
        lambda: wide(dropout=0.5, momentum=0.003), ("NS002",), ("NS013",), epochs=5
    ),
    "two: NaN and double updates, table": ill(
        "table", both(set_one(0, "running_mean", math.nan), twice), "NS009", "NS027"
    ),
    "healthy: wide": lambda: Patient(well("wide")(), data=DATA),
    "healthy: residual": lambda: Patient(well("res")(), data=DATA),
    "healthy: timm": lambda: Patient(well("timm")(), data=DATA),
    "healthy: table": lambda: Patient(well("table")(), data=TABLE),
    "healthy: residual, 12 epochs": fitted(Residual, epochs=12, size=128),
    "healthy: residual, recalibrated": again,
}
