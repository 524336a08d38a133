"""Which activation modules can go into the norms before them, and why others cannot."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from normscope.conversion import convert
from normscope.conversion.activation_pairs import Pair, activation_of, find_pairs
from normscope.conversion.fused_forward import _stays


def test_which_modules_are_activations_of_norm_layers() -> None:
    own: Any = nn.ReLU()
    own.forward = torch.tanh
    known = {
        nn.ReLU(): "relu", nn.SiLU(): "silu", nn.LeakyReLU(): "leaky_relu",
        nn.LeakyReLU(0.02): None, nn.ReLU6(): None, nn.Identity(): None, own: None,
    }  # fmt: skip
    for module, name in known.items():
        assert activation_of(module) == name


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.BatchNorm1d(3), nn.ReLU(), nn.ReLU()


class ByMode(Two):
    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        return self.a(y) if self.training else self.b(y)


class ByKeyword(Two):
    def forward(self, x: Tensor) -> Any:
        return self.a(self.norm(x)) + self.a(input=x)


class Elsewhere(Two):
    def forward(self, x: Tensor) -> Any:
        return self.a(self.norm(x)) + self.a(x)


class Twice(Two):
    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        return self.a(y) + y


class ToFunction(Two):
    def forward(self, x: Tensor) -> Any:
        return torch.tanh(self.norm(x))


class ToAnother(Two):
    def forward(self, x: Tensor) -> Any:
        return self.b(self.a(x) + 1)


CASES: list[tuple[type[Two], str]] = [
    (ByMode, "its output goes to several modules: a, b"),
    (ByKeyword, "'a' is also given something that is no tensor"),
    (Elsewhere, "'a' is also given the output of 'x'"),
    (Twice, "its output is used 2 times"),
    (ToFunction, "its output goes to 'tanh', which is no activation module"),
    (ToAnother, "forward does not run it by itself"),
]


@pytest.mark.parametrize(("kind", "reason"), CASES)
def test_what_is_no_pair_says_why(kind: type[Two], reason: str) -> None:
    pairs, left = find_pairs(kind(), ["norm"])
    assert pairs == []
    assert {name: str(problem) for name, problem in left.items()} == {"norm": reason}


def test_a_pair_holds_through_identities_and_is_seen_in_both_modes() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Identity(), nn.SiLU(), nn.BatchNorm1d(3))
    pairs, left = find_pairs(model, ["0", "3"])
    assert pairs == [Pair("0", "2", "silu")]
    reason = "its output goes to 'output', which is no activation module"
    assert {name: str(problem) for name, problem in left.items()} == {"3": reason}
    tail = nn.Sequential(nn.BatchNorm1d(3), nn.Tanh())
    _, left = find_pairs(tail, ["0"])
    assert str(left["0"]) == "'1' (Tanh) behind it is no activation that norm layers have"
    assert model.training


def test_an_input_stays_where_only_the_norm_sees_it() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    modules: dict[str, nn.Module] = {"conv": nn.Conv1d(1, 1, 1), "act": nn.ReLU()}
    alone, shared, other = (graph.call_module(n, (x,)) for n in ("conv", "conv", "act"))
    function = graph.call_function(torch.tanh, (x,))
    for node in (alone, shared, shared, other, function):
        graph.call_function(torch.relu, (node,))
    assert _stays(alone, modules)
    for source in (shared, other, function, x, 3):
        assert not _stays(source, modules)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_program_inside_does_not_keep_the_layers_around_it() -> None:
    model = nn.Sequential(torch.jit.script(nn.Identity()), nn.BatchNorm1d(3))
    assert [change.name for change in convert(model, "batch").changed] == ["1"]
