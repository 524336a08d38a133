"""Change for a while which batches update the running statistics of a model, and when."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normscope.arguments import check_model
from normscope.errors import InputError
from normscope.functional import moments, update_running
from normscope.layers.batch import Ranks, resolved
from normscope.layers.statistics import AS_TORCH, Policy, RunningStatistics, Snapshot
from normscope.moments import Moments

Buffers = dict[str, Tensor | None]


@contextmanager
def guard(
    model: nn.Module,
    *,
    use: Literal["mode", "batch", "stored"] | None = None,
    update: Literal["always", "never", "step"] | None = None,
    skip_nonfinite: bool | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Iterator[None]:
    """Change how all batch norms of a model use and update their statistics, inside a `with`.

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> with normscope.guard(net, update="step", optimizer=optimizer):
    ...     for micro_batch in torch.randn(32, 4).split(8):
    ...         net(micro_batch).square().sum().backward()
    ...     optimizer.step()  # one update, from all micro-batches together
    >>> int(net[1].num_batches_tracked)
    1

    Args:
        model: its layers with running statistics are guarded: normscope's, and torch's
            BatchNorm and SyncBatchNorm with everything derived from them. Others stay.
        use: see `Policy`; None leaves the switch as it is.
        update: as use.
        skip_nonfinite: as use.
        optimizer: with update="step", whose steps commit; None: call `commit(model)` yourself.

    The former policies come back at the end, also after an exception; what was collected and
    not committed is dropped.

    torch's layers stay what they are and compute with torch's kernels. Hooks lend them copies of
    their buffers for each forward and take over what the policy allows, so that one batch per
    step changes the buffers by exactly the bits that an unguarded layer would write. With
    update="step" each forward in training measures its input once more. `skipped_updates`, ()
    int64, is an attribute of each layer inside the `with`. Code under torch.compile runs as it
    was written while they are guarded; layers of normscope (`convert`) stay compiled. Guard a
    model that DistributedDataParallel wraps, or the wrapper: each rank commits its own batches,
    and rank 0's buffers are broadcast as ever.

    Raises:
        InputError: an unknown value, or no batch norm in the model.
    """
    wanted = {"use": use, "update": update, "skip_nonfinite": skip_nonfinite}
    changes = {name: value for name, value in wanted.items() if value is not None}
    before = [(layer, policy_of(layer)) for layer in _layers(model)]
    policies = [replace(policy, **changes) for _, policy in before]  # type: ignore[arg-type]
    with ExitStack() as undo:
        for (layer, former), policy in zip(before, policies, strict=True):
            if isinstance(layer, RunningStatistics):
                undo.callback(layer.set_policy, former)
                layer.set_policy(policy)
            else:
                undo.enter_context(_guarded(layer, policy))
        if any(hasattr(layer, STATE) for layer, _ in before) and "torch._dynamo" in sys.modules:
            # compiled code does not look whether hooks were added
            undo.enter_context(torch.compiler.set_stance("force_eager"))
        if optimizer is not None:
            hook = optimizer.register_step_post_hook(lambda *_: commit(model))
            undo.callback(hook.remove)
        yield


def commit(model: nn.Module) -> None:
    """Update the running statistics of all layers from what they collected (update="step").

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    >>> with normscope.guard(net, update="step"):
    ...     for part in torch.randn(32, 4).split(8):
    ...         y = net(part)
    ...     normscope.commit(net)  # one update, from all four parts
    >>> int(net[1].num_batches_tracked)
    1
    """
    for layer in _layers(model):
        if isinstance(layer, RunningStatistics):
            layer.commit()
        elif hasattr(layer, STATE):
            _commit(layer)


def policy_of(layer: nn.Module) -> Policy:
    """Return the current policy of a layer; that of torch outside `guard`."""
    policy: Policy = getattr(getattr(layer, STATE, layer), "policy", AS_TORCH)
    return policy


def _layers(model: nn.Module) -> list[nn.Module]:
    check_model(model)
    kinds = (RunningStatistics, _BatchNorm)
    found: list[nn.Module] = [m for m in model.modules() if isinstance(m, kinds)]
    if not found:
        raise InputError(
            f"{type(model).__name__} has no batch norm to guard; a layer of torch or normscope "
            "with running statistics is needed"
        )
    return found


STATE = "_guarded"  # the attribute of a guarded layer of torch's


@dataclass
class _State:
    """The policy of a guarded torch layer, and the statistics it has collected.

    Attributes:
        policy: that it follows.
        entered: for each forward that has begun, the layer's buffers and its mode.
        pending: batches that wait for the optimizer's step.
        alone: what torch's kernel made of the buffers with the only batch that waits, and the
            versions of the buffers that it started from.
    """

    policy: Policy
    entered: list[tuple[Buffers, bool]] = field(default_factory=list)
    pending: Moments | None = None
    alone: tuple[Buffers, list[int]] | None = None


@contextmanager
def _guarded(layer: Any, policy: Policy) -> Iterator[None]:
    """Apply `policy` to a layer of torch."""
    outer: _State | None = getattr(layer, STATE, None)
    setattr(layer, STATE, _State(policy))
    if outer is not None:
        try:
            yield
        finally:
            setattr(layer, STATE, replace(outer, pending=None, alone=None))
        return
    device = None if layer.running_mean is None else layer.running_mean.device
    layer.skipped_updates = torch.zeros((), dtype=torch.int64, device=device)
    enter = layer.register_forward_pre_hook(_enter)
    # also where forward raises, as a recomputation does that has seen enough
    leave = layer.register_forward_hook(_leave, with_kwargs=True, always_call=True)
    try:
        yield
    finally:
        if (entered := getattr(layer, STATE).entered) != []:  # Ctrl-C inside a forward
            _restore(layer, *entered[0])
        enter.remove()
        leave.remove()
        delattr(layer, STATE)
        del layer.skipped_updates


def _enter(layer: Any, args: tuple[Any, ...]) -> None:
    """Replace the buffers by copies and set the mode of the policy, before a forward."""
    state: _State = getattr(layer, STATE)
    own = _buffers(layer)
    state.entered.append((own, layer.training))
    lent = {name: None if buffer is None else buffer.clone() for name, buffer in own.items()}
    _restore(layer, lent, _by_batch(state.policy, layer.training))


def _leave(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
    """Restore the buffers and mode after a forward, and update them as the policy says."""
    state: _State = getattr(layer, STATE)
    if not state.entered:  # a hook before ours raised
        return
    (own, training), lent = state.entered.pop(), _buffers(layer)
    _restore(layer, own, training)
    updates = training and _by_batch(state.policy, training) and own.get("running_mean") is not None
    if output is None or not updates or state.policy.update == "never":
        return
    x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    if state.policy.update == "always":
        _take_over(layer, lent, x.numel() // x.shape[1])
    elif torch._C._current_graph_task_id() == -1:  # not the recomputation of a checkpoint
        synced = isinstance(layer, nn.SyncBatchNorm)
        ranks: Ranks = (layer.process_group or "world") if synced else None
        batch = moments(x.detach(), process_group=resolved(ranks))
        if state.pending is None:
            state.pending, state.alone = batch, (lent, _versions(own))
        else:
            state.pending, state.alone = state.pending + batch, None


def _commit(layer: Any) -> None:
    state: _State = getattr(layer, STATE)
    batch, alone, state.pending, state.alone = state.pending, state.alone, None, None
    if batch is None:
        return
    if alone is not None and alone[1] == _versions(_buffers(layer)):
        _take_over(layer, alone[0], int(batch.count))
        return
    layer.skipped_updates += update_running(
        layer.running_mean,
        layer.running_var,
        layer.num_batches_tracked,
        batch,
        layer.momentum,
        skip_nonfinite=state.policy.skip_nonfinite,
    )


@torch.no_grad()
def _take_over(layer: Any, lent: Buffers, count: int) -> None:
    """Write the copies that torch updated into the buffers, by policy without non-finite ones."""
    moves: Tensor | None = None
    if getattr(layer, STATE).policy.skip_nonfinite and count > 1:
        mean, var = lent["running_mean"], lent["running_var"]
        assert mean is not None, "asked before"
        assert var is not None, "made together"
        moves = mean.isfinite() & var.isfinite()
        layer.skipped_updates += (~moves).sum()
    for name, own in _buffers(layer).items():
        new = lent[name]
        if own is not None and new is not None:
            own.copy_(new if moves is None or not own.dim() else torch.where(moves, new, own))


def _by_batch(policy: Policy, training: bool) -> bool:
    return training if policy.use == "mode" else policy.use == "batch"


def _buffers(layer: nn.Module) -> Buffers:
    return {name: layer._buffers[name] for name in Snapshot.NAMES if name in layer._buffers}


def _restore(layer: nn.Module, buffers: Buffers, training: bool) -> None:
    layer._buffers.update(buffers)
    layer.training = training


def _versions(buffers: Buffers) -> list[int]:
    return [buffer._version for buffer in buffers.values() if buffer is not None]
