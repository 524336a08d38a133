"""Inputs of a layer for the Triton programs, and how far a result may be off."""

import os
from typing import Any

import torch
from torch import Tensor

from normscope import functional

DEVICE = "cuda" if torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ else "cpu"
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


class Case:
    """Inputs of a layer: odd shapes, ragged groups of which the second is always empty.

    `form` holds: act, a residual, a mask, K, rows of weight and of bias.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        by_rows: bool,
        dtype: torch.dtype,
        form: tuple[Any, ...],
        running: str = "pooled",
    ) -> None:
        self.act, added, masked, self.k, *rows = form
        n, c = shape[:2]
        self.rows = max(self.k, *rows)

        def values() -> Tensor:
            x = (torch.randn(shape, dtype=torch.double) * 2 + 3).to(dtype).to(DEVICE)
            return x.movedim(1, -1).contiguous().movedim(-1, 1) if by_rows else x

        self.x, self.dy = values(), values()
        self.residual = values().requires_grad_() if added else None
        groups = torch.randint(0, self.rows, (n,))
        groups[groups == 1] = 0
        self.groups = groups.to(DEVICE) if self.rows > 1 else None
        self.mask = (torch.rand(n, 1, *shape[2:]) < 0.7).to(DEVICE) if masked else None
        if self.mask is not None:
            self.x = torch.where(self.mask, self.x, torch.nan)
        self.x.requires_grad_()
        table = torch.float32 if dtype.itemsize == 2 else dtype
        self.weight, self.bias = (
            torch.randn(r, c).squeeze(0).to(DEVICE, table).requires_grad_() for r in rows
        )
        each = running == "each"
        size = (self.k, c) if each else (c,)
        self.running = [torch.rand(size).to(DEVICE, table) for _ in range(2)]
        self.tracked = torch.full((self.k,) if each else (), 3, device=DEVICE)

    @property
    def leaves(self) -> list[Tensor]:
        """What gets a gradient."""
        given = (self.x, self.weight, self.bias, self.residual)
        return [t for t in given if t is not None]

    def call(
        self, impl: str, training: bool = True, state: list[Tensor] | None = None, **more: Any
    ) -> list[Tensor]:
        """The output, and the running statistics after it."""
        state = state or [t.clone() for t in (*self.running, self.tracked)]
        y = functional.batch_norm(
            self.x, *state[:2], self.weight, self.bias, training, eps=1e-3, groups=self.groups,
            num_groups=self.k, mask=self.mask, act=self.act, residual=self.residual, min_count=40,
            num_batches_tracked=state[2], impl=impl, **more,
        )  # fmt: skip
        return [y, *state]


def close(ours: Any, theirs: Any, tolerance: float) -> None:
    """Compare, by the largest expected value."""
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        assert mine.shape == other.shape
        assert mine.isfinite().all()
        scale = max(1.0, float(other.abs().max()))
        assert float((mine.double() - other.double()).abs().max()) < tolerance * scale
