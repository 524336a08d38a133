"""Drop-in batch norm, `torch.nn.BatchNorm*d` on normscope's operator, and ghost batch norm."""

from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normscope.arguments import Activation, check_settings, listed
from normscope.errors import InputError
from normscope.functional import batch_norm, plain_call
from normscope.kernels.cpu import ACTS
from normscope.kernels.reference import ACTIVATIONS
from normscope.layers.statistics import AS_TORCH, RunningStatistics
from normscope.layers.tracing import is_traced, one_step

Device = torch.device | str | int | None
Ranks = dist.ProcessGroup | Literal["world"] | None


class Normalizer(RunningStatistics, _BatchNorm):
    """Base of all layers with the five keys and the arguments of torch's batch norm."""

    ranks: ClassVar[tuple[int, ...]]
    # class-level defaults, so that a torch layer becomes ours by changing its __class__
    act: Activation | None = None
    process_group: Ranks = None
    ghost_size: int | None = None
    counts_empty: ClassVar[bool] = True  # in num_batches_tracked, as torch does

    def __init__(
        self,
        num_features: int,
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
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:  # torch before 2.13 has no bias=
            self.register_parameter("bias", None)
        check_settings(self.eps, self.momentum)
        if act is not None and act not in ACTIVATIONS:
            raise ValueError(f"act is {act!r}; it can be None, {listed(ACTIVATIONS)}")
        self.act = act
        self.process_group = process_group

    @property
    def fused_act(self) -> Activation | None:
        """`act`; a derived class that activates in a module of its own has None here."""
        return self.act

    def forward(
        self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return act(batch_norm(input) + residual), masked values as no data; see `functional`."""
        return self.activated(input, residual, mask, self.fused_act)

    def activated(
        self,
        input: Tensor,
        residual: Tensor | None,
        mask: Tensor | None,
        act: Activation | None,
    ) -> Tensor:
        """Run `forward` with an activation that the caller names."""
        policy, training = self.policy, self.training
        plain = policy is AS_TORCH or policy == AS_TORCH
        uses_buffers = self.track_running_stats or not training
        # small batches take less time in the loops than in what leads to them
        call = plain_call(input) if plain and uses_buffers and mask is None else None
        if call is not None and self.ghost_size is None and self.process_group is None:
            tables, buffers = self._parameters, self._buffers
            # not computed from others
            own = "weight" in tables and "bias" in tables and "running_mean" in buffers
            if own and input.dim() in self.ranks and (self.counts_empty or input.shape[0]):
                mean = buffers["running_mean"]
                y = call(
                    input, mean, buffers["running_var"], tables["weight"], tables["bias"],
                    training or mean is None, training and mean is not None, self.momentum,
                    self.eps, buffers.get("num_batches_tracked") if training else None, None, 1,
                    None, ACTS.get(act, -1), residual, 2,
                )  # fmt: skip
                if y is not None:
                    return y
        if is_traced(input):
            return one_step(self, input, residual, mask)
        counts = self.counts_empty or input.shape[0]
        check_rank(input, self.ranks)
        return batch_norm(
            input,
            *self.stored(),
            self.weight,
            self.bias,
            training=self.normalizes_by_batch(),
            momentum=self.momentum,
            eps=self.eps,
            num_batches_tracked=self.num_batches_tracked if training and counts else None,
            mask=mask,
            act=act,
            residual=residual,
            process_group=resolved(self.process_group) if training else None,
            on_moments=None if plain else self.observe,
            **(self._chunks(input) if training else {}),
        )

    def _chunks(self, x: Tensor) -> dict[str, Any]:
        """Return the groups of chunks of `ghost_size`; what remains joins the last chunk."""
        if self.ghost_size is None or x.shape[0] < 2 * self.ghost_size:
            return {}
        num_groups = x.shape[0] // self.ghost_size
        order = torch.arange(x.shape[0], device=x.device) // self.ghost_size
        return {"groups": order.clamp(max=num_groups - 1), "num_groups": num_groups}

    def extra_repr(self) -> str:
        """Describe the layer as torch does, with the arguments that torch does not have."""
        more = {
            "act": self.fused_act,
            "process_group": self.process_group,
            "ghost_size": self.ghost_size,
        }
        shown = [f"{name}={value!r}" for name, value in more.items() if value is not None]
        return ", ".join([super().extra_repr(), *shown])


def check_rank(x: Tensor, ranks: tuple[int, ...]) -> None:
    """Raise torch's ValueError unless x has one of the allowed numbers of dimensions."""
    if x.dim() not in ranks:
        allowed = " or ".join(f"{rank}D" for rank in ranks)
        raise ValueError(f"expected {allowed} input (got {x.dim()}D input)")


def resolved(process_group: Ranks) -> dist.ProcessGroup | None:
    """Return the process group to synchronise with; None for a single process."""
    if process_group is None or not dist.is_available() or not dist.is_initialized():
        return None
    group = dist.group.WORLD if process_group == "world" else process_group
    return group if dist.get_world_size(group) > 1 else None


class BatchNorm1d(Normalizer, nn.BatchNorm1d):
    """Batch norm over (N, C) or (N, C, L), a drop-in for `torch.nn.BatchNorm1d`.

        y = (x - mean) / sqrt(var + eps) * weight + bias

    Same signature, parameters, buffers, state_dict, modes and errors as torch's layer, of which
    it is a subclass; statistics are accumulated in float64, centred, in every memory format.
    The biased variance normalises, the unbiased one is stored in running_var.

    Args:
        num_features: C.
        eps, momentum, affine, track_running_stats, device, dtype, bias: as torch's.
        act: "relu", "leaky_relu" or "silu", applied to the result; None: no activation.
        process_group: ranks whose batches are normalised together in training, on any backend,
            gloo on CPU included; "world" for all. None: this process alone. Without
            torch.distributed, or alone, it changes nothing.

    forward(input, residual=None, mask=None): residual is shaped as input and added before act;
    mask, (N,) or (N, L) bool, is True where a value counts: what is masked enters no statistic
    and leaves as zero.

    An empty batch leaves the running statistics as they are. NaN and infinities reach the
    running statistics of their channel, as in torch; `normscope.guard` can keep them out.

    Raises:
        ValueError: wrong rank; one value per channel in training; eps <= 0 in training.
        RuntimeError: wrong number of channels or mixed dtypes.

    Source: Ioffe and Szegedy 2015, "Batch Normalization", algorithms 1 and 2.

    >>> import torch
    >>> import normscope
    >>> layer = normscope.BatchNorm1d(3, act="relu")
    >>> layer(torch.randn(8, 3)).shape
    torch.Size([8, 3])
    """

    ranks = (2, 3)


class BatchNorm2d(Normalizer, nn.BatchNorm2d):
    """Batch norm over (N, C, H, W), a drop-in for `torch.nn.BatchNorm2d`; see `BatchNorm1d`.

    >>> normscope.BatchNorm2d(3, act="relu")(torch.randn(8, 3, 5, 5)).shape
    torch.Size([8, 3, 5, 5])
    """

    ranks = (4,)


class BatchNorm3d(Normalizer, nn.BatchNorm3d):
    """Batch norm over (N, C, D, H, W), a drop-in for `torch.nn.BatchNorm3d`; see `BatchNorm1d`.

    >>> normscope.BatchNorm3d(3, act="relu")(torch.randn(8, 3, 2, 5, 5)).shape
    torch.Size([8, 3, 2, 5, 5])
    """

    ranks = (5,)


class _Ghost(Normalizer):
    counts_empty = False

    def __init__(
        self,
        num_features: int,
        ghost_size: int,
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
        if ghost_size < 1:
            raise InputError(f"ghost_size is {ghost_size}; at least 1 sample per chunk is needed")
        if self.process_group is not None:
            raise InputError(
                "a ghost batch norm's chunks live on one rank; leave process_group out, or use "
                "BatchNorm to normalise over ranks"
            )
        self.ghost_size = ghost_size


class GhostBatchNorm1d(_Ghost):
    """Batch norm over (N, C) or (N, C, L) in which each chunk of a batch is its own batch.

        y = (x - mean_g) / sqrt(var_g + eps) * weight + bias,   g = the sample's chunk

    For the noise of small batches at the speed of large ones. All chunks are one call. What
    remains of a batch joins the last chunk; a batch smaller than two chunks is one chunk. The
    running statistics get one update per batch, from all chunks together (law of total
    variance). In eval() it is plain batch norm, for any number of samples, and its checkpoint is
    that of plain batch norm.

    Args:
        num_features: C.
        ghost_size: samples per chunk.
        The rest: as `BatchNorm1d`.

    Chunks of one value per channel are filled up with running values; see `functional`.

    Raises:
        As `BatchNorm1d`.

    Source: Hoffer, Hubara, Soudry 2017, "Train longer, generalize better", algorithm 1.

    >>> import torch
    >>> import normscope
    >>> layer = normscope.GhostBatchNorm1d(3, ghost_size=4)
    >>> layer(torch.randn(8, 3)).shape
    torch.Size([8, 3])
    """

    ranks = (2, 3)


class GhostBatchNorm2d(_Ghost):
    """Ghost batch norm over (N, C, H, W); see `GhostBatchNorm1d`.

    >>> normscope.GhostBatchNorm2d(3, ghost_size=4)(torch.randn(8, 3, 5, 5)).shape
    torch.Size([8, 3, 5, 5])
    """

    ranks = (4,)


class GhostBatchNorm3d(_Ghost):
    """Ghost batch norm over (N, C, D, H, W); see `GhostBatchNorm1d`.

    >>> normscope.GhostBatchNorm3d(3, ghost_size=4)(torch.randn(8, 3, 2, 5, 5)).shape
    torch.Size([8, 3, 2, 5, 5])
    """

    ranks = (5,)
