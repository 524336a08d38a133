"""One channel through training: its input class by class, and its gamma and beta."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from normscope.experiment.data import Data
from normscope.experiment.loop import EVALUATED_AT_ONCE
from normscope.experiment.nets import ModelConfig, norm_layers
from normscope.lens.measures import gate_information
from normscope.probe.hooks import attach
from normscope.probe.load import read_weights, write_weights
from normscope.records import ChannelHistory

FRAMES = 25  # epochs that are kept, the first and the last among them
SAMPLES = 2048  # of the test part, evenly spread, on which the channel is followed
FOLLOWED = ("batch", "affine_only", "ghost", "renorm")  # one mean, gamma, ... per channel
CLASSES = 10  # lanes of the picture
VALUES = 40  # of each class: as many as a picture can show one by one


def frames(epochs: int) -> set[int]:
    """Choose the epochs that are kept, of 0 (before training) to `epochs`."""
    count = min(FRAMES, epochs + 1)
    return {round(i * epochs / max(1, count - 1)) for i in range(count)}


class Snapshots:
    """The weights of one network at some epochs, as files that a resumed run finds again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, epoch: int) -> Path:
        """Return the file of an epoch."""
        return self.folder / f"epoch-{epoch:05d}.safetensors"

    def save(self, epoch: int, model: nn.Module) -> None:
        """Write the current weights."""
        write_weights(self.path(epoch), model.state_dict(), {})

    def history(
        self, config: ModelConfig, seed: int, data: Data, accuracy: dict[int, float]
    ) -> ChannelHistory:
        """Record the channel whose gate has most information on the class at the last epoch.

        Args:
            config: of the network; its norm is in FOLLOWED.
            seed: of the network.
            data: its test part is sent through, in eval mode.
            accuracy: of the network after each epoch that was kept.
        """
        model = config.build(seed).eval()
        count = min(SAMPLES, len(data.test_x))
        rows = torch.linspace(0, len(data.test_x) - 1, count, dtype=torch.float64).long()
        x, labels = data.test_x[rows], data.test_y[rows]
        epochs = sorted(accuracy)
        model.load_state_dict(read_weights(self.path(epochs[-1])))
        layer, channel, passing = _most_telling(model, x, labels, len(data.classes))
        lanes = _lanes(passing)
        kept = _some_of_each(labels, lanes)
        followed = []
        for epoch in epochs:
            model.load_state_dict(read_weights(self.path(epoch)))
            followed.append(_frame(model, layer, channel, x, labels, len(data.classes)))
        norm = norm_layers(model)[layer]
        return ChannelHistory(
            norm=config.norm,
            seed=seed,
            layer=layer,
            channel=channel,
            channels=sum(_channels(n) for n in norm_layers(model).values()),
            eps=float(norm.eps),  # type: ignore[arg-type]
            classes=tuple(lanes),
            label=tuple(int(labels[i]) for i in kept),
            epoch=tuple(epochs),
            x=tuple(tuple(_rounded(values[kept])) for values, *_ in followed),
            gamma=tuple(frame[1]["weight"] for frame in followed),
            beta=tuple(frame[1]["bias"] for frame in followed),
            running_mean=tuple(frame[1]["running_mean"] for frame in followed),
            running_var=tuple(frame[1]["running_var"] for frame in followed),
            passing=tuple(tuple(float(frame[2][k]) for k in lanes) for frame in followed),
            information=tuple(frame[3] for frame in followed),
            accuracy=tuple(accuracy[epoch] for epoch in epochs),
        )


@torch.no_grad()
def _most_telling(
    model: nn.Module, x: Tensor, labels: Tensor, classes: int
) -> tuple[str, int, Tensor]:
    """Find the layer and the channel of most gate information, and its pass rates (K,)."""
    best: tuple[float, str, int, Tensor] | None = None
    for name, (active, count) in _counted(model, x, labels, classes).items():
        bits = gate_information(active, count).nan_to_num(-math.inf)
        channel = int(bits.argmax())
        if best is None or float(bits[channel]) > best[0]:
            best = float(bits[channel]), name, channel, active[:, channel] / count
    assert best is not None, "every net has norm layers"
    return best[1:]


def _counted(
    model: nn.Module, x: Tensor, labels: Tensor, classes: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Count per norm layer the values above 0 behind it, (K, C), and all values, (K,)."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    own: list[Tensor] = []  # the labels of what is in the network

    def after(name: str, y: Tensor) -> None:
        each = y.flatten(2) if y.dim() > 2 else y.unsqueeze(2)
        active = (each > 0).sum(2).double()
        sums = torch.zeros(classes, y.shape[1], dtype=torch.float64).index_add_(0, own[0], active)
        counts = own[0].bincount(minlength=classes).double() * each.shape[2]
        before = found.get(name, (torch.zeros_like(sums), torch.zeros_like(counts)))
        found[name] = before[0] + sums, before[1] + counts

    with attach(norm_layers(model), lambda *_: None, after):
        for rows in torch.arange(len(x)).split(EVALUATED_AT_ONCE):
            own[:] = [labels[rows]]
            model(x[rows])
    return found


@torch.no_grad()
def _frame(
    model: nn.Module, layer: str, channel: int, x: Tensor, labels: Tensor, classes: int
) -> tuple[Tensor, dict[str, float], Tensor, float]:
    """Return one value per sample that enters the channel, its parameters, pass rates and bits."""
    values: list[Tensor] = []
    draw = np.random.default_rng(0)  # of maps, one place of each: the same in every frame

    def before(_: str, __: nn.Module, entering: Tensor) -> None:
        each = entering[:, channel].flatten(1) if entering.dim() > 2 else entering[:, [channel]]
        place = torch.from_numpy(draw.integers(0, each.shape[1], len(each)))
        values.append(each.gather(1, place.unsqueeze(1))[:, 0])

    with attach({layer: norm_layers(model)[layer]}, before, lambda *_: None):
        active, count = _counted(model, x, labels, classes)[layer]
    state = norm_layers(model)[layer].state_dict()
    names = ("weight", "bias", "running_mean", "running_var")
    parameters = {name: float(state[name][channel]) for name in names}
    bits = gate_information(active[:, [channel]], count)
    return torch.cat(values), parameters, active[:, channel] / count, float(bits)


def _lanes(passing: Tensor) -> list[int]:
    """Choose the classes to draw, in order: all, or those that pass least and most."""
    known = [k for k, share in enumerate(passing.tolist()) if math.isfinite(share)]
    ranked = sorted(known, key=lambda k: (float(passing[k]), k))
    if len(ranked) > CLASSES:
        ranked = [*ranked[: CLASSES // 2], *ranked[-CLASSES // 2 :]]
    return sorted(ranked)


def _some_of_each(labels: Tensor, classes: Iterable[int]) -> list[int]:
    """Choose the first samples of each class."""
    return [int(i) for k in classes for i in (labels == k).nonzero()[:VALUES, 0]]


def _rounded(values: Tensor) -> list[float]:
    """Round to four digits, which are enough for the picture."""
    return [float(f"{value:.4g}") for value in values.tolist()]


def _channels(norm: nn.Module) -> int:
    weight: Tensor = norm.get_parameter("weight")
    return weight.numel()
