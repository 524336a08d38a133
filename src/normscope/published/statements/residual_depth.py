"""At initialisation batch norm scales the residual branch of block l down by 1 / l."""

import math
from statistics import linear_regression

import torch
from torch import nn

from normscope.published.digits import Digits, seeded
from normscope.published.statement import Outcome, Statement, Summary, graded
from normscope.records import StatementVerdict

DEPTH, WIDTH, SAMPLES = 32, 256, 512
SHOWN = (1, 2, 4, 8, 16, 32)


@torch.no_grad()
def run(data: Digits, seed: int) -> Outcome:
    """Measure the mean square of branch over skip, with and without norm, on normal inputs.

    Over random weights, whose mean is 0, the mean square is the variance.
    """
    curves = {}
    numbers = {}
    for name in ("with", "without"):
        seeded(seed)
        x = torch.randn(SAMPLES, WIDTH)
        ratios = []
        for _ in range(DEPTH):
            linear = nn.Linear(WIDTH, WIDTH)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            norm = nn.BatchNorm1d(WIDTH) if name == "with" else nn.Identity()
            branch = linear(norm(x).relu())
            ratios.append(float(branch.pow(2).mean() / x.pow(2).mean()))
            x = x + branch
        curves[name] = [(float(i), ratios[i - 1]) for i in SHOWN]
        if name == "with":
            numbers["worst"] = max(abs(ratios[i - 1] * i - 1) for i in SHOWN)
            numbers["slope"] = _slope(ratios)
    numbers["last_without"] = curves["without"][-1][1]
    curves["law"] = [(float(i), 1 / i) for i in SHOWN]
    return Outcome(numbers, curves)


def _slope(ratios: list[float]) -> float:
    places, sizes = map(math.log, SHOWN), (math.log(ratios[i - 1]) for i in SHOWN)
    return linear_regression([*places], [*sizes]).slope


def judge(found: Summary) -> StatementVerdict:
    """Judge: off 1 / l by 5 % at most, over seeds; direction: slope from -1.2 to -0.8."""
    curve = next(c for c in found.curves(()) if c.name == "with")
    worst = max(abs(y * x - 1) for x, y in zip(curve.x, curve.mean, strict=True))
    return graded(worst <= 0.05, -1.2 <= found.mean("slope") <= -0.8)


STATEMENT = Statement(
    "residual_depth",
    "De & Smith 2020, Batch normalization biases residual blocks towards the identity",
    "2002.10444",
    10,
    run,
    judge,
    percent=("worst",),
    log_x=True,
    log_y=True,
)
