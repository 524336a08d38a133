"""How a batch becomes the arguments of a forward, and what counts as numbers in it."""

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normscope.functional import why
from normscope.probe.grammar import (
    Signature,
    arguments,
    as_numbers,
    by_sample,
    finite,
    signature_of,
    walk,
)

X, Y, IDS = torch.ones(4, 2), torch.zeros(4), torch.arange(4)


class Whole(nn.Module):
    def forward(self, batch: Any) -> Any:
        return batch["x"]


class Named(nn.Module):
    def forward(self, x: Tensor, y: Tensor, *, labels: Tensor | None = None) -> Any:
        return x


class Builtin(nn.Module):
    forward: Any = np.add  # of which nobody knows the arguments


def test_what_a_forward_takes_is_read_off_it() -> None:
    assert signature_of(Whole()) == Signature(("batch",), 1, any_position=False, any_keyword=False)
    named = signature_of(Named())
    assert named == Signature(("x", "y", "labels"), 2, any_position=False, any_keyword=False)
    unknown = Builtin()
    unknown.forward = dict.fromkeys
    for method in (dict, type):  # C functions without a signature
        unknown.forward = method
        assert signature_of(unknown) == Signature((), 0, any_position=True, any_keyword=True)


def test_a_mapping_is_given_by_name_or_whole_or_as_its_one_input() -> None:
    takes = signature_of(Named())
    given = {"x": X, "y": Y, "labels": IDS, "note": "a"}
    inputs = {"x": X, "y": Y, "note": "a"}
    args, named = arguments(takes, inputs, given, IDS)
    assert (args, set(named)) == ((), {"x", "y", "labels"})
    assert named["labels"] is IDS
    assert arguments(takes, {"x": X}, {"x": X}, None)[0][0] is X, "y is missing"
    whole = signature_of(Whole())
    assert arguments(whole, inputs, given, IDS) == ((given,), {})
    assert arguments(whole, inputs, (inputs, IDS), IDS) == ((inputs,), {})
    one = Signature(("z",), 1, any_position=False, any_keyword=False)
    assert arguments(one, {"image": X, "mask": Y}, {"image": X, "mask": Y}, None)[0][0] is X
    assert arguments(one, {"odd": Y, "text": "a"}, {"odd": Y, "text": "a"}, None)[0][0] is Y
    two = {"odd": X, "other": Y}
    assert arguments(one, two, two, None) == ((two,), {}), "nobody knows which of them"


def test_a_tuple_is_spread_where_the_forward_takes_so_many() -> None:
    takes = signature_of(Named())
    assert arguments(takes, (X, Y), None, None) == ((X, Y), {})
    assert arguments(takes, [X, Y], None, None) == ((X, Y), {})
    assert arguments(takes, (X, Y, X), None, None) == ((X, Y, X), {})
    assert arguments(takes, (X,), None, None)[0][0] == (X,), "too few"
    assert arguments(takes, (X, Y, X, Y), None, None) == (((X, Y, X, Y),), {})
    pair = namedtuple("pair", "a b")(X, Y)
    assert arguments(takes, pair, None, None) == ((pair,), {}), "a structure of its own"
    single = signature_of(Whole())
    assert arguments(single, (X, Y), None, None) == (((X, Y),), {})
    any_number = Signature((), 0, any_position=True, any_keyword=False)
    assert arguments(any_number, [X, Y], None, IDS) == ((X, Y), {}), "a collated tuple"
    odd = [X[:2], Y]
    (kept,), _ = arguments(any_number, odd, None, IDS)
    assert kept is odd, "not of one entry per label"
    assert arguments(any_number, X, None, None) == ((X,), {})


class Odd:
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise self.error

    def __init__(self, error: Exception) -> None:
        self.error = error


def test_numbers_are_numbers_and_nothing_else_is() -> None:
    for value in (3, 2.5, True, [1, 2], np.ones(3), X.requires_grad_()):
        found = as_numbers(value)
        assert found is not None
        assert not found.requires_grad
    X.requires_grad_(False)
    other: Any
    for other in (None, "3", b"3", ["a"], [[1], [1, 2]], object(), {"a": 1}):
        assert as_numbers(other) is None, other
    for error in (ValueError(), TypeError(), RuntimeError()):
        assert as_numbers(Odd(error)) is None
    assert as_numbers(np.ones(2, dtype=np.uint8)) is not None


def test_structures_are_walked_and_lists_of_samples_are_one_thing() -> None:
    pair = namedtuple("pair", "a b")
    given = {"a": [X, (X, X)], "b": pair(X, X)}
    found = walk(given, lambda x: x + 1)
    assert torch.equal(found["a"][1][0], X + 1)
    assert isinstance(found["a"][1], tuple)
    assert isinstance(found["b"], pair)
    seen: list[Any] = []
    walk([["a", "b", "c", "d"], [X, X]], seen.append, size=4)
    assert seen[0] == ["a", "b", "c", "d"]
    assert len(seen) == 3
    assert not by_sample([X, X, X, X], 4), "columns of a batch of four"
    assert by_sample([X[:3]] * 4, 4)
    assert by_sample([torch.tensor(1.0)] * 4, 4)
    assert not by_sample(["a"] * 3, 4)


def test_what_is_finite() -> None:
    assert finite(X)
    assert finite(torch.tensor([3e38, 3e38])), "only the sum overflows"
    assert not finite(torch.tensor([1.0, torch.nan]))
    assert not finite(torch.tensor([torch.inf]))
    assert finite(torch.tensor([[0.0, 1.0]]).to_sparse())


def test_a_kernel_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'magic'; it can be 'auto'"):
        why(X, "magic")
