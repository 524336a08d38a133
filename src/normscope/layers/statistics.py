"""Running statistics: which batches update them, when, and how to undo an update."""

from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normscope.arguments import check_model
from normscope.errors import InputError
from normscope.functional import update_running
from normscope.moments import Moments


@dataclass(frozen=True)
class Policy:
    """Three switches of a layer's statistics; none of them moves with `.train()` or `.eval()`.

    Attributes:
        use: "mode" (batch in training, stored in eval, as torch), "batch", or "stored".
        update: "always" (each training forward, as torch), "never", or "step": batches are
            collected and merged into one update when the optimizer steps, so that gradient
            accumulation and the recomputation of activation checkpoints count once.
        skip_nonfinite: leave a channel's running statistics alone where the batch is not finite.

    >>> import normscope
    >>> layer = normscope.BatchNorm1d(3)
    >>> layer.policy = normscope.Policy(update="never")
    >>> layer.policy.use
    'mode'
    """

    use: Literal["mode", "batch", "stored"] = "mode"
    update: Literal["always", "never", "step"] = "always"
    skip_nonfinite: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("use", ("mode", "batch", "stored")),
            ("update", ("always", "never", "step")),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{name} is {getattr(self, name)!r}; it can be {', '.join(map(repr, allowed))}"
                )


AS_TORCH = Policy()


