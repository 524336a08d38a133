"""The first ward of the clinic: models trained on digits, and ways to make them ill."""

import copy
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from normscope.doctor import recalibrate
from normscope.experiment.data import Data, load
from normscope.experiment.nets import build

Batches = list[tuple[Tensor, ...]]
DATA = load("digits")
PAIRED = load("digits", domains=("clean", "contrast", "brightness"))


@dataclass
class Patient:
    """A model with what is wrong with it, and batches as it was trained on."""

    model: nn.Module
    codes: tuple[tuple[str, ...], ...] = ()  # per illness, the codes that name it
    batches: Batches = field(default_factory=list)
    data: Data = DATA


def in_order(data: Data, size: int, kind: str = "shuffled", seed: int = 5) -> Batches:
    """The training part in batches."""
    n, draw = len(data.train_x), torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=draw)
    if kind == "sorted":  # batches of one class, in random order
        order = order[data.train_y[order].argsort(stable=True)]
    if kind == "domains":
        assert data.train_domain is not None
        order = order[data.train_domain[order].argsort(stable=True)]
    parts = [rows for rows in order.split(size) if len(rows) > 1]
    parts = [parts[i] for i in torch.randperm(len(parts), generator=draw)]
    columns = [c for c in (data.train_x, data.train_y, data.train_domain) if c is not None]
    return [tuple(column[rows] for column in columns) for rows in parts]


