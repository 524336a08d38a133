"""Hooks around the forwards of layers that leave a program what it is: no pairing, no copies."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Before = Callable[[str, nn.Module, Tensor], None]  # the layer's name, the layer, its input
After = Callable[[str, Tensor], object]  # the layer's name, its output


def attach(
    layers: Mapping[str, nn.Module], before: Before | None, after: After | None
) -> ExitStack:
    """Call `before` and `after` around every forward of `layers` until the result is closed.

    Tensors are detached views of the model's own: not to be kept or written to. Inputs and
    outputs that are no tensor of two or more axes are passed over. Unlike `observe` it pairs no
    activations and leaves compiled code compiled, so that a training step stays what it is.
    """
    attached = ExitStack()

    def on(name: str, module: nn.Module) -> None:
        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            if before and args and isinstance(args[0], Tensor) and args[0].dim() > 1:
                before(name, module, args[0].detach())

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if after and isinstance(output, Tensor) and output.dim() > 1:
                after(name, output.detach())

        if before:
            attached.callback(module.register_forward_pre_hook(enter).remove)
        if after:
            attached.callback(module.register_forward_hook(leave).remove)

    for name, module in layers.items():
        on(name, module)
    return attached


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled code as it was written, where hooks and forwards of its layers count."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and the import takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
