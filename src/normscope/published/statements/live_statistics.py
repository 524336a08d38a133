"""On shifted images statistics of a few of them help, even of one, mixed with the stored ones."""

import torch
from torch import Tensor, nn

from normscope.published.digits import Digits, accuracy, norms, trained
from normscope.published.statement import Outcome, Statement, Summary, graded
from normscope.records import StatementVerdict

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PRIOR = 16  # samples that the stored statistics count as


def shifted(x: Tensor) -> Tensor:
    """Lower the contrast and brighten."""
    return 0.8 * x + 0.2


@torch.no_grad()
def run(data: Digits, seed: int) -> Outcome:
    """Measure the error against the number of live images, alone and with a prior of 16."""
    net = trained(data, seed)
    x, y = shifted(data.test_x), data.test_y
    numbers = {"clean": 1 - accuracy(net, data.test_x, y), "stored": 1 - accuracy(net, x, y)}
    stored = [(m.running_mean.clone(), m.running_var.clone()) for m in norms(net)]
    curves: dict[str, list[tuple[float, float]]] = {"live": [], "prior": []}
    for n in SIZES:
        for name, prior in (("live", 0), ("prior", PRIOR)):
            errors = []
            for draw in range(max(1, 8 // n)):
                rows = torch.randperm(len(x))[:n]
                _adapt(net, x[rows], stored, n / (n + prior))
                errors.append(1 - accuracy(net, x, y))
                del draw
            curves[name].append((float(n), sum(errors) / len(errors)))
    numbers["live_many"], numbers["live_one"] = curves["live"][-1][1], curves["live"][0][1]
    numbers["prior_one"] = curves["prior"][0][1]
    numbers["gain_many"] = numbers["stored"] - numbers["live_many"]
    numbers["gain_one"] = numbers["stored"] - numbers["prior_one"]
    curves["stored"] = [(float(n), numbers["stored"]) for n in (SIZES[0], SIZES[-1])]
    return Outcome(numbers, curves)


def _adapt(net: nn.Module, x: Tensor, stored: list[tuple[Tensor, Tensor]], share: float) -> None:
    """Let each norm take `share` of its statistics from these images, one norm after the other."""
    for norm, (mean, var) in zip(norms(net), stored, strict=True):
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    for layer in net.children():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None, "it keeps statistics"
            assert layer.running_var is not None, "it keeps statistics"
            live_var, live_mean = torch.var_mean(x, (0, 2, 3), correction=0)
            layer.running_mean.lerp_(live_mean, share)
            layer.running_var.lerp_(live_var, share)
        x = layer(x)


def judge(found: Summary) -> StatementVerdict:
    """Judge: 512 images, and one with a prior of 16, lower the error; direction: 512."""
    many = found.mean("gain_many") > 0 and found.sure("gain_many") > 2
    one = found.mean("gain_one") > 0 and found.sure("gain_one") > 2
    return graded(many and one, many)


STATEMENT = Statement(
    "live_statistics",
    "Schneider et al. 2020, Improving robustness against common corruptions by covariate shift "
    "adaptation",
    "2006.16971",
    10,
    run,
    judge,
    percent=("clean", "stored", "live_many", "live_one", "prior_one", "gain_many", "gain_one"),
    log_x=True,
)
