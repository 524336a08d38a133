"""Which calls of a forward become one, and which stay because it would not be the same."""

import copy
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from normscope.conversion import convert
from normscope.conversion.fused_forward import FusedForward, fused_class
from normscope.conversion.kinds import Refusal

X = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.pass_on, self.relu, self.gelu = nn.Identity(), nn.ReLU(), nn.GELU()


class Right(Block):
    def forward(self, x: Tensor) -> Any:
        return torch.relu(self.gelu(x) + self.bn(self.conv(x)))


class Left(Block):
    def forward(self, x: Tensor) -> Any:
        return torch.relu(self.pass_on(self.bn(self.conv(x))) + self.gelu(x))


class Method(Block):
    def forward(self, x: Tensor) -> Any:
        return F.leaky_relu(self.bn(self.conv(x)).add(self.gelu(x)), 0.01, True)


class Twice(Block):
    def forward(self, x: Tensor) -> Any:
        return self.relu(self.bn(self.conv(self.relu(self.bn(self.conv(x))))))


class Overwriting(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.gelu(x)
        y += self.bn(self.conv(x))
        return self.relu(y)


class Weighted(Block):
    def forward(self, x: Tensor) -> Any:
        return self.relu(torch.add(self.bn(self.conv(x)), self.gelu(x), alpha=2))


class Number(Block):
    def forward(self, x: Tensor) -> Any:
        return self.relu(self.bn(self.conv(x)) + 1)


class Doubled(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.bn(self.conv(x))
        return self.relu(y + y)


class InputUsedAgain(Block):
    def forward(self, x: Tensor) -> Any:
        return self.relu(self.bn(x) + self.gelu(x))


class OutputUsedAgain(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.bn(self.conv(x))
        return self.relu(y) * y


class ByName(Block):
    def forward(self, x: Tensor) -> Any:
        return self.relu(self.bn(input=self.conv(x))) + self.gelu(x)


class ActivationByName(Block):
    def forward(self, x: Tensor) -> Any:
        return torch.relu(input=self.bn(self.conv(x))) + self.gelu(x)


class IdentityByName(Block):
    def forward(self, x: Tensor) -> Any:
        return self.relu(self.pass_on(input=self.bn(self.conv(x)))) + self.relu(x)


class OtherFunction(Block):
    def forward(self, x: Tensor) -> Any:
        return torch.tanh(self.bn(self.conv(x))) + self.gelu(x)


class OtherSlope(Block):
    def forward(self, x: Tensor) -> Any:
        return F.leaky_relu(self.bn(self.conv(x)), negative_slope=0.3) + self.gelu(x)


FUSED: list[tuple[type[Block], list[tuple[str | None, str, bool]]]] = [
    (Right, [("relu", "relu() in Right", True)]),
    (Left, [("relu", "relu() in Left", True)]),
    (Method, [("leaky_relu", "leaky_relu() in Method", True)]),
    (Twice, [("relu", "relu", False), ("relu", "relu", False)]),
]


@pytest.mark.parametrize(("kind", "expected"), FUSED)
def test_a_sum_and_an_activation_become_part_of_the_norm(
    kind: type[Block], expected: list[tuple[str | None, str, bool]]
) -> None:
    block = kind()
    convert(block, "batch")
    made = fused_class(block, "")
    assert [(f.act, f.place, f.residual) for f in made.fused] == expected
    assert {f.norm for f in made.fused} == {"bn"}
    named = fused_class(block, "a.b").fused
    assert {f.norm for f in named} == {"a.b.bn"}
    assert all(f.place == "a.b.relu" or f.place.endswith("() in a.b") for f in named)
    for training in (True, False):
        own = copy.deepcopy(block).train(training)
        fused: Any = copy.deepcopy(own)
        fused.__class__ = made
        assert fused.training is training, "tracing left the mode as it was"
        torch.testing.assert_close(fused(X), own(X))
        torch.testing.assert_close(fused.bn.running_var, own.bn.running_var)
    with pytest.raises(Refusal, match="it has a fused forward already"):
        fused_class(fused, "")


NOTHING = "no sum or activation follows a norm layer there"
STAYING: list[tuple[type[Block], str]] = [
    *[(kind, NOTHING) for kind in (Overwriting, Weighted, Number, Doubled, InputUsedAgain)],
    *[(kind, NOTHING) for kind in (OutputUsedAgain, ByName, ActivationByName, IdentityByName)],
    *[(kind, NOTHING) for kind in (OtherFunction, OtherSlope)],
]


class Aliases(Block):
    """Overwrites, beside a call that is fused, what somebody else holds."""

    def forward(self, x: Tensor) -> Any:
        y = self.gelu(x)
        z = y
        z += self.bn(self.conv(x))
        w = torch.relu(self.bn(self.conv(z)))
        kept = z
        z *= 2
        z -= w
        x /= 3
        return kept + y + w


def test_what_others_hold_is_overwritten_as_before() -> None:
    block = Aliases()
    own = copy.deepcopy(block)
    conversion = convert(block, "batch", fuse=True)
    assert [(f.act, f.residual) for f in conversion.fused] == [("relu", False)]
    x, mine = X.clone(), X.clone()
    torch.testing.assert_close(block(x), own(mine))
    torch.testing.assert_close(x, mine, rtol=0, atol=0)
    assert isinstance(block, FusedForward)


@pytest.mark.parametrize(("kind", "reason"), STAYING)
def test_what_would_not_be_the_same_stays(kind: type[Block], reason: str) -> None:
    block = kind()
    convert(block, "batch")
    with pytest.raises(Refusal, match=reason):
        fused_class(block, "")
    assert type(block) is kind
    assert block.training


def test_a_hook_keeps_what_it_sees() -> None:
    for name in ("bn", "pass_on", "relu"):
        block: Any = Left()
        block.relu, block.pass_on = nn.ReLU(), nn.Identity()
        convert(block, "batch")
        block.get_submodule(name).register_forward_hook(lambda *_: None)
        if name == "relu":  # not part of this forward
            assert fused_class(block, "").fused
        else:
            with pytest.raises(Refusal, match=NOTHING):
                fused_class(block, "")


class Making(Block):
    def forward(self, x: Tensor) -> Any:
        return self.relu(self.bn(self.conv(x) + torch.zeros(1)))


class Branching(Block):
    def forward(self, x: Tensor) -> Any:
        return self.relu(self.bn(x)) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Making, "its forward computes .* of its own"),
        (Branching, r"torch.fx cannot trace its forward \(.*\)"),
    ],
)
def test_a_forward_that_a_trace_would_fix_is_refused(kind: type[Block], sentence: str) -> None:
    block = kind()
    convert(block, "batch")
    with pytest.raises(Refusal, match=sentence):
        fused_class(block, "")


