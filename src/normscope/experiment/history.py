"""One channel through training: its input class by class, and its gamma and beta."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscope.experiment.data import Data
from normscope.experiment.loop import EVALUATED_AT_ONCE
from normscope.experiment.nets import ModelConfig, norm_layers
from normscope.lens.measures import gate_information
from normscope.lens.sinks import tables
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
        samples = _Samples(data.test_x[rows], data.test_y[rows], len(data.classes))
        epochs = sorted(accuracy)
        model.load_state_dict(read_weights(self.path(epochs[-1])))
        layer, channel, passing = samples.most_telling(model)
        lanes = _lanes(passing)
        kept = _some_of_each(samples.labels, lanes)
        frames: list[dict[str, Any]] = []
        for epoch in epochs:
            model.load_state_dict(read_weights(self.path(epoch)))
            frame = samples.at(model, layer, channel)
            frame["x"] = tuple(_rounded(frame["x"][kept]))
            frame["passing"] = tuple(frame["passing"][lanes].tolist())
            frames.append(frame)
        norms = norm_layers(model)
        return ChannelHistory(
            norm=config.norm,
            seed=seed,
            layer=layer,
            channel=channel,
            channels=sum(norm.get_parameter("weight").numel() for norm in norms.values()),
            eps=float(norms[layer].eps),  # type: ignore[arg-type]
            classes=tuple(lanes),
            label=tuple(samples.labels[kept].tolist()),
            epoch=tuple(epochs),
            accuracy=tuple(accuracy[epoch] for epoch in epochs),
            **{name: tuple(frame[name] for frame in frames) for name in frames[0]},
        )


@dataclass(frozen=True, eq=False)
class _Samples:
    """Samples with their labels, on which a network is followed."""

    x: Tensor
    labels: Tensor
    classes: int

    def most_telling(self, model: nn.Module) -> tuple[str, int, Tensor]:
        """Find the layer and the channel of most gate information, and its pass rates (K,)."""
        counted = self.counted(model)
        bits = {n: gate_information(*found).nan_to_num(-math.inf) for n, found in counted.items()}
        layer = max(bits, key=lambda name: float(bits[name].max()))
        channel = int(bits[layer].argmax())
        active, count = counted[layer]
        return layer, channel, active[:, channel] / count

    @torch.no_grad()
    def at(self, model: nn.Module, layer: str, channel: int) -> dict[str, Any]:
        """Measure a channel: one value per sample that enters it, parameters, pass rates, bits."""
        values: list[Tensor] = []
        norm = norm_layers(model)[layer]
        draw = np.random.default_rng(0)  # of maps, one place of each: the same in every frame

        def before(_: str, __: nn.Module, entering: Tensor) -> None:
            each = entering[:, channel].flatten(1) if entering.dim() > 2 else entering[:, [channel]]
            place = torch.from_numpy(draw.integers(0, each.shape[1], len(each)))
            values.append(each.gather(1, place.unsqueeze(1))[:, 0])

        with attach({layer: norm}, before, None):
            active, count = self.counted(model)[layer]
        own = {name: float(table[channel]) for name, table in tables(norm).items()}
        bits = float(gate_information(active[:, [channel]], count))
        passing = active[:, channel] / count
        return {"x": torch.cat(values), "passing": passing, "information": bits, **own}

    @torch.no_grad()
    def counted(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """Count per norm layer the values above 0 behind it, (K, C), and all values, (K,)."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        passing: list[Tensor] = []  # the labels of what is in the network

        def after(name: str, y: Tensor) -> None:
            (labels,), each = passing, y.flatten(2) if y.dim() > 2 else y.unsqueeze(2)
            active = (each > 0).sum(2).double()
            sums = active.new_zeros(self.classes, y.shape[1]).index_add_(0, labels, active)
            counts = labels.bincount(minlength=self.classes).double() * each.shape[2]
            before = found.get(name, (torch.zeros_like(sums), torch.zeros_like(counts)))
            found[name] = before[0] + sums, before[1] + counts

        with attach(norm_layers(model), None, after):
            for rows in torch.arange(len(self.x)).split(EVALUATED_AT_ONCE):
                passing[:] = [self.labels[rows]]
                model(self.x[rows])
        return found


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
