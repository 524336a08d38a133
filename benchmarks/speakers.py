"""Nine speakers as nine sites: statistics merged by the total variance, and variances averaged.

A small network is trained on all of aeon's JapaneseVowels (cepstra of nine speakers). Each site
then has the statistics of its own speaker, as after local training. They are merged by
`doctor.merge_statistics`, or averaged as every other tensor is, and held against the statistics of
all data together.

    python benchmarks/speakers.py FOLDER

FOLDER is where pip installed aeon (pip install --no-deps --target FOLDER aeon==1.6.0).
"""

import argparse
import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from normscope.doctor import merge_statistics, recalibrate
from normscope.moments import drift

SEEDS = 5


def read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    path = folder / f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_eq_{part}.ts"
    text = path.read_text(encoding="utf-8").split("@data\n")[1]
    series, labels = [], []
    for line in text.strip().splitlines():
        *channels, label = line.split(":")
        series.append([[float(v) for v in channel.split(",")] for channel in channels])
        labels.append(int(label) - 1)
    return torch.tensor(series), torch.tensor(labels)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(12, 24, 3, padding=1), nn.BatchNorm1d(24), nn.ReLU(),
        nn.Conv1d(24, 24, 3, padding=1), nn.BatchNorm1d(24), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 9),
    )  # fmt: skip


def trained(x: Tensor, y: Tensor) -> nn.Sequential:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for _ in range(30):
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((net(x).argmax(1) == y).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    folder = parser.add_argument("folder", type=Path)
    folder.help = "where aeon is installed"
    given = parser.parse_args()
    (x, y), (test_x, test_y) = read(given.folder, "TRAIN"), read(given.folder, "TEST")
    totals: dict[str, list[tuple[float, float]]] = {}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        net = trained(x, y)
        pooled = copy.deepcopy(net)
        recalibrate(pooled, [x])
        states, counts = [], []
        for speaker in range(9):
            site = copy.deepcopy(net)
            # what enters the norms is that of the shared network, the statistics are the site's
            recalibrate(site, [x[y == speaker]], only=["1"])
            states.append(site.state_dict())
            counts.append(int((y == speaker).sum()) * x.shape[-1])
        merged = merge_statistics(states, counts)
        share = [count / sum(counts) for count in counts]
        averaged = {
            key: sum(s * state[key] for s, state in zip(share, states, strict=True))
            if tensor.is_floating_point()
            else tensor
            for key, tensor in states[0].items()
        }
        for name, state in (("pooled", pooled.state_dict()), ("merged", merged),
                            ("averaged", averaged)):  # fmt: skip
            other = copy.deepcopy(net)
            other.load_state_dict(state)
            own, first = other[1], pooled[1]
            far = drift(own.running_mean, own.running_var, first.running_mean, first.running_var)
            right = accuracy(other, test_x, test_y)
            totals.setdefault(name, []).append((float(far.mean()), right))
    for name, found in totals.items():
        distance, right = torch.tensor(found).mean(0).tolist()
        print(f"{name:10} {distance:.4f} deviations from all data, accuracy {100 * right:.1f} %")


if __name__ == "__main__":
    main()
