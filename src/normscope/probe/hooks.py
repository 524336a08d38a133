"""Hooks around the forwards of layers that leave a program what it is: no pairing, no copies."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

Before = Callable[[str, nn.Module, Tensor], None]  # the layer's name, the layer, its input
After = Callable[[str, Tensor], None]  # the layer's name, its output


def attach(layers: Mapping[str, nn.Module], before: Before, after: After) -> ExitStack:
    """Call `before` and `after` around every forward of `layers` until the result is closed.

    Tensors are detached views of the model's own: not to be kept or written to. Inputs and
    outputs that are no tensor of two or more axes are passed over. Unlike `observe` it pairs no
    activations and leaves compiled code compiled, so that a training step stays what it is.
    """

    def enter(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and args[0].dim() > 1:
                before(name, module, args[0].detach())

        return hook

    def leave(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() > 1:
                after(name, output.detach())

        return hook

    attached = ExitStack()
    for name, module in layers.items():
        attached.callback(module.register_forward_pre_hook(enter(name)).remove)
        attached.callback(module.register_forward_hook(leave(name)).remove)
    return attached


def keep_outputs(layers: Mapping[str, nn.Module], kept: dict[str, Any]) -> ExitStack:
    """Put the first output of every layer into `kept`, as it is, until the result is closed."""

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            kept.setdefault(name, output)

        return hook

    attached = ExitStack()
    for name, module in layers.items():
        attached.callback(module.register_forward_hook(keep(name)).remove)
    return attached