def trained(
    model: nn.Module,
    data: Data = DATA,
    *,
    epochs: int = 6,
    size: int = 64,
    lr: float = 0.1,
    kind: str = "shuffled",
    each: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """Plain SGD with momentum and a cosine."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for epoch in range(epochs):
        for x, y, *_ in in_order(data, size, kind, seed=epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        schedule.step()
        if each is not None:
            each(epoch, model)
    return model.eval()


def norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


def fresh(net: str = "mlp", **settings: Any) -> nn.Module:
    model = build(net, "batch", DATA, 0)
    for norm in norms(model):
        for name, value in settings.items():
            setattr(norm, name, value)
    return model


class Enlarged(nn.Module):
    """A network for larger images."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(F.interpolate(x, size=(32, 32)))
        return y


class Shared(nn.Module):
    """One norm for three places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Linear(64, 64),
            nn.Linear(64, 64),
            nn.Linear(64, 64),
        )
        self.norm, self.head = nn.BatchNorm1d(64), nn.Linear(64, 10)
        with torch.no_grad():
            self.second.weight *= 4
            self.third.bias += 2

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for linear in (self.first, self.second, self.third):
            x = self.norm(linear(x)).relu()
        y: Tensor = self.head(x)
        return y


_made: dict[str, nn.Module] = {}


def healthy(net: str) -> nn.Module:
    if net not in _made:
        torch.manual_seed(0)
        if net == "timm":
            timm = importlib.import_module("timm")
            model = timm.create_model("test_resnet", num_classes=10, in_chans=1)
            _made[net] = trained(Enlarged(model), epochs=3, lr=0.05)
        else:
            _made[net] = trained(fresh(net))
    return copy.deepcopy(_made[net])


def fragments() -> list[Any]:
    """Operators of torchvision's compiled half, which timm's import asks for."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        fragment = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            fragment.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return [fragment]
    return []


def spoiled(
    net: str | Callable[[], nn.Module],
    change: Callable[[list[Any]], object],
    *codes: str,
    data: Data = DATA,
) -> Callable[[], Patient]:
    """A healthy network, changed by what is done to its norms."""

    def make() -> Patient:
        model = healthy(net) if isinstance(net, str) else net()
        with torch.no_grad():
            change(norms(model))
        return Patient(model, tuple((code,) for code in codes), data=data)

    return make


def times(factor: float, which: slice = slice(None)) -> Callable[[list[Any]], object]:
    return lambda found: [n.running_var.mul_(factor) for n in found[which]]


def shift(found: list[Any]) -> None:
    found[1].running_mean += 1.5 * found[1].running_var.sqrt()


def set_one(place: int, name: str, value: float) -> Callable[[list[Any]], object]:
    return lambda found: getattr(found[place], name).__setitem__(3, value)


def shut(found: list[Any]) -> None:
    found[1].bias[:24] -= 8


def both(*changes: Callable[[list[Any]], object]) -> Callable[[list[Any]], object]:
    return lambda found: [change(found) for change in changes]


def _old() -> Patient:
    kept: dict[str, dict[str, Tensor]] = {}

    def each(epoch: int, model: nn.Module) -> None:
        if epoch == 0:
            kept["first"] = copy.deepcopy(model.state_dict())

    model = trained(fresh("cnn"), each=each)
    state = model.state_dict() | {k: v for k, v in kept["first"].items() if "running" in k}
    model.load_state_dict(state)
    return Patient(model, (("NS003",),))


def _eps() -> Patient:
    model = healthy("mlp")
    with torch.no_grad():  # small activations: the same function while eps is far smaller still
        for name, p in model.named_parameters():
            if name.startswith("linear"):
                p *= 0.03
        for norm in norms(model):
            norm.running_mean *= 0.03
            norm.running_var *= 0.03**2
            norm.eps = 1e-3
    return Patient(model, (("NS006",),))


def _dropout(momentum: float = 0.1, size: int = 64) -> nn.Module:
    model = nn.Sequential()
    for name, module in fresh("mlp", momentum=momentum).named_children():
        if name in ("linear2", "linear3"):
            model.add_module(f"drop_{name}", nn.Dropout(0.7))
        model.add_module(name, module)
    return trained(model, epochs=8, size=size)


def _freeze() -> Patient:
    model = healthy("mlp")
    for norm in norms(model):
        norm.requires_grad_(requires_grad=False)
    model.train()
    for x, *_ in in_order(DATA, 64):
        model(0.3 * x + 1)  # another data set passes while the part is "frozen"
    return Patient(model, (("NS014",),))


def _average() -> Patient:
    models: list[nn.Module] = []
    torch.manual_seed(0)
    base = trained(fresh("mlp"), epochs=2)
    average = AveragedModel(base)
    for lr in (0.3, 0.4, 0.5):
        models.append(trained(copy.deepcopy(base), epochs=2, lr=lr))
        average.update_parameters(models[-1])
    return Patient(average.eval(), (("NS015",),))


def _sorted() -> Patient:
    model = trained(fresh("mlp"), kind="sorted", lr=0.02)
    return Patient(model, (("NS008",),), in_order(DATA, 64, "sorted"))


def _pairs() -> Patient:
    model = trained(fresh("mlp"), size=2, epochs=2, lr=0.01)
    return Patient(model, (("NS007",),), in_order(DATA, 2))


def _domains() -> Patient:
    model = trained(build("mlp", "batch", PAIRED, 0), PAIRED, kind="domains", epochs=10)
    return Patient(model, (("NS021",),), in_order(PAIRED, 64, "domains"), PAIRED)


def _leak() -> Patient:
    model = fresh("mlp")
    settings: dict[str, Any] = {"track_running_stats": False}
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        settings[name] = None
    for name, value in settings.items():
        setattr(norms(model)[1], name, value)
    return Patient(trained(model), (("NS026",),))


def mode(place: int) -> Callable[[list[Any]], object]:
    return lambda found: found[place].train()


def _trained(net: str, codes: tuple[str, ...], **options: Any) -> Callable[[], Patient]:
    settings = {k: options.pop(k) for k in ("momentum", "eps") if k in options}
    return lambda: Patient(trained(fresh(net, **settings), **options), (codes,) if codes else ())


def _recalibrated() -> Patient:
    model = healthy("mlp")
    recalibrate(model, in_order(DATA, 640))
    return Patient(model)


def reset(*places: int) -> Callable[[list[Any]], object]:
    return lambda found: [found[p].reset_running_stats() for p in places]


def far(model: nn.Module) -> nn.Module:
    linear: Any = model.get_submodule("linear1")
    with torch.no_grad():
        linear.bias += 2e4
        norms(model)[0].running_mean += 2e4
    return model


def twice(found: list[Any]) -> None:
    found[1].num_batches_tracked.mul_(2)


ONE: dict[str, Callable[[], Patient]] = {
    "layer left in train(), cnn": spoiled("cnn", mode(1), "NS001"),
    "momentum 0.001, mlp": _trained("mlp", ("NS002",), momentum=0.001, epochs=4),
    "momentum 0.01, cnn": _trained("cnn", ("NS002",), momentum=0.01, epochs=4),
    "never updated, mlp": spoiled("mlp", reset(0, 1, 2), "NS002"),
    "stale mean, cnn": spoiled("cnn", shift, "NS003"),
    "stale variance, mlp": spoiled("mlp", times(6), "NS003"),
    "statistics of epoch 1, cnn": _old,
    "momentum 0.99, batches of 16, mlp": _trained("mlp", ("NS005",), momentum=0.99, size=16),
    "momentum 0, cnn": _trained("cnn", ("NS005", "NS002"), momentum=0.0),
    "eps of another library, mlp": _eps,
    "batches of 2, mlp": _pairs,
    "batches of one class, mlp": _sorted,
    "NaN mean, cnn": spoiled("cnn", set_one(1, "running_mean", math.nan), "NS009"),
    "negative variance, mlp": spoiled("mlp", set_one(2, "running_var", -0.1), "NS009"),
    "infinite variance, cnn": spoiled("cnn", set_one(0, "running_var", math.inf), "NS009"),
    "dead gates, mlp": spoiled("mlp", shut, "NS011"),
    "dropout before norms, mlp": lambda: Patient(_dropout(), (("NS013",),)),
    "fake freeze, mlp": _freeze,
    "averaged weights, mlp": _average,
    "shared norm, mlp": lambda: Patient(trained(Shared(), lr=0.02), (("NS017",),)),
    "batches of one domain, mlp": _domains,
    "mean of 20,000, mlp": lambda: Patient(far(healthy("mlp")), (("NS023",),)),
    "no running statistics, mlp": _leak,
    "double updates, cnn": spoiled("cnn", twice, "NS027"),
    "stale variance, timm": spoiled("timm", times(6), "NS003"),
    "NaN mean, timm": spoiled("timm", set_one(4, "running_mean", math.nan), "NS009"),
    "never updated, timm": spoiled("timm", reset(2, 3), "NS002"),
}
TWO: dict[str, Callable[[], Patient]] = {
    "two: NaN and stale variance, mlp": spoiled(
        "mlp", both(set_one(0, "running_mean", math.nan), times(8, slice(2, 3))), "NS009", "NS003"
    ),
    "two: never updated and train(), cnn": spoiled(
        "cnn", both(reset(0), mode(2)), "NS002", "NS001"
    ),
    "two: NaN and dead gates, mlp": spoiled(
        "mlp", both(set_one(0, "running_var", math.nan), shut), "NS009", "NS011"
    ),
    "two: momentum 0.99 and dropout, mlp": lambda: Patient(
        _dropout(0.99, 16), (("NS005",), ("NS013",))
    ),
    "two: train() and stale variance, timm": spoiled(
        "timm", both(times(6, slice(0, 2)), mode(5)), "NS001", "NS003"
    ),
    "two: NaN and never updated, cnn": spoiled(
        "cnn", both(set_one(0, "running_var", math.nan), reset(2)), "NS009", "NS002"
    ),
}
HEALTHY: dict[str, Callable[[], Patient]] = {
    "healthy: mlp": lambda: Patient(healthy("mlp")),
    "healthy: cnn": lambda: Patient(healthy("cnn")),
    "healthy: timm": lambda: Patient(healthy("timm")),
    "healthy: mlp, 20 epochs": _trained("mlp", (), epochs=20),
    "healthy: mlp, recalibrated on two batches": _recalibrated,
    "healthy: cnn, cumulative average": _trained("cnn", (), momentum=None, epochs=2, size=128),
}
PATIENTS = {**ONE, **TWO, **HEALTHY}
