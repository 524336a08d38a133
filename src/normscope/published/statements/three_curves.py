"""Small normalisation batches: training and inference disagree, which goes as they grow."""

import torch

from normscope.published.digits import Digits, accuracy, cnn, fit, norms, seeded
from normscope.published.statement import Outcome, Statement, Summary, graded
from normscope.records import StatementVerdict

SIZES = (2, 4, 8, 16, 32, 64)
EPOCHS, LR = 3, 0.02


@torch.no_grad()
def run(data: Digits, seed: int) -> Outcome:
    """Train with ghost batches of each size in batches of 64; three errors of each network."""
    from normscope.layers import GhostBatchNorm2d

    curves: dict[str, list[tuple[float, float]]] = {n: [] for n in ("train", "batch", "population")}
    for size in SIZES:
        seeded(seed)
        net = cnn(lambda c, size=size: GhostBatchNorm2d(c, ghost_size=size))  # type: ignore[misc]
        with torch.enable_grad():
            fit(net, data, seed, epochs=EPOCHS, lr=LR)
        curves["population"].append((float(size), 1 - accuracy(net, data.test_x, data.test_y)))
        for norm in norms(net):
            norm.train()
            norm.momentum = 0.0
        for name, x, y in (
            ("train", data.train_x, data.train_y),
            ("batch", data.test_x, data.test_y),
        ):
            rows = torch.randperm(len(x))[: len(x) // 64 * 64]
            parts = [accuracy(net, x[part], y[part]) for part in rows.split(64)]
            curves[name].append((float(size), 1 - sum(parts) / len(parts)))
    gaps = [abs(p[1] - b[1]) for p, b in zip(curves["population"], curves["batch"], strict=True)]
    numbers = {
        "gap_small": gaps[0],
        "gap_large": gaps[-1],
        "closed": gaps[0] - gaps[-1],
        "train_small": curves["train"][0][1],
        "train_large": curves["train"][-1][1],
        "noise": curves["train"][0][1] - curves["train"][-1][1],
    }
    return Outcome(numbers, curves)


def judge(found: Summary) -> StatementVerdict:
    """Judge: gap and training error fall from batches of 2 to 64; direction: one of them."""
    falls = [found.mean(n) > 0 and found.sure(n) > 2 for n in ("closed", "noise")]
    return graded(all(falls), any(falls))


STATEMENT = Statement(
    "three_curves",
    'Wu & Johnson 2021, Rethinking "batch" in BatchNorm',
    "2105.07576",
    5,
    run,
    judge,
    percent=("gap_small", "gap_large", "closed", "train_small", "train_large", "noise"),
    log_x=True,
)
