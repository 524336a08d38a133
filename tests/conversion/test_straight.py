"""Which forwards do the same in every call: what is read off them, and what is refused and why."""

import functools
import math
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, is_grad_enabled, nn

from normscope.conversion.kinds import Refusal
from normscope.conversion.straight import fact, read_straight

SLOPE = 0.1


class Block(nn.Module):
    """What a forward may use: a module, none, a parameter, a buffer, numbers, and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.leaky = nn.LeakyReLU(SLOPE)
        self.parts = nn.Sequential(nn.ReLU(), nn.ReLU())
        self.down: nn.Module | None = None
        self.scale = nn.Parameter(torch.ones(3))
        self.register_parameter("shift", None)
        self.register_buffer("mean", torch.zeros(3))
        self.depth, self.mode = 2, "sum"
        self.table = [1, 2]


class Straight(Block):
    def forward(self, x: Tensor) -> Any:
        """Use all of it."""
        y = self.bn(x) if self.training else F.relu(self.bn(x))
        y += self.leaky(x) * self.depth
        z: Tensor = torch.cat([y[:, :1], y[:, 1:]], dim=1)
        if self.down is not None and self.mode == "sum":
            z = self.down(z)
        for_later = -z if self.mode != "sum" else z
        return self.parts(for_later) + self.bn(x)


def test_the_attributes_that_its_course_depends_on_are_each_named_once() -> None:
    names = read_straight(Straight())
    assert names == ("bn", "leaky", "depth", "down", "mode", "parts")


def test_a_fact_is_what_the_course_of_a_forward_can_depend_on() -> None:
    block: Any = Block()
    facts = {
        "bn": (nn.BatchNorm2d, None, None),
        "leaky": (nn.LeakyReLU, None, SLOPE),
        "parts": (nn.Sequential, 2, None),
        "scale": (False,),
        "shift": (True,),
        "mean": (False,),
    }
    for name, expected in facts.items():
        assert fact(block, name) == expected, name
    block.mean = None
    assert fact(block, "mean") == (True,)
    assert fact(block, "depth") != fact(block, "mode")
    block.down, before = nn.Identity(), fact(block, "down")
    assert fact(block, "down") != before
    before, block.depth = fact(block, "depth"), 3
    assert fact(block, "depth") != before
    before, block.depth = fact(block, "depth"), 3.0
    assert fact(block, "depth") != before, "another type of number is another fact"
    for name in ("table", "nowhere"):
        with pytest.raises(Refusal, match=f"its forward uses '{name}', which may change"):
            fact(block, name)


class TwoInputs(Block):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.bn(x) + y


class Default(Block):
    def forward(self, x: Tensor | None = None) -> Any:
        return self.bn(x)


class Rest(Block):
    def forward(self, x: Tensor, *rest: Tensor) -> Any:
        return self.bn(x)


class Named(Block):
    def forward(self, x: Tensor, **named: Tensor) -> Any:
        return self.bn(x)


class KeywordOnly(Block):
    def forward(self, x: Tensor, *, y: Tensor) -> Any:
        return self.bn(x)


class PositionOnly(Block):
    def forward(self, x: Tensor, /) -> Any:
        return self.bn(x)


class NoInput(Block):
    def forward(self) -> Any:
        return self.scale


class Static(Block):
    forward: Any = math.sqrt


class Decorated(Block):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return self.bn(x)


def enclosing(other: nn.Module) -> type[nn.Module]:
    class Enclosed(Block):
        def forward(self, x: Tensor) -> Any:
            return self.bn(other(x))

    return Enclosed


class Loop(Block):
    def forward(self, x: Tensor) -> Any:
        for part in self.parts:
            x = part(x)
        return self.bn(x)


class Comprehension(Block):
    def forward(self, x: Tensor) -> Any:
        return self.bn(torch.stack([part(x) for part in self.parts]).sum(0))


class Writing(Block):
    def forward(self, x: Tensor) -> Any:
        self.depth = 3
        return self.bn(x)


class WritingFar(Block):
    def forward(self, x: Tensor) -> Any:
        self.bn.training = False
        return self.bn(x)


class Looking(Block):
    def forward(self, x: Tensor) -> Any:
        return self.bn(x) * self.bn.eps


class HandingOn(Block):
    def forward(self, x: Tensor) -> Any:
        return torch.relu(self)


class Foreign(Block):
    def forward(self, x: Tensor) -> Any:
        return self.bn(x) * math.pi


class Asking(Block):
    def forward(self, x: Tensor) -> Any:
        return self.bn(x) if torch.is_grad_enabled() else x


class AskingFar(Block):
    def forward(self, x: Tensor) -> Any:
        return self.bn(x) if torch.jit.is_scripting() else x


class AskingByName(Block):
    def forward(self, x: Tensor) -> Any:
        return self.bn(x) if is_grad_enabled() else x


class Changing(Block):
    def forward(self, x: Tensor) -> Any:
        return self.bn(x) * self.table[0]


CASES: list[tuple[type[nn.Module], str]] = [
    *[(case, "takes more than one input") for case in (TwoInputs, Default, Rest, Named)],
    *[(case, "takes more than one input") for case in (KeywordOnly, PositionOnly, NoInput)],
    (Static, "its forward is no plain method"),
    (Decorated, "its forward is no plain method"),
    (enclosing(nn.ReLU()), "its forward is no plain method"),
    (Loop, "its forward has a For$"),
    (Comprehension, "its forward has a ListComp$"),
    (Writing, "its forward writes to 'depth'"),
    (WritingFar, "its forward writes to 'bn.training'"),
    (Looking, "its forward looks into 'bn'"),
    (HandingOn, "its forward hands the module itself on"),
    (Foreign, "its forward uses 'math', which is not torch's"),
    (Asking, "its forward asks for 'is_grad_enabled'"),
    (AskingByName, "its forward asks for 'is_grad_enabled'"),
    (AskingFar, "its forward asks for 'jit.is_scripting'"),
    (Changing, "its forward uses 'table', which may change"),
]


@pytest.mark.parametrize(("case", "sentence"), CASES)
def test_what_may_do_otherwise_is_refused(case: type[nn.Module], sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence):
        read_straight(case())


def test_a_forward_of_the_object_or_without_source_is_refused() -> None:
    own: Any = Straight()
    own.forward = functools.partial(Straight.forward, own)
    with pytest.raises(Refusal, match="no plain method"):
        read_straight(own)
    code = compile("def forward(self, x):\n    return self.bn(x)\n", "<nowhere>", "exec")
    made: dict[str, Any] = {}
    exec(code, made)
    typed = types.new_class(
        "Typed", (Block,), exec_body=lambda body: body.update(forward=made["forward"])
    )
    with pytest.raises(Refusal, match="the source of its forward cannot be read"):
        read_straight(typed())


class Later(Block):
    def forward(self, x: Tensor) -> Any:
        wide: Tensor = self.bn(x)
        return wide * self.zoom if self.training else wide

    zoom = 2


def test_names_of_any_letter_count_and_annotations_do_not() -> None:
    assert read_straight(Later()) == ("bn", "zoom")
    block: Any = Later()
    assert fact(block, "down") == (type(None), None)
    assert fact(block, "zoom") == (int, 2)
    lines = Straight()
    lines.__dict__["forward"] = lambda x: x
    with pytest.raises(Refusal, match="no plain method"):
        read_straight(lines)
