"""Noise behind the norm, which brings covariate shift back, hardly harms training."""

import torch
from torch import Tensor, nn

from normscope.moments import rms
from normscope.published.digits import Digits, accuracy, fit, mlp, seeded
from normscope.published.statement import Outcome, Statement, Summary, graded
from normscope.records import StatementVerdict

DEPTH, WIDTH, EPOCHS, LR = 4, 64, 8, 0.05
KEPT = 0.02  # of accuracy may be lost


class Noisy(nn.BatchNorm1d):
    """Batch norm, and in training behind it another scale and shift per channel at every step."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, then draw."""
        y = super().forward(input)
        if not self.training:
            return y
        scale = 1 + 0.25 * torch.randn(y.shape[1])
        return y * scale + 0.5 * torch.randn(y.shape[1])


class Kept(nn.Module):
    """Store every input."""

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        """Return x as it is."""
        self.seen.append(x.detach())
        return x


def run(data: Digits, seed: int) -> Outcome:
    """Train without norm, with it, and with noise behind it; and how far inputs jump per step."""
    numbers, curves = {}, {}
    for name, norm in (("none", None), ("norm", nn.BatchNorm1d), ("noisy", Noisy)):
        seeded(seed)
        net = mlp(data.train_x[0].numel(), DEPTH, WIDTH, norm)
        seen: list[Tensor] = []
        jumps: list[float] = []
        net.insert(len(net) - 1, Kept(seen))
        reached: list[tuple[float, float]] = []
        steps = -(-len(data.train_x) // 64)

        def after(step: int, seen: list[Tensor] = seen, jumps: list[float] = jumps) -> None:
            if len(seen) > 1:
                first, second = seen[-2].mean(0), seen[-1].mean(0)
                jumps.append(rms(second - first) / max(rms(seen[-2].std(0)), 1e-6))
            del seen[:-1]

        for epoch in range(EPOCHS):
            fit(net, data, seed + 1000 * epoch, epochs=1, lr=LR, after_step=after)
            reached.append(((epoch + 1.0) * steps, accuracy(net, data.test_x, data.test_y)))
            seen.clear()
        numbers[name], curves[name] = reached[-1][1], reached
        numbers[f"jump_{name}"] = sum(jumps) / max(1, len(jumps))
    numbers["lost"] = numbers["norm"] - numbers["noisy"]
    return Outcome(numbers, curves)


def judge(found: Summary) -> StatementVerdict:
    """Judge: noise makes inputs jump more, at a cost of 2 points; direction: not below no norm."""
    shifts = found.mean("jump_noisy") > found.mean("jump_norm")
    well = found.mean("noisy") >= found.mean("none")
    return graded(shifts and found.mean("lost") <= KEPT, shifts and well)


STATEMENT = Statement(
    "covariate_noise",
    "Santurkar, Tsipras, Ilyas & Madry 2018, How does batch normalization help optimization?",
    "1805.11604",
    5,
    run,
    judge,
    percent=("none", "norm", "noisy", "lost"),
)
