"""What a kind of layer takes and carries over: options, activation, rank, gradients of its rows."""

from typing import Any

import pytest
import torch
from torch import nn

import normscope
from normscope.conversion import convert
from normscope.conversion.kinds import is_norm
from normscope.conversion.verification import _gradients
from normscope.errors import InputError


@pytest.mark.parametrize("kind", ["batch", "ghost", "renorm", "evalnorm", "frozen"])
def test_an_activation_goes_along_to_the_kinds_that_have_one(kind: str) -> None:
    options = {"ghost_size": 4} if kind == "ghost" else {}
    model: Any = nn.Sequential(normscope.BatchNorm2d(3, act="relu"))
    conversion = convert(model, kind, **options)
    assert model[0].act == "relu"
    assert conversion.verify(torch.randn(8, 3, 4, 4)).ok


def test_affine_is_an_option_of_conditional_layers_alone() -> None:
    for kind in ("batch", "torch", "renorm", "evalnorm"):
        with pytest.raises(InputError, match=rf"{kind} has no option 'affine'"):
            convert(nn.Sequential(nn.BatchNorm1d(3)), kind, affine=False)
    model: Any = nn.Sequential(nn.BatchNorm1d(3))
    convert(model, "conditional", num_conditions=2, affine="shared")
    assert model[0].weight.shape == (3,)
    model = nn.Sequential(nn.BatchNorm1d(3))
    convert(model, "conditional", num_conditions=2)
    assert model[0].weight.shape == (2, 3)


def test_a_layer_of_no_rank_becomes_a_group_norm() -> None:
    model: Any = nn.Sequential(nn.SyncBatchNorm(4, eps=1e-3))
    convert(model, "group", num_groups=2)
    assert type(model[0]) is nn.GroupNorm
    assert (model[0].num_groups, model[0].num_channels, model[0].eps) == (2, 4, 1e-3)


def test_the_rows_of_a_layer_by_condition_are_compared_by_their_sum() -> None:
    model: Any = nn.Sequential(
        normscope.ConditionalBatchNorm1d(2, num_conditions=3), nn.Linear(2, 1)
    )
    for name, parameter in model.named_parameters():
        parameter.grad = torch.arange(float(parameter.numel())).reshape(parameter.shape) + len(name)
    found = _gradients(model)
    for key in ("weight", "bias"):
        rows = getattr(model[0], key).grad
        assert rows.shape == (3, 2)
        assert torch.equal(found[f"0.{key}"], rows.sum(0))
        assert torch.equal(found[f"1.{key}"], getattr(model[1], key).grad)
    alone: Any = model[0]
    assert torch.equal(_gradients(alone)["weight"], alone.weight.grad.sum(0))


def test_a_layer_that_cannot_be_read_is_a_norm_all_the_same() -> None:
    for layer in (nn.BatchNorm1d(3), nn.LazyBatchNorm1d(), nn.InstanceNorm1d(3)):
        assert is_norm(layer)
    assert not is_norm(nn.Linear(3, 3))
    model = nn.Sequential(nn.LazyBatchNorm1d(), nn.BatchNorm1d(3))
    done = convert(model, "batch", partial=True)
    assert [change.name for change in done.changed] == ["1"]
    (left,) = done.refused
    assert left.name == "0"
    assert "it is lazy and has no shape yet" in left.reason
