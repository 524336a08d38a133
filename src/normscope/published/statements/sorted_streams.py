"""Adapting by the batch fails on streams whose neighbours are of one class."""

import torch
from torch import Tensor, nn

from normscope.published.digits import Digits, accuracy, norms, trained
from normscope.published.statement import Outcome, Statement, Summary, graded
from normscope.records import StatementVerdict

SIZES = (8, 16, 32, 64)
STAY = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0)  # chance that the next image is of the same class; 1: sorted
SMALL = 16  # a batch then lies within one class of the sorted stream, of 54 images
AFTER = 0.05  # largest difference of a stream from its prediction that agrees


def stream(y: Tensor, stay: float) -> Tensor:
    """Order all images so that each has the class of the one before with chance `stay`."""
    if stay == 1:
        return y.argsort(stable=True)
    rows = {c: (y == c).nonzero().flatten()[torch.randperm(int((y == c).sum()))].tolist()
            for c in range(10)}  # fmt: skip
    order: list[int] = []
    now = -1
    while any(rows.values()):
        left = [c for c in rows if rows[c]]
        if now not in left or float(torch.rand(())) >= stay:
            weights = torch.tensor([float(len(rows[c])) for c in left])
            now = left[int(torch.multinomial(weights, 1))]
        order.append(rows[now].pop())
    return torch.tensor(order)


def predicted(y: Tensor, m: int) -> float:
    """Return (1 - r)(1 - 1/m), from the labels alone; r counts images of the same class.

    r = (P(same class) - chance) / (1 - chance)
    """
    same = total = 0.0
    for labels in y.split(m):
        counts = torch.bincount(labels, minlength=10).double()
        same += float((counts * (counts - 1)).sum())
        total += len(labels) * (len(labels) - 1)
    share = torch.bincount(y, minlength=10).double() / len(y)
    chance = float((share * share).sum())
    r = (same / total - chance) / (1 - chance)
    return (1 - r) * (1 - 1 / m)


@torch.no_grad()
def run(data: Digits, seed: int) -> Outcome:
    """Predict, then measure, the class signal that batches leave at the first norm's input."""
    net = trained(data, seed)
    numbers = {"stored": accuracy(net, data.test_x, data.test_y)}
    scatter, errors = [], []
    for m in SIZES:
        for stay in STAY:
            order = stream(data.test_y, stay)
            order = order[: len(order) // m * m]
            x, y = data.test_x[order], data.test_y[order]
            expected = predicted(y, m)  # before anything is run
            scatter.append((expected, _signal(net[0](x).mean((2, 3)).double(), y, m)))
            right = _by_batch(net, x, y, m)
            errors.append((expected, 1 - right))
            if m == SMALL and stay in (0.0, 1.0):
                numbers["sorted" if stay else "shuffled"] = right
    numbers["apart"] = (sum((x - y) ** 2 for x, y in scatter) / len(scatter)) ** 0.5
    numbers["worst"] = max(abs(x - y) for x, y in scatter)
    numbers["lost"] = numbers["shuffled"] - numbers["sorted"]
    return Outcome(numbers, {"signal": scatter, "error": errors})


def _signal(x: Tensor, y: Tensor, m: int) -> float:
    """Return what is left of the class means where each batch is centred.

        sum_ck p_k c_kc d_kc / v_c  over  sum_ck p_k d_kc^2 / v_c

    with d the class means less the overall mean and c the same of the centred values.
    """
    centred = torch.cat([part - part.mean(0) for part in x.split(m)])
    onehot = torch.nn.functional.one_hot(y, 10).double()
    count = onehot.sum(0)
    share = (count / count.sum()).unsqueeze(1)
    left, mean = ((onehot.T @ values) / count.clamp(min=1).unsqueeze(1) for values in (centred, x))
    offset = (mean - (share * mean).sum(0)) / x.var(0)
    whole = (share * offset * (mean - (share * mean).sum(0))).sum()
    return float((share * left * offset).sum() / whole)


def _by_batch(net: nn.Module, x: Tensor, y: Tensor, m: int) -> float:
    """Return the accuracy where every batch is normalised by itself."""
    for norm in norms(net):
        norm.train()
        norm.momentum = 0.0
    right = sum(
        float((net(a).argmax(1) == b).sum()) for a, b in zip(x.split(m), y.split(m), strict=True)
    )
    net.eval()
    return right / len(y)


def judge(found: Summary) -> StatementVerdict:
    """Judge: sorting costs 10 points, 24 streams predicted to 0.05; direction: it costs."""
    costs = found.mean("lost") >= 0.1
    return graded(costs and found.mean("worst") <= AFTER, found.mean("lost") > 0)


STATEMENT = Statement(
    "sorted_streams",
    "Gong et al. 2022, NOTE: robust continual test-time adaptation against temporal correlation",
    "2208.05117",
    3,
    run,
    judge,
    percent=("stored", "shuffled", "sorted", "lost"),
    scatter=("signal", "error"),
)
