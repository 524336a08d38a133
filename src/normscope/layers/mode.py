"""Mode normalisation: groups that the network learns, by a soft gate."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normscope.arguments import check_settings, check_tensors, checked_mask
from normscope.errors import InputError
from normscope.layers.batch import check_rank
from normscope.layers.mixture import mixed, own_moments, weighted_moments
from normscope.layers.statistics import RunningStatistics, reset_statistics
from normscope.layers.tracing import is_traced, one_step


class _ModeNorm(RunningStatistics):
    ranks: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        num_features: int,
        num_modes: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_modes < 1:
            raise InputError(f"num_modes is {num_modes}; at least 1 is needed")
        check_settings(eps, momentum)
        self.num_features = num_features
        self.num_modes = num_modes
        self.eps = eps
        self.momentum = momentum
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.ones(num_features, **place))
        self.bias = nn.Parameter(torch.zeros(num_features, **place))
        self.gate = nn.Linear(num_features, num_modes, **place)
        self.register_buffer("running_mean", torch.zeros(num_modes, num_features, **place))
        self.register_buffer("running_var", torch.ones(num_modes, num_features, **place))
        counter = torch.zeros(num_modes, dtype=torch.long, device=device)
        self.register_buffer("num_batches_tracked", counter)

    def reset_running_stats(self) -> None:
        """Set mean 0, variance 1, nothing tracked."""
        reset_statistics(self)

    def memberships(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the gate's shares (N, K), rows that sum to one, in float64."""
        mask = None if mask is None else checked_mask(mask, input)
        return self._shares(own_moments(input, mask).mean)

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise by every mode and mix the results by the gate's shares."""
        if is_traced(input):
            return one_step(self, input, mask)
        check_rank(input, self.ranks)
        check_tensors(input, 1, None, None, self.weight, self.bias)
        mask = None if mask is None else checked_mask(mask, input)
        own = own_moments(input, mask)
        share = self._shares(own.mean)
        assert self.running_mean is not None, "always tracked"
        assert self.running_var is not None, "always tracked"
        if self.normalizes_by_batch():
            batch = weighted_moments(own, share)
            self.observe(batch.detach())
            mean, var = batch.mean, batch.m2 / batch.count.clamp(min=1).unsqueeze(1)
        else:
            mean, var = self.running_mean.double(), self.running_var.double()
        rstd = torch.rsqrt(var.clamp(min=0) + self.eps)
        bias = self.bias.expand(self.num_modes, -1)
        return mixed(input, own, share, mean, rstd, self.weight, bias, mask)

    def extra_repr(self) -> str:
        """Show the arguments."""
        return f"{self.num_features}, {self.num_modes}, eps={self.eps}, momentum={self.momentum}"

    def _shares(self, features: Tensor) -> Tensor:
        logits: Tensor = self.gate(features.to(self.gate.weight.dtype))
        return logits.double().softmax(1)


class ModeNorm1d(_ModeNorm):
    """Mode normalisation over (N, C) or (N, C, L): K soft groups found by a learned gate.

        share = softmax(gate(mean of x over positions)),   (N, K)
        y = sum_k share_k (x - mean_k) / sqrt(var_k + eps) * weight + bias

    mean_k and var_k weigh every sample by its share; gradients flow through the shares. One pass
    over x, whatever K is. With K = 1 it is batch norm.

    Args:
        num_features: C.
        num_modes: K.
        eps, momentum, device, dtype: as `torch.nn.BatchNorm`.

    forward(input, mask=None). State: weight, bias (C,), gate.weight, gate.bias, and running_mean,
    running_var (K, C), num_batches_tracked (K,), all saved. The biased variance normalises; the
    stored one is m2_k / (n_k - 1) with n_k the sum of the shares. A mode whose shares sum to one
    value or less keeps its running statistics.

    Raises:
        ValueError: wrong rank.
        RuntimeError: wrong number of channels or mixed dtypes.

    Source: Deecke, Murray, Bilen 2019, "Mode normalization", algorithm 1.

    >>> import torch
    >>> import normscope
    >>> layer = normscope.ModeNorm1d(3, num_modes=2)
    >>> layer(torch.randn(8, 3)).shape
    torch.Size([8, 3])
    """

    ranks = (2, 3)


class ModeNorm2d(_ModeNorm):
    """Mode normalisation over (N, C, H, W); see `ModeNorm1d`.

    >>> normscope.ModeNorm2d(3, num_modes=2)(torch.randn(8, 3, 5, 5)).shape
    torch.Size([8, 3, 5, 5])
    """

    ranks = (4,)


class ModeNorm3d(_ModeNorm):
    """Mode normalisation over (N, C, D, H, W); see `ModeNorm1d`.

    >>> normscope.ModeNorm3d(3, num_modes=2)(torch.randn(8, 3, 2, 5, 5)).shape
    torch.Size([8, 3, 2, 5, 5])
    """

    ranks = (5,)
