"""Sick models made from healthy ones, the doctor's verdict, and repairs beside those of peers.

Prints a Markdown table. Every model is trained on the bundled digits; held-out samples that judge
a repair and the test samples of the table are two halves of the test part. Peers are
`torch.optim.swa_utils.update_bn` and precise batch norm restated from its description (Wu and
Johnson 2021): momentum 1 in train(), means over batches of E[x] and E[x^2] weighted by their size.

    python benchmarks/clinic.py [beginning of a name ...]
"""

import copy
import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, update_bn

from normscope.doctor import diagnose, recalibrate, repair
from normscope.train.data import Data, load
from normscope.train.nets import build

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
    size: tuple[int, int] | None = None  # images are enlarged to this


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


def spoiled(net: str, change: Callable[[list[Any]], object], *codes: Any) -> Callable[[], Patient]:
    def make() -> Patient:
        model = healthy(net)
        with torch.no_grad():
            change(norms(model))
        return Patient(model, tuple((c,) if isinstance(c, str) else c for c in codes))

    return make


def _times(factor: float, which: slice = slice(None)) -> Callable[[list[Any]], object]:
    return lambda found: [n.running_var.mul_(factor) for n in found[which]]


def _shift(found: list[Any]) -> None:
    found[1].running_mean += 1.5 * found[1].running_var.sqrt()


def _set(place: int, name: str, value: float) -> Callable[[list[Any]], object]:
    return lambda found: getattr(found[place], name).__setitem__(3, value)


def _shut(found: list[Any]) -> None:
    found[1].bias[:24] -= 8


def _both(*changes: Callable[[list[Any]], object]) -> Callable[[list[Any]], object]:
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


def _mode(net: str, place: int) -> Callable[[list[Any]], object]:
    return lambda found: found[place].train()


def _trained(net: str, codes: tuple[str, ...], **options: Any) -> Callable[[], Patient]:
    settings = {k: options.pop(k) for k in ("momentum", "eps") if k in options}
    return lambda: Patient(trained(fresh(net, **settings), **options), (codes,) if codes else ())


def _recalibrated() -> Patient:
    model = healthy("mlp")
    recalibrate(model, in_order(DATA, 640))
    return Patient(model)


def _reset(*places: int) -> Callable[[list[Any]], object]:
    return lambda found: [found[p].reset_running_stats() for p in places]


def _far(model: nn.Module) -> nn.Module:
    linear: Any = model.get_submodule("linear1")
    with torch.no_grad():
        linear.bias += 2e4
        norms(model)[0].running_mean += 2e4
    return model


def _twice(found: list[Any]) -> None:
    found[1].num_batches_tracked.mul_(2)


