"""A layer that runs several times in a forward, with statistics of its own for each call."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from normscope.errors import InputError, ModelError


class PerCall(nn.Module):
    """Copies of one layer that take turns: the first call in a forward goes to the first copy.

    Scale and shift are shared, so it trains and counts parameters as before; running statistics
    are each copy's own.

    Args:
        layer: the layer, which becomes the first copy.
        calls: how often it runs in one forward of the model.

    Raises:
        ModelError: in forward, a call more than there are copies.
    """

    def __init__(self, layer: nn.Module, calls: int) -> None:
        super().__init__()
        self.calls = nn.ModuleList([layer, *(copy.deepcopy(layer) for _ in range(calls - 1))])
        for other in self.calls[1:]:
            other._parameters.update(layer._parameters)
        self.made = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the copy whose turn it is; return its output."""
        if self.made == len(self.calls):
            raise ModelError(
                f"a layer that was split for {len(self.calls)} calls runs once more in this "
                "forward; split the unchanged model again, with data like these"
            )
        self.made += 1
        return self.calls[self.made - 1](*args, **kwargs)


def split(model: nn.Module, calls: Mapping[str, int]) -> nn.Module:
    """Put `PerCall` in the place of layers, in `model` itself; to load what was saved after it.

        model = split(make(), {"norm": 3})
        model.load_state_dict(read_weights(path))

    The model computes what it did until the copies' statistics differ. Counting begins anew with
    each forward of `model`, which must be called as a whole.

    Args:
        model: changed in place.
        calls: layer name -> how often it runs in one forward.

    Raises:
        InputError: a name that the model does not have, or fewer than two calls.
    """
    modules = dict(model.named_modules())
    for name, number in calls.items():
        if not name or name not in modules:
            raise InputError(f"no layer inside the model is called {name!r}; see named_modules()")
        if number < 2:
            raise InputError(f"{name} is to be split for {number} calls; 2 or more are needed")
    for name, number in calls.items():
        made = PerCall(modules[name], number).train(modules[name].training)
        # one object may stand at several places
        for parent in modules.values():
            for key, child in parent._modules.items():
                if child is modules[name]:
                    parent._modules[key] = made
    if calls:
        model.register_forward_pre_hook(_begin)
    return model


def _begin(model: nn.Module, _: Any) -> None:
    for module in model.modules():
        if isinstance(module, PerCall):
            module.made = 0