class RunningStatistics(nn.Module):
    """Base of layers with running statistics: the policy of their updates.

    Attributes:
        policy: see `Policy`; set it with `set_policy`, or for a while with `guard`.
        skipped_updates: () int64, channel updates left out as not finite; there once guarded.
    """

    # class-level defaults, so that a torch layer becomes ours by changing its __class__
    policy: Policy = AS_TORCH
    pending: Moments | None = None
    skipped_updates: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    momentum: float | None
    track_running_stats: bool = True

    def set_policy(self, policy: Policy) -> Self:
        """Follow `policy` from now on; collected batches of an older one are dropped."""
        self.policy = policy
        self.pending = None
        if policy != AS_TORCH and not hasattr(self, "skipped_updates"):
            device = None if self.running_mean is None else self.running_mean.device
            counter = torch.zeros((), dtype=torch.int64, device=device)
            self.register_buffer("skipped_updates", counter, persistent=False)
        return self

    def stored(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the mean and variance that a forward is given; None where it tracks none."""
        used = self.track_running_stats or not self.training
        return (self.running_mean, self.running_var) if used else (None, None)

    def normalizes_by_batch(self) -> bool:
        """Return whether the next forward takes its statistics from the batch."""
        return self.training if self.policy.use == "mode" else self.policy.use == "batch"

    def observe(self, batch: Moments) -> None:
        """Update or collect a training batch's statistics as the policy says."""
        if not self.training or self.policy.update == "never" or self.running_mean is None:
            return
        if self.policy.update == "always":
            self._update(batch)
        elif torch._C._current_graph_task_id() == -1:  # not the recomputation of a checkpoint
            self.pending = batch if self.pending is None else self.pending + batch

    def commit(self) -> None:
        """Make one update from all that was collected since the last one (update="step")."""
        if self.pending is not None:
            collected, self.pending = self.pending, None
            self._update(collected)

    def _update(self, batch: Moments) -> None:
        assert self.running_mean is not None, "asked before"
        assert self.running_var is not None, "made together"
        skipped = update_running(
            self.running_mean,
            self.running_var,
            self.num_batches_tracked,
            batch,
            self.momentum,
            skip_nonfinite=self.policy.skip_nonfinite,
            count_empty=False,
        )
        if hasattr(self, "skipped_updates"):
            self.skipped_updates.add_(skipped)


@torch.no_grad()
def merge_ranks(model: nn.Module, process_group: dist.ProcessGroup | None = None) -> None:
    """Merge the running statistics of all ranks, on every rank; call it on every rank.

        mean = sum_r w_r mean_r,  var = sum_r w_r (var_r + (mean_r - mean)^2),  w_r ~ batches seen

    For training without synchronised layers: once per epoch instead of once per step. By the law
    of total variance the result is that of the joined data; an average of the variances would
    leave out what lies between the ranks. torch's own layers take part. Ranks that have seen no
    batch do not count; the counters end as their sum.

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    >>> y = net(torch.randn(32, 4))
    >>> from torch import distributed
    >>> store = distributed.HashStore()
    >>> distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    >>> normscope.merge_ranks(net)  # there is one rank: it stays as it is
    >>> int(net[1].num_batches_tracked)
    1
    >>> distributed.destroy_process_group()
    """
    for module in model.modules():
        names = ("running_mean", "running_var", "num_batches_tracked")
        mean, var, seen = (getattr(module, name, None) for name in names)
        if mean is None or var is None or seen is None:
            continue
        weight = seen.double()
        local = Moments(weight, mean.double(), var.double() * weight.unsqueeze(-1))
        total = local.all_reduce(process_group)
        known = (total.count > 0).unsqueeze(-1)
        mean.copy_(torch.where(known, total.mean, mean.double()))
        var.copy_(torch.where(known, total.var(correction=0), var.double()))
        seen.copy_(total.count)


def reset_statistics(layer: RunningStatistics) -> None:
    """Set mean 0, variance 1, nothing tracked; nothing where a layer keeps none."""
    if layer.running_mean is not None:
        assert layer.running_var is not None, "made together"
        assert layer.num_batches_tracked is not None, "made together"
        layer.running_mean.zero_()
        layer.running_var.fill_(1)
        layer.num_batches_tracked.zero_()


def mean_of_groups(table: Tensor) -> Tensor:
    """Return the mean over groups of a weight or bias, (K, C) to (C,); what all share stays."""
    return table.double().mean(0).to(table.dtype) if table.dim() == 2 else table


def pooled(layer: RunningStatistics) -> dict[str, Tensor]:
    """Return the five keys of a plain batch norm with the statistics of all groups pooled.

    Statistics by the law of total variance, each group weighted by the batches it was seen in
    (equally where none was); weight and bias are plain means over groups.
    """
    state: dict[str, Tensor] = {}
    for name in ("weight", "bias"):
        table = getattr(layer, name)
        if table is not None:
            state[name] = mean_of_groups(table).detach()
    if layer.running_mean is not None:
        assert layer.running_var is not None, "made together"
        assert layer.num_batches_tracked is not None, "made together"
        mean, var, seen = layer.running_mean, layer.running_var, layer.num_batches_tracked
        if mean.dim() == 2:
            share = torch.where((seen > 0).any(), seen, 1).double()
            sets = Moments(share, mean.double(), var.double() * share.unsqueeze(1))
            total = sets.pool()
            mean, var = total.mean.to(mean.dtype), total.var(correction=0).to(var.dtype)
            seen = seen.max()
        state |= {"running_mean": mean, "running_var": var, "num_batches_tracked": seen}
    return state


class Snapshot:
    """A copy of the normalisation buffers of a model, which can be restored.

        before = normscope.snapshot(model)
        ...
        before.rollback()

    Holds copies of running_mean, running_var and num_batches_tracked of every module that has
    them, torch's own layers included. As a context manager it rolls back on an exception.
    """

    NAMES = ("running_mean", "running_var", "num_batches_tracked")

    def __init__(self, model: nn.Module) -> None:
        check_model(model)
        self._kept = [
            (buffer, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if name in self.NAMES
        ]

    def rollback(self) -> None:
        """Write the numbers back, in place."""
        with torch.no_grad():
            for buffer, kept in self._kept:
                buffer.copy_(kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.rollback()


def snapshot(model: nn.Module) -> Snapshot:
    """Copy a model's normalisation buffers; see `Snapshot`.

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    >>> before = normscope.snapshot(net)
    >>> y = net(torch.randn(32, 4) + 5)
    >>> before.rollback()
    >>> float(net[1].running_mean.abs().max())
    0.0
    """
    return Snapshot(model)
