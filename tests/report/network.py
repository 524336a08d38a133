"""The same small network in PyTorch, and a way to ask the one of the page for its numbers."""

from importlib.resources import files
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Any]


def script() -> str:
    """The engine's files as one script."""
    folder = files("normscope.report").joinpath("assets/scripts/network")
    names = ("random", "engine", "data", "experiment", "lessons")
    return "\n".join(folder.joinpath(f"{n}.js").read_text(encoding="utf-8") for n in names)


class ByGroup(nn.Module):
    """One torch BatchNorm1d per group; without groups, their statistics pooled."""

    def __init__(self, units: int, groups: int, shared: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(units, affine=not shared, dtype=torch.float64) for _ in range(groups)
        )
        rows = 1 if shared else groups
        self.weight = nn.Parameter(torch.ones(rows, units, dtype=torch.float64)) if shared else None
        self.bias = nn.Parameter(torch.zeros(rows, units, dtype=torch.float64)) if shared else None

    def forward(self, h: Tensor, groups: Tensor | None) -> Tensor:
        if groups is None:
            means = torch.stack([n.running_mean for n in self.norms])
            variances = torch.stack([n.running_var for n in self.norms])
            seen = torch.stack([n.num_batches_tracked for n in self.norms]).double().unsqueeze(1)
            share = seen / seen.sum() if seen.sum() else torch.full_like(seen, 1 / len(seen))
            mean = (share * means).sum(0)
            variance = (share * (variances + (means - mean) ** 2)).sum(0)
            z = (h - mean) / torch.sqrt(variance + 1e-5)
            if self.weight is not None:
                return z * self.weight[0] + self.bias[0]
            gamma = torch.stack([n.weight for n in self.norms]).mean(0)
            beta = torch.stack([n.bias for n in self.norms]).mean(0)
            return z * gamma + beta
        y = torch.zeros_like(h)
        for k, norm in enumerate(self.norms):
            if (groups == k).any():
                y[groups == k] = norm(h[groups == k])
        return y if self.weight is None else y * self.weight[0] + self.bias[0]


class Ghost(nn.Module):
    """Each chunk standardised by itself in training; the running statistics are the batch's."""

    def __init__(self, units: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.norm = nn.BatchNorm1d(units, dtype=torch.float64)

    def forward(self, h: Tensor, _: Tensor | None) -> Tensor:
        if not self.training:
            y: Tensor = self.norm(h)
            return y
        self.norm(h.detach())  # moves the running statistics
        count = max(1, len(h) // self.size)
        ends = [self.size * (i + 1) for i in range(count - 1)] + [len(h)]
        chunks = [h[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        return torch.cat(
            [
                nn.functional.batch_norm(c, None, None, self.norm.weight, self.norm.bias, True)
                for c in chunks
            ]
        )


class Plain(nn.Module):
    """A module of torch that asks for no groups."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, h: Tensor, _: Tensor | None) -> Tensor:
        y: Tensor = self.norm(h)
        return y


class Reference(nn.Module):
    """The network of the page, built from torch's own modules."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        sizes = [shape["inputs"], *shape["hidden"]]
        self.norm = shape["norm"]
        self.linears = nn.ModuleList(
            nn.Linear(a, b, dtype=torch.float64) for a, b in pairwise(sizes)
        )
        self.norms = nn.ModuleList(self._norm(units, shape) for units in sizes[1:])
        self.head = nn.Linear(sizes[-1], shape["classes"], dtype=torch.float64)

    def _norm(self, units: int, shape: dict[str, Any]) -> nn.Module:
        double = torch.float64
        shared = shape.get("sharedAffine", False)
        match shape["norm"]:
            case "none":
                return Plain(nn.Identity())
            case "batch":
                return Plain(nn.BatchNorm1d(units, dtype=double))
            case "noaffine":
                return Plain(nn.BatchNorm1d(units, affine=False, dtype=double))
            case "layer":
                return Plain(nn.LayerNorm(units, dtype=double))
            case "ghost":
                return Ghost(units, shape["ghost"])
            case "per_class":
                return ByGroup(units, shape["classes"], shared)
            case "conditional":
                return ByGroup(units, shape["domains"], shared)
        raise ValueError(shape["norm"])

    def forward(self, x: Tensor, groups: Tensor | None) -> Tensor:
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = torch.relu(norm(linear(x), groups))
        logits: Tensor = self.head(x)
        return logits

    def groups(self, batch: Batch, told: bool = True) -> Tensor | None:
        """What the norm asks for of a batch."""
        name = {"per_class": "labels", "conditional": "domains"}.get(self.norm)
        return torch.tensor(batch[name]) if name and (told or name == "domains") else None

    def in_order(self, take: Any) -> list[list[float]]:
        """What `take` finds at each parameter, in the order of the page's network."""
        found = []
        for linear, norm in zip(self.linears, self.norms, strict=True):
            found += [take(linear.weight), take(linear.bias)]
            if isinstance(norm, ByGroup) and norm.weight is None:
                found += [list(chain.from_iterable(take(n.weight) for n in norm.norms))]
                found += [list(chain.from_iterable(take(n.bias) for n in norm.norms))]
            elif isinstance(norm, ByGroup):
                found += [take(norm.weight), take(norm.bias)]
            else:
                affine = [p for n, p in norm.named_parameters()]
                found += [take(p) for p in affine]
        return [*found, take(self.head.weight), take(self.head.bias)]

    def running(self) -> list[list[float]]:
        """Running means and variances, layer by layer."""
        found: list[list[float]] = []
        for norm in self.norms:
            for name in ("running_mean", "running_var"):
                tables = [b for n, b in norm.named_buffers() if n.endswith(name)]
                if tables:
                    found.append(torch.cat(tables).tolist())
        return found
