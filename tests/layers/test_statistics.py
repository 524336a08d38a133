"""The three switches of the running statistics, and the way back."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normscope
from normscope.errors import InputError


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(3, 4), normscope.BatchNorm1d(4), nn.ReLU(), normscope.GhostBatchNorm1d(4, 2)
    ).double()


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


def test_update_never_leaves_the_statistics_and_survives_train() -> None:
    model = network()
    before = buffers(model)
    with normscope.guard(model, update="never"):
        model.eval().train()
        y = model(torch.randn(6, 3).double())
    assert_same(buffers(model), before)
    assert y.mean().abs() < 1e-6  # the batch's own statistics were used all the same
    model(torch.randn(6, 3).double())
    assert int(model[1].num_batches_tracked) == 1


def test_use_stored_and_use_batch_whatever_the_mode() -> None:
    model = network()
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
def test_accumulation_and_checkpoints_count_as_one_plain_step(
    momentum: Any, recomputed: bool
) -> None:
    layer = normscope.BatchNorm1d(3, momentum=momentum).double()
    plain = copy.deepcopy(layer)
    x = torch.randn(10, 3, dtype=torch.double, requires_grad=True)
    model = nn.Sequential(Recomputed(layer) if recomputed else layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        plain(x)
        with normscope.guard(model, update="step", optimizer=optimizer):
            for micro in (x[:3], x[3:4].expand(2, 3)[:1].repeat(1, 1), x[4:]):
                if micro.shape[0] > 1:
                    (model(micro) ** 3).sum().backward()
            # the sample that cannot be a batch of its own joins by hand
            layer.observe(normscope.functional.moments(x[3:4].detach()))
            optimizer.step()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(layer, name), getattr(plain, name))


def test_uncommitted_batches_are_dropped_and_commit_works_by_hand() -> None:
    model = network()
    before = buffers(model)
    with normscope.guard(model, update="step"):
        model(torch.randn(6, 3).double())
    assert_same(buffers(model), before)
    with normscope.guard(model, update="step"):
        model(torch.randn(6, 3).double())
        normscope.commit(model)
        normscope.commit(model)
    assert int(model[1].num_batches_tracked) == 1


def test_policies_come_back_after_an_exception() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[1].set_policy(normscope.Policy(update="never"))
    with (
        pytest.raises(RuntimeError, match="boom"),
        normscope.guard(model, update="step", use="stored", optimizer=optimizer),
    ):
        raise RuntimeError("boom")
    assert model[1].policy == normscope.Policy(update="never")
    assert model[3].policy == normscope.Policy()
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_skip_nonfinite_keeps_one_bad_value_out(bad: float) -> None:
    layer = normscope.BatchNorm1d(3)
    x = torch.randn(6, 3)
    x[2, 1] = bad
    with normscope.guard(layer, skip_nonfinite=True):
        y = layer(x)
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


def test_bad_values_and_models_without_our_layers() -> None:
    refused = pytest.raises(InputError, match="update is 'sometimes'; it can be 'always'")
    with refused, normscope.guard(network(), update="sometimes"):
        pass
    refused = pytest.raises(InputError, match="no normscope layer to guard")
    with refused, normscope.guard(nn.Linear(2, 2), update="never"):
        pass


def test_guarded_layers_copy_and_pickle() -> None:
    model = network()
    with normscope.guard(model, update="step"):
        model(torch.randn(6, 3).double())
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            normscope.commit(twin)
            assert int(twin[1].num_batches_tracked) == 1
