"""How a batch becomes the arguments of a forward, and what counts as numbers in it."""

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normscope.errors import InputError
from normscope.functional import why
from normscope.probe.grammar import (
    HASHED,
    Batch,
    Signature,
    arguments,
    as_numbers,
    by_sample,
    finite,
    formed,
    named,
    of_samples,
    one_class,
    parts,
    signature_of,
    size,
    walk,
    yes_or_no,
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
    assert signature_of(Named()) == Signature(
        ("x", "y", "labels"), 2, any_position=False, any_keyword=False
    )
    unknown = Builtin()
    unknown.forward = dict.fromkeys
    for method in (dict, type):  # C functions without a signature
        unknown.forward = method
        assert signature_of(unknown) == Signature((), 0, any_position=True, any_keyword=True)


def test_a_mapping_is_given_by_name_or_whole_or_as_its_one_input() -> None:
    takes = signature_of(Named())
    given = {"x": X, "y": Y, "labels": IDS, "note": "a"}
    inputs = {"x": X, "y": Y, "note": "a"}
    args, by_name = arguments(takes, inputs, given, IDS)
    assert (args, set(by_name)) == ((), {"x", "y", "labels"})
    assert by_name["labels"] is IDS
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

    class Several(nn.Module):
        def forward(self, *parts: Tensor) -> Tensor:
            return parts[0]

    assert arguments(signature_of(Several()), (X, Y), None, None) == ((X, Y), {})
    one = Signature(("x",), 1, any_position=False, any_keyword=False)
    assert arguments(one, (X, Y), None, None) == (((X, Y),), {}), "more than it takes"
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


def batch_of(labels: Any, size: int = 3, **more: Any) -> Batch:
    return Batch(0, None, size, labels=labels, **more)


def test_classes_are_whole_numbers_or_one_hot_rows() -> None:
    def found(values: Any, size: int = 3) -> Any:
        classes = one_class(values, size)
        return None if classes is None else classes.tolist()

    t = torch.tensor
    assert found(t([2, 0, 1])) == found(t([[2], [0], [1]])) == [2, 0, 1]
    assert found(t([[0, 0, 1], [1, 0, 0], [0, 1, 0]])) == [2, 0, 1]
    assert found(t([[0.0, 1], [1, 0], [1, 0]])) == [1, 0, 0]
    assert found(t([[1], [1], [0]])) == [1, 1, 0], "one column is no row of classes"
    assert found(t([[0, 0], [1, 0], [1, 0]])) is None, "a row without a one"
    assert found(t([[1, 1], [1, 0], [1, 0]])) is None, "a row with two"
    assert found(t([[1, 0.5], [1, 0], [1, 0]])) is None
    assert found(t([[1, -1], [1, 0], [1, 0]])) is None
    assert found(t([[0, 1], [1, 0]])) is None, "too few"
    assert found(t([[0, 1]]), 1) == [1]
    assert found(t([[0], [1]]), 1) is None
    assert found(t([3]), 1) == [3]
    assert found(t([0, -1, 1])) is None
    assert found(t([0, 0, 0])) == [0, 0, 0]
    assert found(t([0.0, 1, 2])) is None
    assert found(t([1j, 0, 0])) is None
    assert found(t([[0, 1], [0, 1], [2, 1]])) is None
    assert found(torch.zeros(0, 2).long(), 0) is None
    assert found(torch.zeros(0).long(), 0) == []
    assert found(None) is None
    eyes = torch.eye(3).reshape(3, 3, 1)
    assert found(eyes) is None, "three axes"
    whole = one_class(t([1, 2, 3], dtype=torch.uint8), 3)
    assert whole is not None
    assert whole.dtype == torch.int64


def test_yes_or_no_is_one_float_per_sample() -> None:
    found = yes_or_no(torch.tensor([[1.0], [0.0], [1.0]]), 3)
    assert found is not None
    assert (found.tolist(), found.dtype) == ([1, 0, 1], torch.int64)
    for other in (None, torch.tensor([1, 0, 1]), torch.ones(2), torch.tensor([1.0, 0, 2])):
        assert yes_or_no(other, 3) is None
    assert yes_or_no(torch.tensor([1.0, 0, -1]), 3) is None
    assert batch_of(torch.tensor([1.0, 0, 1])).classes is not None
    labels = batch_of(torch.tensor([4, 0, 1])).classes
    assert labels is not None
    assert labels.tolist() == [4, 0, 1]


def test_a_batch_says_its_shapes_and_knows_its_samples_again() -> None:
    batch = Batch(0, {"a": torch.ones(2, 3), "b": ["x", torch.ones(2).long()]}, 2)
    assert batch.shapes == "(2, 3) torch.float32, (2,) torch.int64"
    assert Batch(0, ["x"], 1).shapes == "no tensor"
    x = torch.arange(12.0).reshape(3, 4)
    prints = Batch(0, x, 3).fingerprints()
    assert (prints.dtype, prints.shape) == (torch.int64, (3,))
    assert len(set(prints.tolist())) == 3
    assert torch.equal(Batch(0, None, 3, args=(x,)).fingerprints(), prints)
    assert torch.equal(Batch(0, None, 3, kwargs={"x": x}).fingerprints(), prints)
    assert torch.equal(Batch(0, "other", 3, args=(x,), kwargs={}).fingerprints(), prints)
    assert torch.equal(Batch(0, (x, torch.ones(2, 4), torch.tensor(1)), 3).fingerprints(), prints)
    assert torch.equal(Batch(0, x[[2, 0]], 2).fingerprints(), prints[[2, 0]])
    assert not torch.equal(Batch(0, (x, x), 3).fingerprints(), prints)
    assert torch.equal(Batch(0, x.to_sparse(), 3).fingerprints(), prints)
    # of many values some count: every second of twice as many, all of one fewer than that
    wide, other = torch.zeros(1, 2 * HASHED), torch.zeros(1, 2 * HASHED)
    other[0, 1::2] = 1
    assert torch.equal(Batch(0, wide, 1).fingerprints(), Batch(0, other, 1).fingerprints())
    narrow = Batch(0, wide[:, 1:], 1).fingerprints(), Batch(0, other[:, 1:], 1).fingerprints()
    assert not torch.equal(*narrow)


def test_a_signature_tells_what_takes_any_number_of_arguments() -> None:
    class Any_(nn.Module):
        def forward(self, x: Tensor, *rest: Tensor, **named: Tensor) -> Any:
            return x

    assert signature_of(Any_()) == Signature(("x",), 1, any_position=True, any_keyword=True)
    takes = Signature(("x",), 1, any_position=False, any_keyword=True)
    given = {"x": X, "odd": Y, "labels": IDS}
    args, by_name = arguments(takes, {"x": X, "odd": Y}, given, IDS)
    assert (args, sorted(by_name)) == ((), ["odd", "x"])


def test_what_a_batch_is_made_of() -> None:
    assert parts(0, X) == (X, None, None)
    assert parts(0, (X, Y)) == (X, Y, None)
    assert parts(0, [X, Y, IDS, "more"]) == (X, Y, IDS)
    assert parts(0, (X,)) == (X, None, None)
    inputs, labels, ids = parts(0, {"x": X, "target": Y, "domain": IDS, "label": IDS})
    assert labels is IDS, "the first of the names"
    assert ids is IDS
    assert inputs == {"x": X, "target": Y}
    assert parts(0, {"x": X}) == ({"x": X}, None, None)
    Row = namedtuple("Row", "y image other")
    assert parts(0, Row(Y, X, "a")) == (X, Y, None)
    Marked = namedtuple("Marked", "image condition")
    assert parts(0, Marked(X, IDS)) == (X, None, IDS)
    Plain = namedtuple("Plain", "image kind")
    assert parts(0, Plain(X, Y)) == (X, Y, None), "no name of ours: by position"
    images = [torch.ones(3, 4, 5), torch.ones(3, 6, 5), torch.ones(3, 4, 4), torch.ones(3, 2, 2)]
    assert parts(0, images) == (images, None, None)
    empty: Any
    for empty in ((), []):
        with pytest.raises(InputError, match="batch 7 is empty; a batch can be"):
            parts(7, empty)


def test_a_list_of_one_tensor_per_sample_is_not_one_of_columns() -> None:
    image = torch.ones(3, 4)
    assert of_samples([image] * 4)
    assert not of_samples([image] * 3), "three columns of one length"
    assert of_samples([image, torch.ones(2, 4)]), "of unlike lengths"
    assert not of_samples([image, torch.ones(2)]), "of unlike ranks"
    assert not of_samples([image] * 3 + [torch.ones(3)])
    assert not of_samples([image.long()] * 4)
    assert not of_samples([image] * 3 + [image.long()])
    assert not of_samples((image,) * 4)
    assert not of_samples([image] * 3 + ["text"])
    assert of_samples("text") is False


def test_labels_are_where_they_are_said_to_be() -> None:
    Row = namedtuple("Row", "image kind")
    assert named(1, (X, Y), 0) is Y
    assert named("kind", {"kind": Y}, 0) is Y
    assert named("kind", Row(X, Y), 0) is Y
    assert named(lambda batch: batch[0], (X, Y), 0) is X
    missing: tuple[tuple[Any, Any], ...] = (
        (5, (X, Y)), ("kind", (X, Y)), ("kind", {"x": X, "z": Y}), (0, object()),
    )  # fmt: skip
    for labels, given in missing:
        there = "x, z" if isinstance(given, dict) else "none of that name"
        with pytest.raises(InputError, match=f"batch 3 has no {labels!r} to take .* has {there}"):
            named(labels, given, 3)


def test_numbers_in_lists_become_a_tensor_and_other_lists_stay() -> None:
    found = formed([[1.0, 2.0], [3.0, 4.0]])
    assert (found.dtype, found.tolist()) == (torch.float32, [[1, 2], [3, 4]])
    assert formed([1, 2]).dtype == torch.int64
    others: tuple[Any, ...] = ([], [X, X], [X, 1], [{"a": 1}], (1.0, 2.0), ["a"], X, "text")
    for other in others:
        assert formed(other) is other


def test_the_number_of_samples() -> None:
    assert size(X, torch.zeros(4), (X, Y)) == 4
    assert size((torch.ones(2, 3), X), torch.zeros(4), None) == 4, "any input has so many rows"
    assert size(torch.ones(8, 2), torch.zeros(4), None) == 8, "boxes of two per sample"
    assert size({"p": ["a", "b"]}, [0, 1], None) == 2
    assert size({"p": ["a", "b", "c"]}, (0, 1), "ab") == 2
    assert size({"p": [["a", "b"]]}, np.zeros(2), None) == 2, "a list inside"
    assert size(([1], {"q": ["a", "b"]}), np.zeros(2), None) == 2
    same: Any = {"p": 1}
    assert size(same, [0, 1, 2], same) == 3, "inputs that are the batch itself"
    assert size("ab", [0, 1, 2], (X,)) == 3, "of labels, where there is nothing else"
    assert size(torch.tensor(1.0), torch.tensor(2), (X, Y)) == 4
    assert size((torch.tensor(1.0), X), None, None) == 4, "the first with an axis"
    images = [torch.ones(3, 4, 5)] * 5
    assert size((images, X), None, None) == 5
    assert size("a", torch.zeros(3), "whole") == 3
    assert size(1, None, ("four", X)) == 4
    assert size(1, None, ["abc"]) == 3
    assert size(1, None, "abcde") == 5
    assert size(1, None, object()) == 1
