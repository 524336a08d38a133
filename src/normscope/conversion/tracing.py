"""Trace a model with torch.fx as far as that goes."""

import inspect
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import fx, nn

from normscope.conversion.kinds import Refusal
from normscope.probe.load import reason

# where a module keeps the hooks that a trace does not record
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def without_hooks(module: nn.Module) -> nn.Module:
    """Remove all hooks in a module; return it."""
    for inner in module.modules():
        for hooks in HOOKS:
            getattr(inner, hooks).clear()
    return module


def has_hook(module: nn.Module) -> bool:
    """Return whether a hook would see what the module gets or gives."""
    own = module.__dict__
    return any(own.get(hooks) for hooks in HOOKS)


def check_unwatched(path: Iterable[str], modules: Mapping[str, nn.Module]) -> None:
    """Refuse a hook on these modules, or on what contains one of them but not the others.

    Raises:
        Refusal: there is one.
    """
    around = [{name[:i] for i, c in enumerate(f"{name}.") if c == "."} for name in path]
    for name in sorted(set[str].union(*around) - set[str].intersection(*around)):
        if has_hook(modules[name]):
            raise Refusal(f"{name!r} has a hook, which sees what lies between")


class PartialTracer(fx.Tracer):
    """Go around the parts of a model that cannot be traced.

    Attributes:
        opaque: those parts by name, with the reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self.opaque: dict[str, str] = {}

    def trace_defaults(self, model: nn.Module) -> fx.Graph:
        """Trace what forward does with its default arguments; the model's hooks are removed."""
        without_hooks(model)
        given = inspect.signature(model.forward).parameters.values()
        defaults = {p.name: p.default for p in given if p.default is not p.empty}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of defaults that a trace cannot check
            return self.trace(model, defaults)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Take a part that cannot be traced as one step, whatever is in it."""
        before, stack = len(self.graph.nodes), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as problem:
            for node in reversed(list(self.graph.nodes)[before:]):
                self.graph.erase_node(node)
            self.module_stack = stack
            name = self.path_of_module(m)
            self.opaque[name] = reason(problem)
            return self.create_proxy("call_module", name, args, kwargs)
