"""A model as it was, and the way back: what every remedy can be undone with."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normscope import probe

TABLES = (
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_forward_pre_hooks",
)


class Memory:
    """Modes, classes, attributes and tensors of everything that a remedy may change.

    Contents are copied of normalisation layers and of the biases before them; other weights no
    remedy touches.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = {id(norm.module) for norm in probe.find_norms(model)}
        norms |= {id(m) for m in model.modules() if isinstance(m, _BatchNorm)}
        self._modules: list[tuple[nn.Module, type[nn.Module], dict[str, Any]]] = []
        self._contents: list[tuple[Tensor, Tensor]] = []
        for module in model.modules():
            state = dict(module.__dict__)
            for table in TABLES:
                state[table] = state[table].copy()
            self._modules.append((module, type(module), state))
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            bias = module._parameters.get("bias")
            kept = own if id(module) in norms else [] if bias is None else [bias]
            self._contents += [(tensor, tensor.detach().clone()) for tensor in kept]

    def rollback(self) -> None:
        """Everything as it was: the same objects, classes, modes and bytes."""
        for module, kind, state in self._modules:
            module.__class__ = kind
            tables = {name: state[name].copy() for name in TABLES}
            module.__dict__.clear()
            module.__dict__.update(state | tables)
        with torch.no_grad():
            for tensor, content in self._contents:
                tensor.data.copy_(content)
