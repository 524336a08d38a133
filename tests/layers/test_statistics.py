"""The three switches of the running statistics, and the way back."""

import copy
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normscope
from normscope.errors import InputError
from normscope.layers.guarding import policy_of


class Derived(nn.BatchNorm1d):
    """Somebody's own layer, with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


def network(kind: str = "ours") -> nn.Sequential:
    norms: Any = (normscope.BatchNorm1d(4), normscope.GhostBatchNorm1d(4, 2))
    if kind == "torch":
        norms = (nn.BatchNorm1d(4), nn.SyncBatchNorm(4))
    if kind == "derived":
        norms = (Derived(4), Derived(4, momentum=None))
    return nn.Sequential(nn.Linear(3, 4), norms[0], nn.ReLU(), norms[1]).double()


KINDS = pytest.mark.parametrize("kind", ["ours", "torch", "derived"])
LAYERS = pytest.mark.parametrize(
    "cls", [normscope.BatchNorm1d, nn.BatchNorm1d, Derived], ids=["ours", "torch", "derived"]
)


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.clone()
        for name, value in model.named_buffers()
        if not name.endswith("skipped_updates")
    }


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name])


@KINDS
def test_update_never_leaves_the_statistics_and_survives_train(kind: str) -> None:
    model = network(kind)
    before = buffers(model)
    with normscope.guard(model, update="never"):
        model.eval().train()
        y = model(torch.randn(6, 3).double())
    assert_same(buffers(model), before)
    assert y.mean().abs() < 1e-6  # the batch's own statistics were used all the same
    model(torch.randn(6, 3).double())
    assert int(model[1].num_batches_tracked) == 1


@KINDS
def test_use_stored_and_use_batch_whatever_the_mode(kind: str) -> None:
    model = network(kind)
    for _ in range(3):
        model(torch.randn(8, 3).double() * 3)
    x = torch.randn(6, 3).double()
    with normscope.guard(model, use="stored", update="never"):
        stored = model.train()(x)
    torch.testing.assert_close(stored, model.eval()(x))
    with normscope.guard(model, use="batch", update="never"):
        batch = model.eval()(x)
        model.train()
        before = buffers(model)
        torch.testing.assert_close(model[1](model[0](x)).mean(0), torch.zeros(4).double())
    assert not torch.allclose(batch, stored)
    assert_same(buffers(model), before)


class Recomputed(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.body, x, use_reentrant=False)
        return out


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None])
@LAYERS
def test_accumulation_and_checkpoints_count_as_one_plain_step(
    cls: Any, momentum: Any, recomputed: bool
) -> None:
    layer = cls(3, momentum=momentum).double()
    plain = copy.deepcopy(layer)
    x = torch.randn(10, 3, dtype=torch.double, requires_grad=True)
    model = nn.Sequential(Recomputed(layer) if recomputed else layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        plain(x)
        with normscope.guard(model, update="step", optimizer=optimizer):
            for micro in (x[:3], x[3:5], x[5:]):
                (model(micro) ** 3).sum().backward()
            optimizer.step()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(layer, name), getattr(plain, name))


@KINDS
def test_uncommitted_batches_are_dropped_and_commit_works_by_hand(kind: str) -> None:
    model = network(kind)
    before = buffers(model)
    with normscope.guard(model, update="step"):
        model(torch.randn(6, 3).double())
    assert_same(buffers(model), before)
    with normscope.guard(model, update="step"):
        model(torch.randn(6, 3).double())
        normscope.commit(model)
        normscope.commit(model)
    assert int(model[1].num_batches_tracked) == 1


@KINDS
def test_policies_come_back_after_an_exception(kind: str) -> None:
    model = network(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [set(vars(layer)) | {"skipped_updates"} for layer in model]
    with normscope.guard(model[1], update="never"):

        def fails() -> None:
            with normscope.guard(model, update="step", use="stored", optimizer=optimizer):
                assert policy_of(model[1]) == normscope.Policy("stored", "step")
                raise RuntimeError("boom")

        with pytest.raises(RuntimeError, match="boom"):
            fails()
        assert policy_of(model[1]) == normscope.Policy(update="never")
        assert policy_of(model[3]) == normscope.Policy()
        model(torch.randn(6, 3).double())
        assert int(model[1].num_batches_tracked) == 0
        assert int(model[3].num_batches_tracked) == 1
    assert policy_of(model[1]) == normscope.Policy()
    assert not optimizer._optimizer_step_post_hooks
    for layer, names in zip(model, before, strict=True):
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks
        assert set(vars(layer)) - names <= {"policy", "pending"}


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("update", ["always", "step"])
@LAYERS
def test_skip_nonfinite_keeps_one_bad_value_out(cls: Any, update: Any, bad: float) -> None:
    layer = cls(3)
    x = torch.randn(6, 3)
    x[2, 1] = bad
    with normscope.guard(layer, skip_nonfinite=True, update=update):
        y = layer(x)
        normscope.commit(layer)
        assert not y[:, 1].isfinite().any()  # never hidden in the output
        assert layer.running_mean.isfinite().all()
        assert layer.running_mean[[0, 2]].abs().min() > 0
        assert layer.running_mean[1] == 0
        assert int(layer.skipped_updates) == 1
    assert "skipped_updates" not in layer.state_dict()


def test_snapshot_rolls_back_by_hand_and_on_exceptions() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), normscope.BatchNorm1d(3))
    before = buffers(model)
    pointers = [b.data_ptr() for b in model.buffers()]
    taken = normscope.snapshot(model)
    model(torch.randn(5, 3))
    taken.rollback()
    assert_same(buffers(model), before)
    with pytest.raises(ValueError, match="expected 2D"), normscope.snapshot(model):
        nn.Sequential(model, nn.Unflatten(1, (3, 1, 1)), model)(torch.randn(5, 3))
    assert_same(buffers(model), before)
    assert [b.data_ptr() for b in model.buffers()] == pointers
    with normscope.snapshot(model):
        model(torch.randn(5, 3))
    assert int(model[0].num_batches_tracked) == 1


def test_bad_values_and_models_without_batch_norms() -> None:
    refused = pytest.raises(InputError, match="update is 'sometimes'; it can be 'always'")
    with refused, normscope.guard(network(), update="sometimes"):
        pass
    refused = pytest.raises(InputError, match="Linear has no batch norm to guard")
    with refused, normscope.guard(nn.Linear(2, 2), update="never"):
        pass


@KINDS
def test_guarded_layers_copy_and_pickle(kind: str) -> None:
    model = network(kind)
    with normscope.guard(model, update="step"):
        model(torch.randn(6, 3).double())
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            normscope.commit(twin)
            assert int(twin[1].num_batches_tracked) == 1


def small(checkpointed: bool) -> nn.Sequential:
    torch.manual_seed(3)
    body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))
    return nn.Sequential(Recomputed(body) if checkpointed else nn.Sequential(body), nn.Linear(4, 2))


def trained(model: nn.Module, **how: Any) -> list[Tensor]:
    """The buffers after some steps of Adam."""
    generator = torch.Generator().manual_seed(4)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with normscope.guard(model, optimizer=optimizer, **how) if how else nullcontext():
        for _ in range(7):
            x = torch.randn(9, 3, generator=generator, requires_grad=True)
            optimizer.zero_grad()
            (model(x) ** 2).sum().backward()
            optimizer.step()
    return list(model.buffers())


def test_torch_layers_end_with_the_same_bits_with_and_without_checkpoints() -> None:
    plain = trained(small(False))
    twice = trained(small(True))
    assert int(twice[2]) == 2 * int(plain[2])
    for checkpointed in (False, True):
        guarded = trained(small(checkpointed), update="step")
        assert all(torch.equal(a, b) for a, b in zip(plain, guarded, strict=True))
    always = trained(small(False), update="always", skip_nonfinite=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, always, strict=True))


def test_two_forwards_before_one_backward_of_torch_layers() -> None:
    layer = nn.BatchNorm1d(3).double()
    for how in ({"use": "stored"}, {"update": "always"}, {"use": "batch"}):
        with normscope.guard(layer, **how):
            loss = sum((layer(torch.randn(5, 3).double()) ** 3).sum() for _ in range(2))
        loss.backward()


def test_buffers_that_change_while_a_batch_waits() -> None:
    ours, torchs = normscope.BatchNorm1d(3), nn.BatchNorm1d(3)
    x = torch.randn(9, 3)
    for layer in (ours, torchs):
        with normscope.guard(layer, update="step"):
            layer(x)
            layer.running_mean.fill_(5)  # as a broadcast or a load_state_dict does
            normscope.commit(layer)
    assert_same(buffers(torchs), buffers(ours))
    assert torchs.running_mean.min() > 3


class Fails(nn.BatchNorm1d):
    problem: Any = ValueError

    def forward(self, input: Tensor) -> Tensor:
        super().forward(input)
        return fails(self)


def fails(layer: Any, *_: object) -> Tensor:
    raise layer.problem


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("hook", [False, True])
def test_a_forward_that_fails_leaves_the_buffers_in_place(hook: bool, problem: Any) -> None:
    layer = nn.BatchNorm1d(3) if hook else Fails(3)
    layer.problem = problem
    if hook:
        layer.register_forward_pre_hook(fails)
    own, names = [id(b) for b in layer.buffers()], set(vars(layer))
    with pytest.raises(problem), normscope.guard(layer, use="stored"):
        layer(torch.randn(6, 3))
    assert [id(b) for b in layer.buffers()] == own
    assert layer.training
    assert set(vars(layer)) == names
    assert len(layer._forward_pre_hooks) == hook


def test_compiled_code_follows_the_guard_of_torch_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(6, 3)
    compiled(x)
    with normscope.guard(compiled, update="never"):
        compiled(x)
    assert int(model[1].num_batches_tracked) == 1
    compiled(x)
    assert int(model[1].num_batches_tracked) == 2


def test_the_wrapper_of_distributed_training_is_guarded(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(small(True))
        guarded = trained(wrapped, update="step")
    finally:
        dist.destroy_process_group()
    assert all(torch.equal(a, b) for a, b in zip(trained(small(False)), guarded, strict=True))


def test_a_guarded_torch_layer_is_not_converted() -> None:
    model = network("torch")
    with (
        normscope.guard(model, update="never"),
        pytest.raises(normscope.ModelError, match="it follows Policy.*end the guard"),
    ):
        normscope.convert(model, "batch", dims=1)
    normscope.convert(model, "batch", dims=1)
