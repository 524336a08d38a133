"""Training gamma and beta alone, with every weight at random, learns the classes."""

import torch
from torch import nn

from normscope.published.digits import Digits, accuracy, cnn, fit, norms, seeded
from normscope.published.statement import Outcome, Statement, Summary, graded
from normscope.records import StatementVerdict

EPOCHS, LR = 20, 0.1
SMALL = 0.01  # |gamma| below this is switched off, as in the paper
SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)


def run(data: Digits, seed: int) -> Outcome:
    """Train gamma and beta of a random network, the classifier alone, and everything."""
    reached = {}
    gammas = torch.zeros(0)
    for what in ("affine", "classifier", "everything"):
        seeded(seed)
        net = cnn(nn.BatchNorm2d, (16, 32, 32))
        affine = [p for norm in norms(net) for p in norm.parameters()]
        for norm in norms(net):
            nn.init.uniform_(norm.weight, 0, 1)
        chosen = {
            "affine": affine,
            "classifier": list(net[-1].parameters()),
            "everything": list(net.parameters()),
        }[what]
        fit(net, data, seed, epochs=EPOCHS if what != "everything" else 10, lr=LR, only=chosen)
        reached[what] = accuracy(net, data.test_x, data.test_y)
        if what == "affine":
            gammas = torch.cat([norm.weight.detach().abs() for norm in norms(net)])
    off = float((gammas < SMALL).double().mean())
    curve = [(share, float((gammas < share).double().mean())) for share in SHARES]
    return Outcome({**reached, "off": off}, {"gammas": curve})


def judge(found: Summary) -> StatementVerdict:
    """Judge: at least 3 times chance, a fifth to a half of the gammas off; direction: the first."""
    learned = found.mean("affine") >= 0.3
    return graded(learned and 0.2 <= found.mean("off") <= 0.5, learned)


STATEMENT = Statement(
    "only_affine",
    "Frankle, Schwab & Morcos 2021, Training BatchNorm and only BatchNorm",
    "2003.00152",
    3,
    run,
    judge,
    percent=("affine", "classifier", "everything", "off"),
    log_x=True,
)
