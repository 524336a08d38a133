"""Drop-in batch norm: `torch.nn.BatchNorm*d` on normscope's operator."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normscope.functional import ACTIVATIONS, Activation, batch_norm


class _DropIn(_BatchNorm):
    """What the three ranks share; each also inherits torch's class of its own name."""

    ranks: ClassVar[tuple[int, ...]]
    # a class-level default, so that a torch layer becomes ours by changing its __class__
    act: Activation | None = None

    def __init__(self, *args: Any, act: Activation | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if act is not None and act not in ACTIVATIONS:
            raise ValueError(f"act is {act!r}; it can be None, {', '.join(map(repr, ACTIVATIONS))}")
        self.act = act

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(batch_norm(input) + residual); see `functional.batch_norm`."""
        return normalize_and_track(
            input,
            residual,
            self.running_mean,
            self.running_var,
            self.num_batches_tracked,
            self.weight,
            self.bias,
            training=self.training,
            tracks=self.track_running_stats,
            momentum=self.momentum,
            eps=self.eps,
            act=self.act,
            ranks=self.ranks,
        )

    def extra_repr(self) -> str:
        """As torch's, with the activation where there is one."""
        shown = super().extra_repr()
        return shown if self.act is None else f"{shown}, act={self.act!r}"


@torch.fx.wrap  # symbolic tracing keeps this whole: it asks questions of real tensors
def normalize_and_track(
    x: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    training: bool,
    tracks: bool,
    momentum: float | None,
    eps: float,
    act: Activation | None,
    ranks: tuple[int, ...],
) -> Tensor:
    """One forward of a layer: the rank, and which statistics its mode uses and updates."""
    check_rank(x, ranks)
    uses_buffers = tracks or not training
    return batch_norm(
        x,
        running_mean if uses_buffers else None,
        running_var if uses_buffers else None,
        weight,
        bias,
        training,
        momentum,
        eps,
        num_batches_tracked=num_batches_tracked,
        act=act,
        residual=residual,
    )


def check_rank(x: Tensor, ranks: tuple[int, ...]) -> None:
    """Raise torch's ValueError unless x has one of the allowed numbers of dimensions."""
    if x.dim() not in ranks:
        allowed = " or ".join(f"{rank}D" for rank in ranks)
        raise ValueError(f"expected {allowed} input (got {x.dim()}D input)")


class BatchNorm1d(_DropIn, nn.BatchNorm1d):
    """Batch norm over (N, C) or (N, C, L), a drop-in for `torch.nn.BatchNorm1d`.

        y = (x - mean) / sqrt(var + eps) * weight + bias

    Same signature, parameters, buffers, state_dict, modes and errors as torch's layer, of which
    it is a subclass; statistics are accumulated in float64, centred, in every memory format.
    The biased variance normalises, the unbiased one is stored in running_var.

    Args:
        num_features: C.
        eps, momentum, affine, track_running_stats, device, dtype, bias: as torch's.
        act: "relu", "leaky_relu" or "silu", applied to the result; None: no activation.

    forward(input, residual=None): residual is shaped as input and added before act.

    An empty batch leaves the running statistics as they are. NaN and infinities reach the
    running statistics of their channel, as in torch.

    Raises:
        ValueError: wrong rank; one value per channel in training; eps <= 0 in training.
        RuntimeError: wrong number of channels or mixed dtypes.

    Source: Ioffe and Szegedy 2015, "Batch Normalization", algorithms 1 and 2.
    """

    ranks = (2, 3)


class BatchNorm2d(_DropIn, nn.BatchNorm2d):
    """Batch norm over (N, C, H, W), a drop-in for `torch.nn.BatchNorm2d`; see `BatchNorm1d`."""

    ranks = (4,)


class BatchNorm3d(_DropIn, nn.BatchNorm3d):
    """Batch norm over (N, C, D, H, W), a drop-in for `torch.nn.BatchNorm3d`; see `BatchNorm1d`."""

    ranks = (5,)
