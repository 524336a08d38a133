"""Symbolic tracing keeps a layer whole: what it does follows its mode and the tensors it gets."""

from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Proxy


def is_traced(x: object) -> bool:
    """Return whether torch.fx traces with x in the place of a tensor."""
    return isinstance(x, Proxy)


def one_step(layer: nn.Module, input: Any, *more: Any) -> Tensor:
    """Put one call of the layer into the graph that is being traced."""
    tracer = input.tracer
    own = tracer.create_proxy("get_attr", tracer.path_of_module(layer), (), {})
    y: Tensor = tracer.create_proxy("call_function", normalised, (own, input, *more), {})
    return y


def as_calls(model: nn.Module) -> None:
    """Let the graphs in a model call a layer as a module, where `one_step` says the same."""
    for part in model.modules():
        if not isinstance(part, GraphModule):
            continue
        for node in part.graph.find_nodes(op="call_function", target=normalised):
            own, *given = node.args
            layer = part.get_submodule(own.target)
            if node.kwargs or not type(layer).__module__.startswith("normscope.layers."):
                continue  # a derived class adds to what the step does
            while given[1:] and given[-1] is None:
                del given[-1]
            with part.graph.inserting_before(node):
                call = part.graph.call_module(own.target, tuple(given))
            call.meta = node.meta
            node.replace_all_uses_with(call)
            part.graph.erase_node(node)
            if not own.users:
                part.graph.erase_node(own)
        part.recompile()


def normalised(layer: nn.Module, *given: Any) -> Tensor:
    """Run a layer's forward without what a derived class of another origin adds around it."""
    origins = [vars(c) for c in type(layer).__mro__ if c.__module__.startswith("normscope.layers.")]
    y: Tensor = next(own["forward"] for own in origins if "forward" in own)(layer, *given)
    return y
