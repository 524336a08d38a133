"""How often diagnose and repair run the samples they keep, whatever the number of layers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normscope.doctor import diagnose, repair
from tests.doctor.patients import norms

SAMPLES, WIDTH, CLASSES = 64, 6, 3
LAYERS = (10, 49, 300)
RAN: list[int] = []  # samples of every forward; outside of the model, which is taken back


class Deep(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        parts = [m for _ in range(layers) for m in (nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))]
        self.body, self.head = nn.Sequential(*parts), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Any:
        RAN.append(len(x))
        return self.head(self.body(x))


def case(layers: int) -> tuple[nn.Module, list[Any]]:
    """A model with the statistics of its data, and batches."""
    torch.manual_seed(0)
    y = torch.arange(SAMPLES) % CLASSES
    x = 3 * torch.eye(CLASSES, WIDTH)[y] + torch.randn(SAMPLES, WIDTH)
    model = Deep(layers)
    with torch.no_grad():
        for layer in model.body:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight)
        for norm in norms(model):
            norm.momentum = 1.0
        model.train()(x)
        for norm in norms(model):
            norm.momentum = 0.1
            norm.num_batches_tracked.fill_(1000)
        features = model.body.eval()(x)
        wanted = torch.linalg.lstsq(features, 4 * torch.eye(CLASSES)[y]).solution
        model.head.weight.copy_(wanted.T)
    return model.eval(), list(zip(x.split(16), y.split(16), strict=True))


def _stale(found: list[Any]) -> None:
    for norm in found:
        norm.running_mean += 0.7 * norm.running_var.sqrt()


def _other_eps(found: list[Any]) -> None:
    for norm in found:
        norm.running_var.mul_(1e-5)
        norm.eps = 1e-3


def _momentum(found: list[Any]) -> None:
    for norm in found:
        norm.momentum = 0.99
        norm.running_var *= 4


def _mode(found: list[Any]) -> None:
    for norm in found[::2]:
        norm.training = True


def _not_finite(found: list[Any]) -> None:
    for norm in found[::5]:
        norm.running_mean[0] = torch.nan


def _never(found: list[Any]) -> None:
    for norm in found:
        norm.reset_running_stats()


FAULTS: dict[str, Callable[[list[Any]], None]] = {
    "healthy": lambda found: None,
    "stale": _stale,
    "never updated": _never,
    "eps": _other_eps,
    "momentum": _momentum,
    "mode": _mode,
    "not finite": _not_finite,
}


def forwards(model: nn.Module, batches: list[Any]) -> tuple[float, float]:
    """Of all samples: by diagnose, by repair."""
    RAN.clear()
    found = diagnose(model, batches)
    looked = sum(RAN) / SAMPLES
    RAN.clear()
    repair(model, found, batches)
    return looked, sum(RAN) / SAMPLES


@pytest.mark.parametrize("fault", FAULTS)
def test_the_number_of_forwards_is_small_and_does_not_grow_with_the_layers(fault: str) -> None:
    counts = []
    for layers in LAYERS if fault == "stale" else LAYERS[:1]:
        model, batches = case(layers)
        with torch.no_grad():
            FAULTS[fault](norms(model))
        counts.append(forwards(model, batches))
    assert max(looked for looked, _ in counts) <= 30
    assert max(mended for _, mended in counts) <= 30
    assert counts[-1][1] <= counts[0][1] + 1
