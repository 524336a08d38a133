"""The distance of stored statistics from those of new data grows with depth."""

import torch
from scipy.stats import spearmanr
from torch import nn

from normscope.moments import drift
from normscope.published.digits import Digits, fit, mlp, norms, seeded
from normscope.published.statement import Outcome, Statement, Summary, graded
from normscope.published.statements.live_statistics import shifted
from normscope.records import StatementVerdict

DEPTH, WIDTH, EPOCHS, LR = 8, 64, 10, 0.05


@torch.no_grad()
def run(data: Digits, seed: int) -> Outcome:
    """Measure the distance at each norm, on test images as they are and with less contrast."""
    seeded(seed)
    net = mlp(data.train_x[0].numel(), DEPTH, WIDTH, nn.BatchNorm1d)
    with torch.enable_grad():
        fit(net, data, seed, epochs=EPOCHS, lr=LR)
    curves, numbers = {}, {}
    for name, x in (("same", data.test_x), ("shifted", shifted(data.test_x))):
        found: list[tuple[float, float]] = []
        for layer in net:
            if isinstance(layer, nn.BatchNorm1d):
                wide = x.double()
                assert layer.running_mean is not None, "it keeps statistics"
                assert layer.running_var is not None, "it keeps statistics"
                stored = (layer.running_mean.double(), layer.running_var.double())
                far = drift(*stored, wide.mean(0), wide.var(0)).clamp(max=10)
                found.append((len(found) + 1.0, float(far.mean())))
            x = layer(x)
        curves[name] = found
        numbers[f"rank_{name}"] = float(spearmanr(found).statistic)
        numbers[f"growth_{name}"] = found[-1][1] / max(found[0][1], 1e-12)
    assert len(norms(net)) == DEPTH, "one per layer"
    return Outcome(numbers, curves)


def judge(found: Summary) -> StatementVerdict:
    """Rank correlation of distance and depth above 0.8 on both; direction: above 0.3 on one."""
    both = [found.mean("rank_same"), found.mean("rank_shifted")]
    return graded(min(both) > 0.8, max(both) > 0.3)


STATEMENT = Statement(
    "depth_shift",
    "Huang et al. 2022, Delving into the estimation shift of batch normalization in a network",
    "2203.10778",
    5,
    run,
    judge,
)
