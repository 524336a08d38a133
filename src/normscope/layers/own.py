"""Batch norm that mixes each sample's own statistics into the stored ones at inference."""

from typing import Any

import torch
from torch import Tensor

from normscope.arguments import Activation, check_tensors, checked_mask
from normscope.errors import InputError
from normscope.kernels.reference import ACTIVATIONS
from normscope.layers.batch import Device, Normalizer, Ranks, check_rank
from normscope.layers.mixture import own_moments
from normscope.layers.tracing import is_traced, one_step


class _EvalNorm(Normalizer):
    own_weight: float = 0.0
    counts_empty = False

    def __init__(
        self,
        num_features: int,
        own_weight: float = 0.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        act: Activation | None = None,
        process_group: Ranks = None,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            bias=bias,
            act=act,
            process_group=process_group,
        )
        self.own_weight = checked_weight(own_weight)

    def forward(
        self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Normalise as batch norm; in eval() with the sample's own statistics mixed in."""
        if is_traced(input):
            return one_step(self, input, residual, mask)
        if self.own_weight == 0 or self.normalizes_by_batch() or self.running_mean is None:
            return super().forward(input, residual, mask)
        mask = None if mask is None else checked_mask(mask, input)
        y = self._own_weighted(input, mask)
        y = y if residual is None else y + residual
        y = y if self.fused_act is None else ACTIVATIONS[self.fused_act](y)
        y = y if mask is None else y.masked_fill(~mask, 0)
        return y.to(input.dtype)

    def _own_weighted(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Normalise by w times the sample's and 1 - w times the running statistics, in float64."""
        check_rank(x, self.ranks)
        assert self.running_mean is not None, "asked before"
        assert self.running_var is not None, "made together"
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        check_tensors(x, 1, self.running_mean, self.running_var, weight, bias)
        w, own = self.own_weight, own_moments(x, mask)
        stored_mean = self.running_mean.to(own.mean.dtype)
        stored_var = self.running_var.to(own.mean.dtype)
        off = own.mean - stored_mean  # (N, C)
        within = own.m2 / own.count.clamp(min=1).unsqueeze(1)
        var = w * within + (1 - w) * stored_var + w * (1 - w) * off * off
        scale = torch.rsqrt(var.clamp(min=0) + self.eps)
        scale = scale if weight is None else scale * weight
        shape = (*off.shape, *[1] * (x.dim() - 2))
        y = (x.to(off.dtype) - (stored_mean + w * off).view(shape)) * scale.view(shape)
        return y if bias is None else y + bias.view(1, *shape[1:])

    def extra_repr(self) -> str:
        """Show as batch norm does, with the weight."""
        return f"{super().extra_repr()}, own_weight={self.own_weight:g}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # a number in Python, so that no forward waits for the device to read it
        destination[prefix + "own_weight"] = torch.tensor(self.own_weight, dtype=torch.float64)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        weight = state_dict.pop(
            prefix + "own_weight", None
        )  # of a copy; plain checkpoints have none
        super()._load_from_state_dict(state_dict, prefix, *args)
        if weight is not None:
            self.own_weight = checked_weight(float(weight))


def checked_weight(own_weight: float) -> float:
    """Refuse a weight outside [0, 1]."""
    if not 0 <= own_weight <= 1:
        raise InputError(f"own_weight is {own_weight}; it must be from 0 to 1")
    return float(own_weight)


class EvalNorm1d(_EvalNorm):
    """Batch norm over (N, C) or (N, C, L) that uses each sample's own statistics in eval().

        mean_n = w m_n + (1 - w) running_mean
        var_n = w v_n + (1 - w) running_var + w (1 - w) (m_n - running_mean)^2
        y_n = (x_n - mean_n) / sqrt(var_n + eps) * weight + bias

    m_n and v_n are mean and biased variance of sample n over its positions; without positions
    v_n is 0. var_n is the total variance of the mixture. In training with m samples each has a
    weight of 1/m in its own statistics, in eval() none; w gives it back. In training it is batch
    norm, and with w = 0 in eval() too, to the bit. w = 1 is instance norm.

    Args:
        num_features: C.
        own_weight: w, from 0 to 1. Saved in the state_dict; one without it leaves w as it is.
        The rest: as `BatchNorm1d`.

    The result does not depend on who else is in the batch. Choose w on held-out data;
    `doctor.own_weight` makes a model's batch norms into these.

    Raises:
        As `BatchNorm1d`; InputError for a weight outside [0, 1].

    Source: Singh and Shrivastava 2019, "EvalNorm: estimating batch normalization statistics for
    evaluation"; Summers and Dinneen 2020, "Four things everyone should know to improve batch
    normalization", section 3.1 (example weighing at inference).

    >>> import torch
    >>> import normscope
    >>> layer = normscope.EvalNorm1d(3, own_weight=0.1)
    >>> layer(torch.randn(8, 3)).shape
    torch.Size([8, 3])
    """

    ranks = (2, 3)


class EvalNorm2d(_EvalNorm):
    """Batch norm over (N, C, H, W) with each sample's own statistics; see `EvalNorm1d`.

    >>> normscope.EvalNorm2d(3, own_weight=0.1)(torch.randn(8, 3, 5, 5)).shape
    torch.Size([8, 3, 5, 5])
    """

    ranks = (4,)


class EvalNorm3d(_EvalNorm):
    """Batch norm over (N, C, D, H, W) with each sample's own statistics; see `EvalNorm1d`.

    >>> normscope.EvalNorm3d(3, own_weight=0.1)(torch.randn(8, 3, 2, 5, 5)).shape
    torch.Size([8, 3, 2, 5, 5])
    """

    ranks = (5,)
