"""Frozen batch norm: a fixed affine map with batch norm's checkpoint."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normscope.arguments import Activation, check_settings
from normscope.functional import batch_norm
from normscope.layers.batch import check_rank
from normscope.layers.tracing import is_traced, one_step


class _FrozenBatchNorm(nn.Module):
    ranks: ClassVar[tuple[int, ...]]
    act: Activation | None = None
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        act: Activation | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_settings(eps, None)
        self.num_features = num_features
        self.eps = eps
        self.act = act
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        for name, start in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((num_features,), float(start), **place))
        counter = torch.zeros((), dtype=torch.long, device=device)
        self.register_buffer("num_batches_tracked", counter)

    @property
    def fused_act(self) -> Activation | None:
        """`act`; a derived class that activates in a module of its own has None here."""
        return self.act

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply the map of the stored statistics, in train() and in eval() alike."""
        if is_traced(input):
            return one_step(self, input, residual)
        check_rank(input, self.ranks)
        return batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            eps=self.eps,
            act=self.fused_act,
            residual=residual,
        )

    def extra_repr(self) -> str:
        """Show the arguments."""
        act = "" if self.fused_act is None else f", act={self.fused_act!r}"
        return f"{self.num_features}, eps={self.eps}{act}"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # as in torch, a checkpoint need not have the counter; torchvision's frozen ones have none
        state = {f"{prefix}num_batches_tracked": self.num_batches_tracked, **state_dict}
        super()._load_from_state_dict(state, prefix, *args)


class FrozenBatchNorm1d(_FrozenBatchNorm):
    """Batch norm over (N, C) or (N, C, L) that neither trains nor updates its statistics.

        y = (x - running_mean) / sqrt(running_var + eps) * weight + bias

    The same in train() and eval(); nothing is a parameter, so no optimiser, weight decay or
    `requires_grad_(True)` reaches it. Exactly `torch.nn.BatchNorm` in eval(), with its five keys.

    Args:
        num_features: C.
        eps: added to the variance.
        act: as `BatchNorm1d`.
        device, dtype: of the buffers.

    Raises:
        ValueError: wrong rank.
        RuntimeError: wrong number of channels or mixed dtypes.

    >>> import torch
    >>> import normscope
    >>> layer = normscope.FrozenBatchNorm1d(3)
    >>> layer(torch.randn(8, 3)).shape
    torch.Size([8, 3])
    """

    ranks = (2, 3)


class FrozenBatchNorm2d(_FrozenBatchNorm):
    """Frozen batch norm over (N, C, H, W); see `FrozenBatchNorm1d`.

    >>> normscope.FrozenBatchNorm2d(3)(torch.randn(8, 3, 5, 5)).shape
    torch.Size([8, 3, 5, 5])
    """

    ranks = (4,)


class FrozenBatchNorm3d(_FrozenBatchNorm):
    """Frozen batch norm over (N, C, D, H, W); see `FrozenBatchNorm1d`.

    >>> normscope.FrozenBatchNorm3d(3)(torch.randn(8, 3, 2, 5, 5)).shape
    torch.Size([8, 3, 2, 5, 5])
    """

    ranks = (5,)
