"""A conversion layer by layer: what is kept, refused and noted, and how a class is chosen."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import normscope
from normscope.conversion import convert
from normscope.conversion.transaction import OWN
from normscope.errors import InputError, ModelError
from normscope.layers import FrozenBatchNorm1d

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


class Plain(nn.BatchNorm1d):
    """Adds a name."""

    title = "mine"


class Forward(Plain):
    def forward(self, input: Any) -> Any:
        return super().forward(input) + 1


class Later(Forward):
    """Its forward is that of the class above it."""


class Slots(nn.BatchNorm1d):
    __slots__ = ("hidden",)


def norm(**options: Any) -> Any:
    return nn.Sequential(nn.BatchNorm1d(3, **options))


@pytest.mark.parametrize("kind", [Forward, Later])
def test_a_class_with_a_forward_of_its_own_is_refused(kind: type[nn.Module]) -> None:
    model: Any = nn.Sequential(kind(3))
    with pytest.raises(ModelError, match=r"its class Forward has a forward of its own; partial="):
        convert(model, "batch")
    done = convert(model, "batch", partial=True)
    assert [(left.name, left.layer) for left in done.refused] == [("0", kind.__name__)]
    assert type(model[0]) is kind


def test_parameters_that_are_computed_are_refused() -> None:
    with pytest.raises(ModelError, match="computed from others"):
        convert(nn.Sequential(Slots(3)), "batch")
    normed = nn.Sequential(nn.BatchNorm1d(3))
    normed[0].weight = nn.Parameter(torch.ones(3, 1))
    weight_norm(normed[0])
    with pytest.raises(ModelError, match="computed from others|class"):
        convert(normed, "batch")


def test_a_class_goes_with_the_layer_and_comes_back() -> None:
    model: Any = nn.Sequential(Plain(3))
    convert(model, "batch")
    assert model[0].title == "mine"
    assert isinstance(model[0], normscope.BatchNorm1d)
    assert type(model[0]).__name__ == "Plain"
    convert(model, "torch")
    assert type(model[0]).title == "mine"
    assert not isinstance(model[0], normscope.BatchNorm1d)
    with pytest.raises(ModelError, match="class Plain is the user's own, which frozen cannot"):
        convert(model, "frozen")
    with pytest.raises(ModelError, match="class Plain is the user's own, which sync cannot"):
        convert(model, "sync")
    plain = norm()
    convert(plain, "sync")
    assert type(plain[0]) is nn.SyncBatchNorm


def test_what_there_is_nothing_to_do_for_is_kept_with_the_reason() -> None:
    model = nn.Sequential(
        normscope.BatchNorm1d(3), nn.LayerNorm(3), nn.InstanceNorm1d(3), nn.BatchNorm1d(3)
    )
    done = convert(model, "batch")
    reasons = [(left.name, left.layer, left.reason) for left in done.kept]
    assert reasons == [
        ("0", "BatchNorm1d", "it is batch already"),
        ("1", "LayerNorm", "it normalises within each sample; no batch norm equals it"),
        (
            "2", "InstanceNorm1d",
            OWN,
        ),
    ]  # fmt: skip
    assert [(c.name, c.before, c.after, c.equal) for c in done.changed] == [
        ("3", "BatchNorm1d", "BatchNorm1d", "always")
    ]
    assert (done.fused, done.unfused, done.refused) == ((), (), ())
    assert (done.record.model, done.record.to) == ("Sequential", "batch")
    ghost = nn.Sequential(normscope.GhostBatchNorm1d(3, 4))
    assert [left.reason for left in convert(ghost, "ghost", ghost_size=4).kept] == [
        "it is ghost already"
    ]
    assert len(convert(ghost, "ghost", ghost_size=2).changed) == 1
    assert ghost[0].ghost_size == 2


def test_a_model_that_is_a_layer_is_named_by_its_class() -> None:
    alone = nn.BatchNorm1d(3)
    done = convert(alone, "batch", only=["BatchNorm1d"])
    assert [change.name for change in done.changed] == ["BatchNorm1d"]
    assert type(done.revert()) is nn.BatchNorm1d
    many = nn.Sequential(*[nn.BatchNorm1d(3) for _ in range(7)])
    with pytest.raises(InputError, match=r"is called 'x'; there is 0, 1, 2, 3, 4$"):
        convert(many, "batch", only=["x"])
    assert [c.name for c in convert(many, "batch", only=["1", "[45]"]).changed] == ["1", "4", "5"]
    with pytest.raises(InputError, match="is called 'z'"):
        convert(many, "batch", only=["1", "z"])
    with pytest.raises(ModelError, match="^Linear has no normalisation layer to convert"):
        convert(nn.Linear(2, 2), "batch")


def test_an_activation_asks_for_a_kind_that_has_one() -> None:
    with pytest.raises(InputError, match="own, which torch has not; to can be 'batch', 'ghost'"):
        convert(norm(), "torch", fuse=True)


def test_rows_grow_in_the_same_parameters_and_lose_their_gradient() -> None:
    model = norm()
    weight, bias = model[0].weight, model[0].bias
    weight.data = torch.tensor([1.0, 2, 3])
    weight.grad = torch.ones(3)
    model.eval()
    done = convert(model, "conditional", num_conditions=2)
    assert model[0].weight is weight
    assert weight.tolist() == [[1, 2, 3]] * 2
    assert weight.grad is None
    (change,) = done.changed
    assert change.note == "weight is (2, 3) now; bias is (2, 3) now"
    assert not model[0].training
    assert model[0].running_mean.shape == (2, 3)
    rows = model[0].running_mean
    rows[0] += 1
    assert rows[1].tolist() == [0, 0, 0], "rows of their own"
    done.revert()
    assert (model[0].weight is weight, model[0].bias is bias) == (True, True)
    assert weight.tolist() == [1, 2, 3]
    assert weight.grad is not None
    assert done.revert() is model, "a second time it does nothing"
    assert not model[0].training


def test_frozen_layers_hold_the_parameters_as_buffers_in_the_same_memory() -> None:
    model = norm(eps=0.5)
    weight = model[0].weight
    convert(model, "frozen")
    assert isinstance(model[0], FrozenBatchNorm1d)
    assert model[0].weight.data_ptr() == weight.data_ptr()
    assert not model[0].weight.requires_grad
    assert model[0].eps == 0.5
    assert list(model.parameters()) == []
    lone = norm()
    lone[0].register_parameter("bias", None)
    convert(lone, "batch")
    assert lone[0].bias is None
    assert "bias" not in lone[0].state_dict()


def test_what_is_compared_is_what_the_weakest_change_leaves_equal() -> None:
    def compared(*kinds: tuple[str, str]) -> set[str]:
        model = nn.Sequential(*[nn.BatchNorm1d(3) for _ in range(3)])
        done = convert(model, "batch", only=["0"])
        for name, kind in kinds:
            options = {"num_groups": 3} if kind == "group" else {}
            more = convert(model, kind, only=[name], **options)
            done.changed += more.changed
            done._former += more._former
        before = [t.clone() for t in model.state_dict().values()]
        proof = done.verify(X)
        assert proof.ok
        assert done.record.comparisons == proof.comparisons
        after = model.state_dict().values()
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        return {c.mode for c in proof.comparisons if c.allowed is not None}

    assert compared() == {"eval", "train"}
    assert compared(("1", "frozen")) == {"eval"}
    assert compared(("1", "frozen"), ("2", "group")) == set()


def test_the_steps_and_the_precision_of_a_verification_are_chosen() -> None:
    done = convert(norm(), "batch")
    assert done.verify(X).dtype == "float64"
    assert done.verify(X, double=False).dtype == "float32"
    with pytest.raises(InputError, match="at least one step"):
        done.verify(X, steps=0)
    one, two = ({(c.mode, c.what): c for c in done.verify(X, steps=n).comparisons} for n in (1, 2))
    assert one.keys() == two.keys()
    assert repr(done) == repr(done.record)
    assert done._repr_html_() == done.record._repr_html_()
