"""Batch norm mainly allows larger learning rates."""

from torch import nn

from normscope.published.digits import Digits, accuracy, fit, mlp, seeded
from normscope.published.statement import Outcome, Statement, Summary, graded
from normscope.records import StatementVerdict

DEPTH, WIDTH, EPOCHS = 6, 64, 5
RATES = tuple(0.01 * 3**k for k in range(8))  # 0.01 ... 22
TRAINS = 0.8  # accuracy


def run(data: Digits, seed: int) -> Outcome:
    """Train with every rate, with and without norm; SGD with momentum 0.9."""
    curves = {}
    numbers = {}
    for name, norm in (("with", nn.BatchNorm1d), ("without", None)):
        reached = []
        for rate in RATES:
            seeded(seed)
            net = mlp(data.train_x[0].numel(), DEPTH, WIDTH, norm)
            fit(net, data, seed, epochs=EPOCHS, lr=rate)
            reached.append((rate, accuracy(net, data.test_x, data.test_y)))
        curves[name] = reached
        works = [rate for rate, right in reached if right >= TRAINS]
        numbers[f"largest_{name}"] = max(works, default=0.0)
        numbers[f"best_{name}"] = max(right for _, right in reached)
    numbers["ratio"] = numbers["largest_with"] / max(numbers["largest_without"], RATES[0] / 3)
    return Outcome(numbers, curves)


def judge(found: Summary) -> StatementVerdict:
    """Judge: the largest rate to reach 80 % is 3 times as large or more; direction: larger."""
    least = min(o.numbers["ratio"] for o in found.outcomes)
    return graded(least >= 2.99, found.mean("ratio") > 1)


STATEMENT = Statement(
    "learning_rates",
    "Bjorck, Gomes, Selman & Weinberger 2018, Understanding batch normalization",
    "1806.02375",
    3,
    run,
    judge,
    percent=("best_with", "best_without"),
    log_x=True,
)