ONE: dict[str, Callable[[], Patient]] = {
    "layer left in train(), cnn": spoiled("cnn", _mode("cnn", 1), "NS001"),
    "momentum 0.001, mlp": _trained("mlp", ("NS002",), momentum=0.001, epochs=4),
    "momentum 0.01, cnn": _trained("cnn", ("NS002",), momentum=0.01, epochs=4),
    "never updated, mlp": spoiled("mlp", _reset(0, 1, 2), "NS002"),
    "stale mean, cnn": spoiled("cnn", _shift, "NS003"),
    "stale variance, mlp": spoiled("mlp", _times(6), "NS003"),
    "statistics of epoch 1, cnn": _old,
    "momentum 0.99, batches of 16, mlp": _trained("mlp", ("NS005",), momentum=0.99, size=16),
    "momentum 0, cnn": _trained("cnn", ("NS005", "NS002"), momentum=0.0),
    "eps of another library, mlp": _eps,
    "batches of 2, mlp": _pairs,
    "batches of one class, mlp": _sorted,
    "NaN mean, cnn": spoiled("cnn", _set(1, "running_mean", math.nan), "NS009"),
    "negative variance, mlp": spoiled("mlp", _set(2, "running_var", -0.1), "NS009"),
    "infinite variance, cnn": spoiled("cnn", _set(0, "running_var", math.inf), "NS009"),
    "dead gates, mlp": spoiled("mlp", _shut, "NS011"),
    "dropout before norms, mlp": lambda: Patient(_dropout(), (("NS013",),)),
    "fake freeze, mlp": _freeze,
    "averaged weights, mlp": _average,
    "shared norm, mlp": lambda: Patient(trained(Shared(), lr=0.02), (("NS017",),)),
    "batches of one domain, mlp": _domains,
    "mean of 20,000, mlp": lambda: Patient(_far(healthy("mlp")), (("NS023",),)),
    "no running statistics, mlp": _leak,
    "double updates, cnn": spoiled("cnn", _twice, "NS027"),
    "stale variance, timm": spoiled("timm", _times(6), "NS003"),
    "NaN mean, timm": spoiled("timm", _set(4, "running_mean", math.nan), "NS009"),
    "never updated, timm": spoiled("timm", _reset(2, 3), "NS002"),
}
TWO: dict[str, Callable[[], Patient]] = {
    "two: NaN and stale variance, mlp": spoiled(
        "mlp", _both(_set(0, "running_mean", math.nan), _times(8, slice(2, 3))), "NS009", "NS003"
    ),
    "two: never updated and train(), cnn": spoiled(
        "cnn", _both(_reset(0), _mode("cnn", 2)), "NS002", "NS001"
    ),
    "two: NaN and dead gates, mlp": spoiled(
        "mlp", _both(_set(0, "running_var", math.nan), _shut), "NS009", "NS011"
    ),
    "two: momentum 0.99 and dropout, mlp": lambda: Patient(
        _dropout(0.99, 16), (("NS005",), ("NS013",))
    ),
    "two: train() and stale variance, timm": spoiled(
        "timm", _both(_times(6, slice(0, 2)), _mode("timm", 5)), "NS001", "NS003"
    ),
    "two: NaN and never updated, cnn": spoiled(
        "cnn", _both(_set(0, "running_var", math.nan), _reset(2)), "NS009", "NS002"
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


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """On the second half of the test part, eight at a time, as the model is handed over."""
    if model.training:
        model = copy.deepcopy(model).eval()
    right = total = 0
    from normscope import condition

    rows = slice(1, None, 2)
    ids = data.test_domain if data.test_domain is not None else torch.zeros(len(data.test_x)).long()
    table = zip(
        data.test_x[rows].split(8), data.test_y[rows].split(8), ids[rows].split(8), strict=True
    )
    for x, y, domain in table:
        with condition(domain):
            found = copy.deepcopy(model)(x) if any(n.training for n in norms(model)) else model(x)
        right += int((found.argmax(1) == y).sum())
        total += len(y)
    return right / total


@torch.no_grad()
def precise_bn(model: nn.Module, batches: Batches) -> None:
    """Population statistics of layers in train(), by E[x^2] - E[x]^2 weighted by batch size."""
    model.train()
    found = norms(model)
    kept = [n.momentum for n in found]
    sums = [[torch.zeros_like(n.running_mean) for _ in range(2)] for n in found if tracks(n)]
    total = 0
    for norm in found:
        norm.momentum = 1.0
    for x, *_ in batches:
        model(x)
        total += len(x)
        for norm, (mean, square) in zip(filter(tracks, found), sums, strict=True):
            mean += len(x) * norm.running_mean
            square += len(x) * (norm.running_var + norm.running_mean**2)
    for norm, (mean, square) in zip(filter(tracks, found), sums, strict=True):
        norm.running_mean = mean / total
        norm.running_var = square / total - (mean / total) ** 2
    for norm, momentum in zip(found, kept, strict=True):
        norm.momentum = momentum
    model.eval()


def tracks(norm: Any) -> bool:
    return norm.running_mean is not None


def peer(model: nn.Module, batches: Batches, data: Data, how: Callable[..., Any]) -> float:
    """Accuracy after a peer's repair; NaN where it fails."""
    model = copy.deepcopy(model)
    try:
        how(model, batches)
        return accuracy(model.eval(), data)
    except Exception:
        return math.nan


def percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def main() -> None:
    """Every patient: diagnosed, repaired, measured."""
    keep = fragments()
    wanted = tuple(sys.argv[1:])
    print("| patient | first findings | named | top cause | kept | before | after | "
          "update_bn | precise BN | s |")  # fmt: skip
    print("|" + " --- |" * 10)
    named = total = false = lost = behind = 0
    for name, make in {**ONE, **TWO, **HEALTHY}.items():
        if wanted and not name.startswith(wanted):
            continue
        torch.manual_seed(1)
        patient = make()
        data, batches = patient.data, patient.batches or in_order(patient.data, 64)
        before = accuracy(patient.model, data)
        start = perf_counter()
        found = diagnose(patient.model, batches)
        columns = [c for c in (data.test_x, data.test_y, data.test_domain) if c is not None]
        judges = [tuple(part) for part in zip(*(c[::2].split(256) for c in columns), strict=True)]
        sick = copy.deepcopy(patient.model)
        done = repair(patient.model, found, batches, held_out=judges)
        seconds = perf_counter() - start
        after = accuracy(patient.model, data)
        updated = peer(sick, batches, data, lambda m, b: update_bn(b, m))
        precise = peer(sick, batches, data, precise_bn)
        first = found.codes[: 1 + len(patient.codes)]
        right = [any(c in first[:2] for c in codes) for codes in patient.codes]
        grave = any(f.severity == "error" for f in found.findings)
        if patient.codes:
            named, total = named + sum(right), total + len(right)
            verdict = "yes" if all(right) else "NO"
        else:
            false += grave
            verdict = "FALSE ALARM" if grave else "healthy"
        lost += after < before
        behind += any(p > after for p in (updated, precise))
        cause = f"{found.causes[0].name} {found.causes[0].closes:.0%}" if found.causes else "-"
        kept = ", ".join(done.record.kept) or "-"
        figures = map(percent, (before, after, updated, precise))
        cells = (name, ", ".join(found.codes[:3]), verdict, cause, kept, *figures, f"{seconds:.1f}")
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nNamed first or second: {named} of {total} illnesses.")
    print(f"Errors on healthy models: {false}. Accuracy lost after a repair: {lost}.")
    print(f"A peer ahead: {behind}.")
    del keep


if __name__ == "__main__":
    main()
