"""A model that was looked at, and one that was changed, are again what they were."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import normscope
from normscope.errors import ModelError
from normscope.probe import preserved
from normscope.probe.restore import ModelSnapshot

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) + 2


def network() -> Any:
    return nn.Sequential(
        nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), normscope.BatchNorm1d(3, act="relu")
    )


def contents(model: nn.Module) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in model.state_dict().items()}


def test_inside_a_model_is_in_eval_and_takes_no_gradients() -> None:
    model = network().train()
    model[1].eval()
    before, modes = contents(model), [m.training for m in model.modules()]
    with preserved(model):
        assert not any(m.training for m in model.modules())
        assert not model(X).requires_grad
        model.train()(X)
        model[3].running_mean = torch.full((3,), 9.0)
        model[1].weight.requires_grad_(False)
        model[1].register_buffer("extra", torch.ones(2))
    assert contents(model) == before
    assert [m.training for m in model.modules()] == modes
    assert model[1].weight.requires_grad
    assert not hasattr(model[1], "extra")
    assert model(X).requires_grad


def test_a_buffer_keeps_its_identity_and_a_parameter_what_was_learned() -> None:
    model = network()
    mean, weight = model[1].running_mean, model[1].weight

    def fails() -> None:
        model[1].running_mean = torch.ones(3)
        mean.fill_(5)
        weight.data.fill_(7)
        raise KeyError

    with pytest.raises(KeyError), preserved(model):
        fails()
    assert model[1].running_mean is mean
    assert mean.tolist() == [0, 0, 0]
    assert weight.tolist() == [7, 7, 7], "weights are the caller's own to change"


def test_random_numbers_go_on_where_they_were() -> None:
    model = network()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
    expected = float(torch.rand(())), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
    with preserved(model):
        torch.rand(7), random.random(), np.random.rand(9)  # noqa: NPY002
        torch.manual_seed(9)
    assert (float(torch.rand(())), random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_a_snapshot_brings_classes_attributes_parts_and_numbers_back() -> None:
    model = network()
    hook = model[1].register_forward_pre_hook(lambda module, args: None)
    before, names = contents(model), [set(m.__dict__) for m in model.modules()]
    parts, bias = dict(model._modules), model[0].bias
    memory = ModelSnapshot(model)
    for _ in range(2):
        normscope.convert(model, "frozen")
        model[1].__class__ = normscope.BatchNorm1d
        model[1].eps, model[1].momentum, model[1].extra = 0.5, 0.9, "new"
        model[1].running_mean = torch.ones(3)
        model[3].running_mean.add_(4)
        model[3].act = None
        model[0].bias.data.fill_(8)
        model[0].bias = None
        model[2] = nn.Tanh()
        model.train(not model.training)
        hook.remove()
        memory.rollback()
        assert contents(model) == before
        assert [set(m.__dict__) for m in model.modules()] == names
        assert dict(model._modules) == parts
        assert model[0].bias is bias
        assert (type(model[1]), type(model[3])) == (nn.BatchNorm1d, normscope.BatchNorm1d)
        assert (model[1].eps, model[1].momentum, model[3].act) == (1e-5, 0.1, "relu")
        assert model.training
        assert len(model[1]._forward_pre_hooks) == 1


def test_weights_that_no_repair_touches_are_not_copied() -> None:
    model = network()
    memory = ModelSnapshot(model)
    with torch.no_grad():
        model[0].weight.fill_(3)
        model[0].bias.fill_(3)
        model[1].weight.fill_(3)
    memory.rollback()
    assert model[0].weight.eq(3).all()
    assert not model[0].bias.eq(3).any()
    assert model[1].weight.tolist() == [1, 1, 1]


def test_looking_writes_to_no_buffer() -> None:
    model = network().eval()
    versions = [buffer._version for buffer in model.buffers()]
    with preserved(model):
        model(X)
    assert [buffer._version for buffer in model.buffers()] == versions
    with pytest.raises(ModelError, match="has no shape yet"), preserved(nn.LazyLinear(2)):
        pass


def test_ranks_are_not_waited_for_inside(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        for shares in (True, False):
            wrapper: Any = nn.parallel.DistributedDataParallel(network())
            wrapper.broadcast_buffers = shares
            with preserved(wrapper):
                assert not wrapper.broadcast_buffers
            assert wrapper.broadcast_buffers is shares
    finally:
        dist.destroy_process_group()


def test_of_a_norm_all_numbers_are_kept_those_of_its_parts_too() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(3))
    model[0].part = nn.Linear(3, 3)
    memory, before = ModelSnapshot(model), contents(model)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(7)
    memory.rollback()
    assert contents(model) == before
