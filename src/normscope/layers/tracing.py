"""Symbolic tracing keeps a layer whole: what it does follows its mode and the tensors it gets."""

from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy


def is_traced(x: object) -> bool:
    """Return whether torch.fx traces with x in the place of a tensor."""
    return isinstance(x, Proxy)


def one_step(layer: nn.Module, input: Any, *more: Any) -> Tensor:
    """Put one call of the layer into the graph that is being traced."""
    tracer = input.tracer
    own = tracer.create_proxy("get_attr", tracer.path_of_module(layer), (), {})
    y: Tensor = tracer.create_proxy("call_function", normalised, (own, input, *more), {})
    return y


def normalised(layer: nn.Module, *given: Any) -> Tensor:
    """Run a layer's forward without what a derived class of another origin adds around it."""
    origins = [vars(c) for c in type(layer).__mro__ if c.__module__.startswith("normscope.layers.")]
    y: Tensor = next(own["forward"] for own in origins if "forward" in own)(layer, *given)
    return y
