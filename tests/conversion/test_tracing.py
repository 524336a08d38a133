"""Hooks that a trace would not record, and models of which a part cannot be traced."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normscope.conversion.kinds import Refusal
from normscope.conversion.tracing import (
    PartialTracer,
    check_unwatched,
    has_hook,
    without_hooks,
)


def ignore(*args: Any) -> None:
    return None


HOOKS: Any = {
    "forward": lambda m: m.register_forward_hook(ignore),
    "before": lambda m: m.register_forward_pre_hook(ignore),
    "backward": lambda m: m.register_full_backward_hook(ignore),
    "before backward": lambda m: m.register_full_backward_pre_hook(ignore),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_of_every_kind_are_seen_and_taken_off(kind: str) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    assert not has_hook(model)
    HOOKS[kind](model[0][0])
    HOOKS[kind](model)
    assert has_hook(model)
    assert has_hook(model[0][0])
    assert not has_hook(model[0]), "of the module itself"
    assert without_hooks(model) is model
    assert not any(has_hook(module) for module in model.modules())


def test_a_hook_matters_on_what_holds_one_of_the_modules_and_not_the_others() -> None:
    def tree() -> tuple[nn.Module, dict[str, nn.Module]]:
        pair = nn.Sequential(nn.Sequential(nn.BatchNorm1d(2)), nn.ReLU())
        model = nn.Sequential(pair, nn.Linear(2, 2))
        return model, dict(model.named_modules())

    path = ["0.0.0", "0.1"]
    for name in ("0.0.0", "0.0", "0.1"):
        _, modules = tree()
        modules[name].register_forward_hook(ignore)
        with pytest.raises(Refusal, match=f"'{name}' has a hook, which sees what lies between"):
            check_unwatched(path, modules)
    for name in ("", "0", "1"):
        _, modules = tree()
        modules[name].register_forward_hook(ignore)
        check_unwatched(path, modules)


class Branches(nn.Module):
    """What no trace can follow, behind a part that it can."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.ReLU(), nn.ReLU())

    def forward(self, x: Tensor) -> Any:
        y = self.inner(x)
        return y if bool(y.sum() > 0) else -y


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.odd, self.b = nn.ReLU(), Branches(), nn.Sequential(nn.Tanh())

    def forward(self, x: Tensor, scale: float = 2.0, twice: bool = False) -> Any:
        y = self.b(self.odd(self.a(x))) * scale
        return y + y if twice else y


def test_what_cannot_be_traced_is_one_step() -> None:
    model = Model()
    model.a.register_forward_hook(ignore)
    tracer = PartialTracer()
    assert tracer.opaque == {}
    graph = tracer.trace_defaults(model)
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    assert calls == ["a", "odd", "b.0"]
    assert list(tracer.opaque) == ["odd"]
    assert "control flow" in tracer.opaque["odd"]
    graph.lint()
    assert not has_hook(model.a)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    assert [str(node.target) for node in inputs][:1] == ["x"]
    made = torch.fx.GraphModule(model, graph)
    x = torch.ones(2, 3)
    torch.testing.assert_close(made(x), model(x))
    stacks = {str(n.target): n.meta.get("nn_module_stack") for n in graph.nodes}
    assert list(stacks["b.0"]) == ["b", "b.0"], "the stack is as before the part that failed"
