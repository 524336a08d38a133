"""Batch renormalisation: the batch's statistics, corrected towards the running ones."""

import torch
from torch import Tensor

from normscope.arguments import Activation
from normscope.functional import batch_norm, moments
from normscope.kernels.autograd import held
from normscope.layers.batch import Device, Normalizer, Ranks, check_rank, resolved
from normscope.layers.tracing import is_traced, one_step


class _Renorm(Normalizer):
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
        r_max: float = 3.0,
        d_max: float = 5.0,
        warm_up: int = 0,
        ramp: int = 1000,
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
        if r_max < 1 or d_max < 0 or warm_up < 0 or ramp < 0:
            raise ValueError(
                f"r_max={r_max}, d_max={d_max}, warm_up={warm_up}, ramp={ramp}: r_max is at "
                "least 1, the others at least 0"
            )
        if not self.track_running_stats:
            raise ValueError("batch renorm corrects towards running statistics; it must track them")
        self.r_max, self.d_max, self.warm_up, self.ramp = r_max, d_max, warm_up, ramp

    def limits(self) -> tuple[Tensor, Tensor]:
        """Return r_max and d_max: (1, 0) for `warm_up` batches, then in a line over `ramp`."""
        assert self.num_batches_tracked is not None, "always tracked"
        past = (self.num_batches_tracked - self.warm_up).double()
        share = (past / self.ramp).clamp(0, 1) if self.ramp else (past >= 0).double()
        return 1 + (self.r_max - 1) * share, self.d_max * share

    def forward(
        self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return xhat * r + d, then weight and bias; see the class."""
        if is_traced(input):
            return one_step(self, input, residual, mask)
        if not self.normalizes_by_batch():
            return super().forward(input, residual, mask)
        check_rank(input, self.ranks)
        assert self.running_mean is not None, "always tracked"
        assert self.running_var is not None, "always tracked"
        group = resolved(self.process_group)
        with torch.no_grad():
            batch = moments(input, mask=mask, process_group=group).detach()
            mean, std = batch.mean[0], (batch.var(correction=0)[0] + self.eps).sqrt()
            running_std = (self.running_var.double() + self.eps).sqrt()
            r_max, d_max = self.limits()
            r = (std / running_std).nan_to_num(1.0).clamp(1 / r_max, r_max)
            d = ((mean - self.running_mean) / running_std).clamp(-d_max, d_max)
            r, d = held(r, d)
        weight, bias = (self.weight, self.bias) if self.affine else (torch.ones_like(r), None)
        # r and d are constants for the gradient: they go into the affine map
        dtype = self.running_mean.dtype
        y = batch_norm(
            input,
            weight=(weight * r).to(dtype),
            bias=(weight * d if bias is None else bias + weight * d).to(dtype),
            training=True,
            eps=self.eps,
            mask=mask,
            act=self.fused_act,
            residual=residual,
            process_group=group,
        )
        self.observe(batch)
        return y

    def extra_repr(self) -> str:
        """Show as batch norm does, with the limits."""
        return (
            f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}, "
            f"warm_up={self.warm_up}, ramp={self.ramp}"
        )


class BatchRenorm1d(_Renorm):
    """Batch renormalisation over (N, C) or (N, C, L).

        y = ((x - mean) / sqrt(var + eps) * r + d) * weight + bias
        r = clip(std / running_std, 1/r_max, r_max),  d = clip((mean - running_mean) / running_std,
        -d_max, d_max)

    r and d are constants for the gradient. Where no limit binds, training computes with the
    running statistics, as eval does, so small or skewed batches do not part the two. In eval()
    it is batch norm.

    Args:
        num_features: C.
        r_max: largest correction of the scale, at least 1.
        d_max: largest correction of the shift, in running standard deviations.
        warm_up: batches with r = 1 and d = 0, that is plain batch norm.
        ramp: batches over which the limits then grow in a line from (1, 0) to (r_max, d_max).
        The rest: as `BatchNorm1d`.

    State: the five keys of batch norm; the schedule follows num_batches_tracked. The stored
    variance is unbiased, as batch norm's (the paper keeps a moving standard deviation).

    Raises:
        As `BatchNorm1d`; ValueError also for limits out of range.

    Source: Ioffe 2017, "Batch renormalization", algorithm 1.

    >>> import torch
    >>> import normscope
    >>> layer = normscope.BatchRenorm1d(3, r_max=2.0)
    >>> layer(torch.randn(8, 3)).shape
    torch.Size([8, 3])
    """

    ranks = (2, 3)


class BatchRenorm2d(_Renorm):
    """Batch renormalisation over (N, C, H, W); see `BatchRenorm1d`.

    >>> normscope.BatchRenorm2d(3, r_max=2.0)(torch.randn(8, 3, 5, 5)).shape
    torch.Size([8, 3, 5, 5])
    """

    ranks = (4,)


class BatchRenorm3d(_Renorm):
    """Batch renormalisation over (N, C, D, H, W); see `BatchRenorm1d`.

    >>> normscope.BatchRenorm3d(3, r_max=2.0)(torch.randn(8, 3, 2, 5, 5)).shape
    torch.Size([8, 3, 2, 5, 5])
    """

    ranks = (5,)
