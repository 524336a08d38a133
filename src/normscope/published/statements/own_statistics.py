"""Weighing a sample's own statistics at inference helps weights trained with small batches."""

import torch

from normscope.layers import EvalNorm2d
from normscope.published.digits import Digits, accuracy, cnn, fit, seeded
from normscope.published.statement import Outcome, Statement, Summary, graded
from normscope.records import StatementVerdict

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
BATCH, EPOCHS, LR = 2, 2, 0.01
POINTS = 0.01


@torch.no_grad()
def run(data: Digits, seed: int) -> Outcome:
    """Train with batches of two; choose the weight on half of the test images."""
    seeded(seed)
    net = cnn(EvalNorm2d)
    with torch.enable_grad():
        fit(net, data, seed, epochs=EPOCHS, lr=LR, batch=BATCH)
    half = len(data.test_x) // 2
    chosen, judged = (
        (data.test_x[:half], data.test_y[:half]),
        (data.test_x[half:], data.test_y[half:]),
    )
    curve = []
    held = []
    for weight in WEIGHTS:
        for layer in net.modules():
            if isinstance(layer, EvalNorm2d):
                layer.own_weight = weight
        held.append(accuracy(net, *chosen))
        curve.append((weight, accuracy(net, *judged)))
    best = held.index(max(held))
    numbers = {"without": curve[0][1], "with": curve[best][1], "weight": WEIGHTS[best]}
    numbers["gain"] = numbers["with"] - numbers["without"]
    return Outcome(numbers, {"accuracy": curve})


def judge(found: Summary) -> StatementVerdict:
    """Judge: it gains a point, beyond chance; direction: it gains."""
    gain = found.mean("gain")
    return graded(gain >= POINTS and found.sure("gain") > 2, gain > 0)


STATEMENT = Statement(
    "own_statistics",
    "Singh & Shrivastava 2019, EvalNorm: estimating batch normalization statistics for evaluation; "
    "Summers & Dinneen 2020, Four things everyone should know to improve batch normalization",
    "1904.06031",
    5,
    run,
    judge,
    percent=("without", "with", "gain"),
)