def test_a_hook_of_all_modules_sees_every_call() -> None:
    block = Left()
    convert(block, "batch", fuse=True)
    assert isinstance(block, FusedForward)
    seen: list[str] = []
    block(X)
    handle = register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        block(X)
    finally:
        handle.remove()
    assert seen.count("BatchNorm2d") == 1
    assert block.is_unchanged()


def test_an_attribute_that_may_now_be_anything_gives_the_blocks_own_forward() -> None:
    block: Any = Left()
    block.down = None

    def count(change: Callable[[], None]) -> bool:
        change()
        return bool(block.is_unchanged())

    convert(block, "batch", fuse=True)
    assert block.is_unchanged()
    assert not count(lambda: setattr(block, "gelu", nn.Sequential(nn.GELU())))
    assert count(lambda: setattr(block, "gelu", nn.GELU()))
    del block._modules["gelu"]
    block.__dict__["gelu"] = torch.nn.functional.gelu
    assert not block.is_unchanged()
    torch.testing.assert_close(block(X), torch.relu(block.bn(block.conv(X)) + F.gelu(X)))


def test_a_trace_draws_no_random_numbers() -> None:
    class Draws(Block):
        def forward(self, x: Tensor) -> Any:
            return self.relu(self.bn(self.conv(x))) * random.random()

    block = Draws()
    convert(block, "batch")
    before = random.getstate()
    with pytest.raises(Refusal):
        fused_class(block, "")
    assert random.getstate() == before


def test_arguments_of_an_activation_count_by_place_as_by_name() -> None:
    class Leaky(Block):
        def forward(self, x: Tensor) -> Any:
            return F.leaky_relu(self.bn(self.conv(x)), self.slope, self.inplace)

    class Relu(Block):
        def forward(self, x: Tensor) -> Any:
            return F.relu(self.bn(self.conv(x)), True)

    for slope, inplace, fused in ((0.01, False, True), (0.01, True, True), (0.2, False, False)):
        block: Any = Leaky()
        block.slope, block.inplace = slope, inplace
        expected = block(X)
        assert bool(convert(block, "batch", fuse=True).fused) is fused
        torch.testing.assert_close(block(X), expected)
    block = Relu()
    assert [f.act for f in convert(block, "batch", fuse=True).fused] == ["relu"]


@pytest.mark.slow
def test_a_forward_that_is_refused_leaves_the_compiler_as_it_is() -> None:
    """In a process of its own, in which nothing has been compiled yet."""
    program = """
import sys, torch, normscope, tests.conversion.test_fused_forward as forwards
from normscope.conversion.fused_forward import fused_class
block = forwards.Making()
normscope.convert(block, "batch")
assert "torch._dynamo" not in sys.modules
try:
    fused_class(block, "")
except forwards.Refusal:
    layer = normscope.ConditionalBatchNorm2d(4, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    compiled(torch.randn(4, 4, 5, 5), torch.tensor([0, 1, 2, 0]))
    print("compiled")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == "compiled\n", done.stderr[-600:]
