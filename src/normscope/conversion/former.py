"""What a layer was before it was changed, and the way back."""

from typing import Any, NamedTuple, TypeGuard

from torch import Tensor, nn

TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class Former(NamedTuple):
    """A layer before its change.

    Attributes:
        layer: it.
        cls: its class.
        state: its attributes; None where only the class changed.
        data: contents and gradients of parameters that change their shape.
    """

    layer: nn.Module
    cls: type[nn.Module]
    state: dict[str, Any] | None
    data: dict[str, tuple[Tensor, Tensor | None]]


def remembered(layer: nn.Module) -> Former:
    """Record the layer as it is now."""
    state = dict(layer.__dict__)
    for table in TABLES:
        state[table] = state[table].copy()
    return Former(layer, type(layer), state, {})


def undo(former: list[Former]) -> None:
    """Make the layers what they were, the last change first; what was trained since stays."""
    for layer, cls, state, data in reversed(former):
        layer.__class__ = cls
        if state is None:
            continue
        now, training = {**layer._parameters, **layer._buffers}, layer.training
        for name, parameter in state["_parameters"].items():
            current = now.get(name)
            if name in data:
                content, grad = data[name]
                parameter.data = content.to(parameter.device, parameter.dtype)
                parameter.grad = None if grad is None else grad.to(parameter)
            elif _is_newer(current, parameter):
                parameter.data = current.detach()
        for name, buffer in state["_buffers"].items():
            current = now.get(name)
            if _is_newer(current, buffer):
                state["_buffers"][name] = current.detach()
        layer.__dict__.clear()
        layer.__dict__.update(state)
        layer.training = training


def _is_newer(current: Tensor | None, old: Tensor | None) -> TypeGuard[Tensor]:
    """Return whether a tensor replaced another of the same shape, perhaps moved or trained."""
    if current is None or old is None or current is old:
        return False
    return current.shape == old.shape
