"""What recalibration costs: one pass beside a plain forward and beside torch's update_bn.

Medians of interleaved rounds over the same batches, in one process: a plain forward in eval(),
one in train(), `torch.optim.swa_utils.update_bn`, and `recalibrate`. Random weights. Prints a
Markdown table; the ratios are medians of the ratios within a round.

    python benchmarks/recalibrate.py [--rounds 7] [--net resnet18]
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from normscope import recalibrate
from normscope.experiment.data import load
from normscope.experiment.nets import build

NETS = ("digits cnn", "resnet18", "efficientnet_b0")
IMAGES, BATCH = 48, 16  # of 224 px


def patient(name: str) -> tuple[nn.Module, list[Tensor]]:
    """The network and its batches."""
    torch.manual_seed(0)
    if name == "digits cnn":
        data = load("digits")
        return build("cnn", "batch", data, 0), list(data.train_x.split(64))
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):  # where torchvision's compiled half does not load
        fragment.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=10)
    return model, list(torch.randn(IMAGES, 3, 224, 224).split(BATCH))


def forward(model: nn.Module, batches: list[Tensor], train: bool) -> None:
    """Once over the data, no gradients."""
    model.train(train)
    with torch.no_grad():
        for x in batches:
            model(x)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--net", choices=NETS, help="one of them; default all")
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; ms, median\n")
    ways = ("eval()", "train()", "update_bn", "recalibrate")
    print("| network |", " | ".join(ways), "| / eval() | / train() | / update_bn |")
    print("|" + " --- |" * 8)
    for name in (given.net,) if given.net else NETS:
        model, batches = patient(name)
        models = {way: copy.deepcopy(model) for way in ways}
        run: dict[str, Callable[[nn.Module], object]] = {
            "eval()": lambda m, b=batches: forward(m, b, train=False),
            "train()": lambda m, b=batches: forward(m, b, train=True),
            "update_bn": lambda m, b=batches: update_bn(b, m),
            "recalibrate": lambda m, b=batches: recalibrate(m.eval(), b),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(given.rounds + 1):
            for way in ways:
                with torch.no_grad():
                    start = time.perf_counter()
                    run[way](models[way])
                if turn:  # the first warms up
                    seconds[way].append(time.perf_counter() - start)
        cells = [f"{1e3 * statistics.median(seconds[way]):.3g}" for way in ways]
        for way in ways[:3]:
            pairs = zip(seconds["recalibrate"], seconds[way], strict=True)
            cells.append(f"{statistics.median(a / b for a, b in pairs):.2f}")
        print("|", " | ".join([name, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
