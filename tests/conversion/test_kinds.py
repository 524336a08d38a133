"""What a kind of layer takes and carries over: options, activation, rank, gradients of its rows."""

import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

import normscope
from normscope.conversion import convert
from normscope.conversion.kinds import _is_timm, equality, is_norm, read
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


def test_what_a_verification_says_of_itself() -> None:
    conversion = convert(nn.Sequential(nn.BatchNorm1d(3)), "ghost", ghost_size=4)
    proof = conversion.verify(torch.randn(8, 3))
    first, second, *rest = repr(proof).splitlines()
    assert first == "equal, computed in float64"
    assert second.startswith("outputs in eval(): ")
    assert ", allowed " in second
    assert all(line.endswith("may differ") for line in rest if "train()" in line)
    found = {(c.what, c.mode): c.difference for c in proof.comparisons}
    assert found["parameters", "train"] > 1e-6, "other gradients have moved them"


def test_a_parameter_that_was_replaced_since_is_again_the_old_one_with_its_numbers() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 3), normscope.BatchNorm1d(3), nn.ReLU())
    weight, mean = model[1].weight, model[1].running_mean
    conversion = convert(model, "batch", fuse=True)
    assert model[1].act == "relu"
    model[1].weight = nn.Parameter(torch.full((3,), 7.0))
    conversion.revert()
    assert model[1].weight is weight, "an optimizer holds it"
    assert weight.tolist() == [7, 7, 7]
    assert model[1].running_mean is mean
    assert model[1].act is None


def test_of_layers_that_are_refused_three_are_told_and_how_many_more() -> None:
    model = nn.ModuleList(normscope.BatchNorm1d(3, act="relu") for _ in range(3))
    with pytest.raises(normscope.ModelError, match=r"0 \(.*; 1 \(.*; 2 \([^;]*; partial=True"):
        convert(model, "torch")
    model.append(normscope.BatchNorm1d(3, act="relu"))
    model.append(normscope.BatchNorm1d(3, act="relu"))
    with pytest.raises(normscope.ModelError, match=r"2 \([^;]*; and 2 more; partial=True"):
        convert(model, "torch")


def test_modes_need_both_weight_and_bias() -> None:
    for norm in (nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3)):
        if norm.affine:
            norm.register_parameter("bias", None)
        with pytest.raises(normscope.ModelError, match="it has no weight or no bias"):
            convert(nn.Sequential(norm), "mode", num_modes=2)
    model: Any = nn.Sequential(nn.BatchNorm1d(3, eps=0.5, momentum=0.3))
    convert(model, "mode", num_modes=3)
    assert (model[0].eps, model[0].momentum, model[0].num_modes) == (0.5, 0.3, 3)


def test_gradients_that_a_model_holds_are_no_difference() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model(torch.randn(8, 3)).square().sum().backward()
    conversion = convert(model, "conditional", num_conditions=2)
    assert conversion.verify(torch.randn(8, 3)).ok


def test_a_layer_within_a_part_that_cannot_be_traced_says_so() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.relu = nn.BatchNorm1d(3), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.relu(self.norm(x if bool(x.sum() > 0) else -x))
            return y

    model = nn.Sequential(Part(), nn.BatchNorm1d(3), nn.ReLU())
    done = convert(model, "batch", fuse=True)
    assert [fusion.name for fusion in done.fused] == ["1"]
    (left,) = done.unfused
    assert left.name == "0.norm"
    assert left.reason.startswith("it is inside '0', which torch.fx cannot trace")


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", ["torch", "sync", "batch", "frozen", "group"])
def test_layers_of_every_rank_become_those_of_their_rank(kind: str, dims: int) -> None:
    cls = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    ours = getattr(normscope, f"BatchNorm{dims}d")
    model: Any = nn.Sequential(ours(4) if kind == "torch" else cls(4))
    convert(model, kind, **({"num_groups": 2} if kind == "group" else {}))
    expected: dict[str, type[nn.Module]] = {
        "torch": cls, "sync": nn.SyncBatchNorm, "batch": ours, "group": nn.GroupNorm,
        "frozen": getattr(normscope, f"FrozenBatchNorm{dims}d"),
    }  # fmt: skip
    assert type(model[0]) is expected[kind]


def test_training_is_the_same_where_the_same_ranks_take_part() -> None:
    one, all_ranks = read(nn.BatchNorm1d(3)), read(nn.SyncBatchNorm(3))
    assert one is not None
    assert all_ranks is not None
    sync, ours = nn.SyncBatchNorm(3), normscope.BatchNorm1d(3)
    assert (one.ranks, all_ranks.ranks) == (None, "world")
    assert equality(one, "batch", ours) == equality(all_ranks, "sync", sync) == "always"
    assert equality(one, "sync", sync) == equality(all_ranks, "batch", ours) == "eval"
    frozen = read(normscope.FrozenBatchNorm1d(3))
    assert frozen is not None
    assert equality(frozen, "frozen", normscope.FrozenBatchNorm1d(3)) == "always"
    assert equality(frozen, "batch", ours) == equality(one, "frozen", nn.Identity()) == "eval"
    assert equality(one, "group", nn.GroupNorm(1, 3)) == "never"


def test_a_layer_of_ours_becomes_torchs_own_and_a_class_of_the_users_is_refused() -> None:
    class Mine(normscope.BatchNorm1d):
        """Derived from ours, not from torch's."""

    model: Any = nn.Sequential(normscope.BatchNorm1d(3))
    done = convert(model, "torch")
    assert type(model[0]) is nn.BatchNorm1d
    assert done.verify(torch.randn(8, 3)).ok
    done.revert()
    assert type(model[0]) is normscope.BatchNorm1d
    with pytest.raises(normscope.ModelError, match="class Mine is the user's own, which torch"):
        convert(nn.Sequential(Mine(3)), "torch")


def test_the_two_norms_of_timm_are_known_once_timm_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "timm.layers.norm_act", raising=False)
    assert not _is_timm(nn.BatchNorm2d)
    home: Any = types.ModuleType("norm_act")
    home.BatchNormAct2d = nn.BatchNorm2d
    monkeypatch.setitem(sys.modules, "timm.layers.norm_act", home)
    assert _is_timm(nn.BatchNorm2d)
    assert not _is_timm(nn.BatchNorm1d)
    home.FrozenBatchNormAct2d = nn.BatchNorm1d
    assert _is_timm(nn.BatchNorm1d)
