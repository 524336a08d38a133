"""What a layer was: its class, tables, contents and gradients, and what stays of training."""

from typing import Any

import torch
from torch import Tensor, nn

from normscope.conversion.former import Former, _is_newer, remembered, undo


def layer() -> Any:
    return nn.BatchNorm1d(2)


def test_a_layer_gets_back_what_it_had_and_keeps_its_mode() -> None:
    norm = layer()
    weight, mean, names = norm.weight, norm.running_mean, set(norm.__dict__)
    record = remembered(norm)
    assert (record.layer, record.cls, record.data) == (norm, nn.BatchNorm1d, {})
    norm.__class__ = nn.BatchNorm2d
    norm.eps, norm.extra = 0.5, 1
    norm.register_buffer("more", torch.ones(1), persistent=False)
    norm._modules["part"] = nn.ReLU()
    del norm._parameters["bias"]
    norm.eval()
    undo([record])
    assert type(norm) is nn.BatchNorm1d
    assert (norm.eps, norm.training) == (1e-5, False)
    assert set(norm.__dict__) == names
    assert norm.weight is weight
    assert norm.running_mean is mean
    assert norm.bias is not None
    assert not norm._modules
    assert not norm._non_persistent_buffers_set
    assert "more" not in norm._buffers


def test_what_was_trained_since_stays_where_the_shape_is_the_same() -> None:
    norm = layer()
    weight, bias = norm.weight, norm.bias
    record = remembered(norm)
    norm.weight = nn.Parameter(torch.tensor([3.0, 4.0]).double())
    norm._buffers["bias"] = torch.tensor([5.0, 6.0])  # as freezing does
    del norm._parameters["bias"]
    norm.running_mean = torch.tensor([7.0, 8.0])
    norm.running_var = torch.ones(3, 2)
    norm.num_batches_tracked = None
    undo([record])
    assert norm.weight is weight
    assert (weight.tolist(), weight.dtype) == ([3, 4], torch.float64)
    assert norm.bias is bias
    assert bias.tolist() == [5, 6]
    assert norm.running_mean.tolist() == [7, 8]
    assert norm.running_var.tolist() == [1, 1], "of another shape"
    assert int(norm.num_batches_tracked) == 0
    assert isinstance(norm.bias, nn.Parameter)


def test_contents_and_gradients_of_before_come_back_where_the_shape_changed() -> None:
    norm = layer()
    record = remembered(norm)
    grad = torch.tensor([1.0, 2.0])
    record.data["weight"] = (torch.tensor([3.0, 4.0]), grad)
    weight = norm.weight
    weight.data = torch.ones(3, 2).double()
    undo([record])
    assert norm.weight is weight
    assert (weight.tolist(), weight.dtype) == ([3, 4], torch.float64)
    assert weight.grad is not None
    assert (weight.grad.tolist(), weight.grad.dtype) == ([1, 2], torch.float64)
    record = remembered(norm)
    record.data["weight"] = (torch.ones(2), None)
    undo([record])
    assert weight.grad is None


def test_the_last_change_is_undone_first_and_a_class_may_be_all_that_changed() -> None:
    norm = layer()
    first = remembered(norm)
    norm.eps = 0.5
    second = remembered(norm)
    norm.eps = 0.7
    undo([first, second])
    assert norm.eps == 1e-5
    act: Any = nn.ReLU()
    other = Former(act, nn.ReLU, None, {})
    act.__class__, act.extra = nn.Identity, 1
    undo([other, first])
    assert type(act) is nn.ReLU
    assert act.extra == 1
    assert type(norm) is nn.BatchNorm1d


def test_what_is_newer_is_another_tensor_of_the_same_shape() -> None:
    old = torch.ones(2)
    assert _is_newer(torch.ones(2), old)
    others: tuple[tuple[Tensor | None, Tensor | None], ...] = (
        (old, old), (None, old), (old, None), (None, None), (torch.ones(1, 2), old),
    )  # fmt: skip
    for current, before in others:
        assert not _is_newer(current, before)
