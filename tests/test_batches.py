"""Batches in every form that loaders give, and models that take them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normscope import batches, lens
from normscope.errors import InputError

X, Z, Y = torch.randn(12, 3), torch.randn(12, 3), torch.arange(12) % 3


class Two(nn.Module):
    """Takes two inputs, by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, image: Tensor, other: Tensor, scale: float = 1.0) -> dict[str, Any]:
        return {"logits": (self.bn(self.first(image) + scale * other).relu(),)}


FORMS: dict[str, Any] = {
    "tuple": ((X, Z), Y),
    "list": [[X, Z], Y],
    "dict": ({"image": X, "other": Z}, Y),
    "dict and a number": ({"image": X, "other": Z, "scale": 1.0}, Y.numpy()),
    "one dict": {"image": X, "other": Z, "labels": Y},
    "one dict, label": {"other": Z, "image": X, "label": Y.tolist()},
}


@pytest.mark.parametrize("batch", FORMS.values(), ids=FORMS.keys())
def test_every_form_is_the_same_call(batch: Any) -> None:
    torch.manual_seed(0)
    model = Two()
    torch.manual_seed(0)
    only = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU())
    with torch.no_grad():
        only[0].bias.zero_()
        model.first.bias.zero_()
        shifted = torch.linalg.solve(only[0].weight.double().T, Z.double(), left=False).float()
    (layer,) = lens.inspect(model, [batch, batch]).layers
    (expected,) = lens.inspect(only, [(X + shifted, Y)] * 2).layers
    assert layer.activation == "relu"
    torch.testing.assert_close(
        torch.tensor(layer.class_mean), torch.tensor(expected.class_mean), atol=1e-4, rtol=1e-4
    )


def test_nested_inputs_move_and_hash_as_a_whole() -> None:
    nested = ({"pair": (X, [Z, None]), "flag": True},)
    (batch,) = batches.checked([((nested[0],), Y, Y)], None, None, torch.bfloat16)
    (given,) = batch.x
    assert given["pair"][0].dtype == torch.bfloat16
    assert given["pair"][1][1] is None
    assert given["flag"] is True
    assert batch.condition is not None
    (plain,) = batches.checked([(X, Y)], None, None)
    assert (batch.priority != plain.priority).all()
    assert (plain.priority == next(batches.checked([(X, Y)], None, None)).priority).all()
    assert len(set(plain.priority.tolist())) == 12


def test_a_condition_in_a_dict() -> None:
    (batch,) = batches.checked([{"x": X, "y": Y, "domain": Y % 2}], None, None)
    assert batch.x.keys() == {"x"}
    assert batch.condition is not None
    assert batch.condition.tolist() == (Y % 2).tolist()


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ({"image": X}, "batch 0 holds no labels; .* a dict with one of labels, label"),
        (({"flag": True}, Y), "the inputs of batch 0 hold no tensor"),
        (({"image": X, "other": Z / 0}, Y), "the inputs of batch 0 hold NaN or infinity"),
        (((X, Z), Y[:4]), r"labels of batch 0 are torch.int64 \(4,\)"),
    ],
)
def test_bad_batches(batch: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        list(batches.checked([batch], None, None))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_models(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU())
    (whole,) = lens.inspect(model, [(X, Y)]).layers
    (layer,) = lens.inspect(model.to(dtype), [(X, Y)]).layers
    assert model[1].running_mean.dtype == dtype
    assert layer.stages[1].eta2_mean == pytest.approx(whole.stages[1].eta2_mean, abs=0.02)
    assert layer.invariance < 0.1
