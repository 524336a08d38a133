"""What a verification runs and compares, by hand; what it says and refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normscope
from normscope.conversion.verification import (
    LEVELS,
    LR,
    MOST,
    Verification,
    _backward,
    _difference,
    _nudged,
    _runs,
    verified,
)
from normscope.errors import InputError, ModelError
from normscope.layers.conditional import current_condition
from normscope.records import Comparison

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


class Line(nn.Module):
    """y = weight x, one number."""

    def __init__(self, weight: float = 2.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.weight * x


def test_it_is_equal_where_all_that_must_be_is() -> None:
    parts = (
        Comparison("outputs", "eval", 1e-10, 1e-9),
        Comparison("outputs", "train", 5.0, None),
    )
    proof = Verification(parts, "float64")
    assert proof.ok
    assert repr(proof).splitlines() == [
        "equal, computed in float64",
        "outputs in eval(): 1.0e-10, allowed 1.0e-09",
        "outputs in train(): 5.0e+00, may differ",
    ]
    bad = Verification((*parts, Comparison("gradients", "eval", 1.0, 1e-9)), "float32")
    assert not bad.ok
    assert repr(bad).startswith("NOT equal, computed in float32\n")
    assert (LEVELS, LR, MOST) == (("always", "eval", "never"), 0.01, 1e-3)


def test_a_run_is_eval_then_steps_of_training() -> None:
    model = Line()
    run = _runs(model, (X,), 2)
    assert list(run) == [
        ("eval", "outputs"),
        ("eval", "gradients"),
        ("train", "outputs"),
        ("train", "gradients"),
        ("train", "parameters"),
        ("train", "buffers"),
    ]
    torch.testing.assert_close(run["eval", "outputs"]["0"], 2 * X)
    assert not run["eval", "outputs"]["0"].requires_grad
    assert model.training
    assert float(run["train", "buffers"]["seen"]) == 3
    # a gradient is that of its own step, and moves the weight before the next
    with torch.random.fork_rng():
        torch.manual_seed(0)
        slopes = [float((X * torch.randn_like(X)).mean()) for _ in range(3)]
    assert float(run["eval", "gradients"]["weight"]) == pytest.approx(slopes[0])
    assert float(run["train", "gradients"]["weight"]) == pytest.approx(slopes[2])
    last = 2 - LR * slopes[1]
    torch.testing.assert_close(run["train", "outputs"]["0"], last * X)
    weight = run["train", "parameters"]["weight"].detach()
    assert float(weight) == pytest.approx(last - LR * slopes[2])
    state = torch.get_rng_state()
    again = _runs(Line(), (X,), 2)
    assert torch.equal(again["train", "parameters"]["weight"], weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_parts_that_learn_nothing_stay() -> None:
    model: Any = nn.ModuleDict({"a": Line(), "b": Line()})
    model.forward = lambda x: model["a"](x)
    run = _runs(model, (X,), 1)
    assert run["train", "parameters"]["b.weight"].item() == 2
    assert set(run["train", "gradients"]) == {"a.weight"}


def test_conditions_come_in_turn() -> None:
    seen: list[Any] = []

    class Sees(nn.Module):
        def __init__(self, *conditions: int) -> None:
            super().__init__()
            norms = [normscope.ConditionalBatchNorm1d(3, k) for k in conditions]
            self.norms = nn.ModuleList(norms)

        def forward(self, x: Any) -> Any:
            ids = current_condition()
            seen.append(None if ids is None else ids.tolist())
            return {"whole": x[0].long() if isinstance(x, list) else x.long(), "y": [x]}

    _backward(Sees(3), (X,))
    _backward(Sees(4, 2), (X,))
    _backward(Sees(2), ([torch.tensor(1.0), X[:3]],))
    assert seen == [[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 0, 1], [0, 1, 0]]
    (found,) = _backward(Sees(2), (X,)).values()
    assert torch.equal(found, X), "whole numbers are not compared"
    assert seen[-1] == [0, 1] * 3
    _backward(Sees(2), (torch.tensor(1.0),))
    assert seen[-1] == [0], "as if it were one sample"
    _backward(Sees(), (X,))
    assert seen[-1] == [0] * 6


def test_a_model_that_fails_says_in_which_mode() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise ValueError("not in training")
            return x

    for mode, x in (("train", X), ("eval", "text")):
        model = Fails() if mode == "train" else nn.Linear(3, 2)
        sentence = rf"{type(model).__name__} cannot be verified: in {mode}\(\) it fails on these"
        with pytest.raises(ModelError, match=sentence):
            _runs(model, (x,), 1)


def test_a_difference_is_relative_to_the_largest_value() -> None:
    t = torch.tensor
    assert _difference({"a": t([2.0, -4])}, {"a": t([2.0, -3])}) == 0.25
    assert _difference({}, {}) == 0
    assert _difference({"a": t([1.0])}, {"b": t([2.0])}) == 0
    assert _difference({"a": t([1.0])}, {"a": t([2.0, 2])}) == 0, "of other shapes"
    both = {"a": t([1.0]), "b": t([8.0])}, {"a": t([1.5]), "b": t([9.0])}
    assert _difference(*both) == 0.5, "the largest of them"
    # what is nearly zero is measured by a thousandth of its neighbours
    small = {"a": t([1e-9]), "b": t([2.0])}, {"a": t([3e-9]), "b": t([2.0])}
    assert _difference(*small) == pytest.approx(1e-6)
    assert _difference({"a": t([0.0])}, {"a": t([1e-30])}) == pytest.approx(1)
    counted = {"n": t(5)}, {"n": t(7)}
    assert _difference(*counted) == 2, "whole numbers as they are"


def test_values_are_moved_by_one_rounding_error() -> None:
    x = torch.full((1000,), 3.0, dtype=torch.float64)
    step = (_nudged(x, 0.125) - x) / x
    assert set(step.tolist()) == {-0.125, 0.125}
    whole = torch.arange(3)
    assert _nudged(whole, 0.125) is whole
    assert _nudged("text", 0.125) == "text"


def test_what_is_compared_at_which_level() -> None:
    def proof(level: Any, after: float = 2.0, **more: Any) -> Verification:
        given = {"double": True, "steps": 1, **more}
        return verified(Line(), Line(after), (X,), level=level, **given)

    expected = {"always": 6, "eval": 2, "never": 0}
    for level, number in expected.items():
        found = proof(level)
        assert sum(c.allowed is not None for c in found.comparisons) == number
        assert all(c.allowed is None or c.mode == "eval" or level == "always"
                   for c in found.comparisons)  # fmt: skip
        assert [c.difference for c in found.comparisons] == [0] * 6
        assert found.dtype == "float64"
    assert {c.allowed for c in proof("always").comparisons} == {1e-9}
    single = proof("always", double=False)
    assert single.dtype == "float32"
    eps = torch.finfo(torch.float32).eps
    assert all(100 * eps <= (c.allowed or 0) <= MOST for c in single.comparisons)
    assert max(c.allowed or 0 for c in single.comparisons) < 1e-4
    wrong = proof("always", after=2.5)
    assert not wrong.ok
    assert wrong.comparisons[0].difference == pytest.approx(0.25)
    assert proof("never", after=2.5).ok
    longer = proof("always", steps=4).comparisons
    assert len(longer) == 6
    for inputs, steps in (((), 1), ((X,), 0)):
        with pytest.raises(InputError, match="needs a batch as the model takes it, and at least"):
            verified(Line(), Line(), inputs, level="eval", double=True, steps=steps)
    verified(Line(), Line(), (X,), level="eval", double=True, steps=1)


def test_what_the_model_makes_of_rounding_is_allowed_up_to_a_limit() -> None:
    class Centres(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centre = nn.Parameter(torch.ones(()), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return x - self.centre

    limits = []
    for width in (1e-3, 1e-9, 1e-14):
        x = 1 + width * torch.arange(4, dtype=torch.float64)
        found = verified(Centres(), Centres(), (x,), level="always", double=True, steps=1)
        limits.append(found.comparisons[0].allowed or 0)
    assert limits[0] == 1e-9
    # rounding moves the inputs by 2e-16, a hundred times of which is 1e-5 of their width
    assert 1e-6 < limits[1] < 1e-4
    assert limits[2] == MOST


def test_inputs_become_double_and_other_arguments_stay() -> None:
    seen: list[Any] = []

    class Takes(nn.Module):
        def forward(self, x: Tensor, more: Any) -> Tensor:
            seen.append((x.dtype, more["ids"].dtype, more["name"]))
            return x

    more = {"ids": torch.arange(6), "name": "a"}
    for double, dtype in ((True, torch.float64), (False, torch.float32)):
        seen.clear()
        found = verified(Takes(), Takes(), (X, more), level="always", double=double, steps=1)
        assert set(seen) == {(dtype, torch.int64, "a")}
        assert found.dtype == "float32", "of the model, which has no parameter"
        assert len(seen) == 6
