"""How far the mean and variance of each peer are from float64."""

import torch
from torch import Tensor, nn

import normscope
from normscope.bench.cases import tensors
from normscope.bench.peers import layer
from normscope.records.bench import Accuracy, Setting, StatisticsError


def accuracy(setting: Setting, ratio: float, *, compiled: bool = False) -> Accuracy:
    """Return the largest relative errors over channels, of statistics as a layer stores them."""
    x = tensors(setting, ratio)[0].detach()
    exact = x.double().movedim(1, 0).flatten(1)
    mean = exact.mean(1)
    var = (exact - mean[:, None]).square().mean(1)
    layers = {
        "normscope": layer(normscope, setting, momentum=1.0),
        "torch": layer(nn, setting, momentum=1.0),
    }
    if compiled:
        layers["compiled"] = layer(nn, setting, momentum=1.0)
    found = []
    for name, one in layers.items():
        call = torch.compile(one, dynamic=False) if name == "compiled" else one
        with torch.no_grad():
            call(x)
        n = exact.shape[1]
        stored = one.running_mean.double(), one.running_var.double() * ((n - 1) / n)
        found.append(
            StatisticsError(peer=name, mean=_error(stored[0], mean), var=_error(stored[1], var))
        )
    return Accuracy(setting=setting, ratio=ratio, errors=tuple(found))


def _error(found: Tensor, exact: Tensor) -> float:
    return (
        float(((found - exact) / exact).abs().max()) if bool((exact != 0).all()) else float("nan")
    )
