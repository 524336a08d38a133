"""Run a model and hand it back as it was; remember one and take it back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from normscope.probe.frozen import check_runnable
from normscope.probe.layers import find_norms
from normscope.probe.random import kept_generators


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Run `model` in eval mode without gradients, and hand it back as it was.

    Modes are set and restored per module (an overridden `train()` is not called), other ranks of
    DistributedDataParallel are not waited for, buffers that
    were replaced or written to get their old identity and content, parameters their grad flags,
    and the state of every random generator returns to where it was, also after an exception or
    Ctrl-C.

    Raises:
        ModelError: a program of TorchScript or torch.export, a lazy or a meta model.
    """
    modules = list(model.modules())
    check_runnable(model)
    modes = [module.training for module in modules]
    tables = [dict(module._buffers) for module in modules]
    shared = [m for m in modules if isinstance(m, DistributedDataParallel) and m.broadcast_buffers]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    contents = [(buffer, buffer.clone()) for buffer in model.buffers() if not buffer.is_inference()]
    with torch.no_grad(), kept_generators():
        try:
            for module in modules:
                module.training = False
            for wrapper in shared:  # rank 0's buffers would be sent to all before a forward
                wrapper.broadcast_buffers = False
            yield
        finally:
            for wrapper in shared:
                wrapper.broadcast_buffers = True
            for module, mode, table in zip(modules, modes, tables, strict=True):
                module.training = mode
                module._buffers.clear()
                module._buffers.update(table)
            for buffer, content in contents:
                # not by its version: torch's batch norm writes its statistics without counting one
                if not torch.equal(buffer, content):
                    buffer.copy_(content)
            for parameter, flag in wanted:
                if parameter.requires_grad != flag:
                    parameter.requires_grad_(flag)


TABLES = (
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_forward_pre_hooks",
)


class ModelSnapshot:
    """Modes, classes, attributes and tensors of everything that a repair may change.

    Contents are copied of the layers in `norms` and of all biases; other weights no repair
    touches.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = {id(norm.module) for norm in find_norms(model)}
        self._modules: list[tuple[nn.Module, type[nn.Module], dict[str, Any]]] = []
        self._contents: list[tuple[Tensor, Tensor]] = []
        for module in model.modules():
            state = dict(module.__dict__)
            for table in TABLES:
                state[table] = state[table].copy()
            self._modules.append((module, type(module), state))
            bias = module._parameters.get("bias")
            kept: list[Tensor] = [] if bias is None else [bias]
            if id(module) in norms:
                kept = [*module.parameters(), *module.buffers()]
            self._contents += [(tensor, tensor.detach().clone()) for tensor in kept]

    def rollback(self) -> None:
        """Put everything back as it was: the same objects, classes, modes and bytes."""
        for module, kind, state in self._modules:
            module.__class__ = kind
            tables = {name: state[name].copy() for name in TABLES}
            module.__dict__.clear()
            module.__dict__.update(state | tables)
        with torch.no_grad():
            for tensor, content in self._contents:
                tensor.data.copy_(content)
