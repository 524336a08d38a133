"""Subjects whose layers nobody can watch or change, each refused in one sentence."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from normscope.errors import ModelError
from normscope.files import shown
from normscope.probe.layers import bare, named_layers

PROGRAMS = {"exported": "an exported program", "torchscript": "a TorchScript program"}


def refuse_traced(model: object, *, parts: bool = True) -> None:
    """Refuse a model that is a program of TorchScript or torch.export; it is not touched.

    Args:
        model: anything that was given as a model.
        parts: refuse a module that contains such a program too.

    Raises:
        ModelError: it is one.
    """
    named: Iterable[tuple[str, object]] = [("", model)]
    if isinstance(model, nn.Module):
        named = named_layers(model)
        if not parts or program_kind(bare(model)) is not None:
            named = [("", bare(model))]
    for name, module in named:
        kind = program_kind(module)
        if kind is not None:
            whose = f"part {shown(name)!r} of the model" if name else "the model"
            raise ModelError(
                f"{whose} is {PROGRAMS[kind]} ({type(module).__name__}): its mode and layers "
                "were fixed when it was traced; give the module it was made from"
            )


def refuse_unready(model: nn.Module, *, writes: bool = False) -> None:
    """Refuse a model whose tensors hold no numbers, or cannot be written to; it is not touched.

    Args:
        model: any module.
        writes: its parameters or buffers are to be changed.

    Raises:
        ModelError: a lazy layer, a tensor on the meta device, or with `writes` one that was made
            under torch.inference_mode().
    """
    for place, module in named_layers(model):
        if "_hf_hook" in vars(module):  # accelerate brings the numbers when the layer runs
            continue
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            where = shown(f"{place}.{name}" if place else name)
            if tensor is None:
                continue
            if is_lazy(tensor):
                raise ModelError(
                    f"{where} has no shape yet (a lazy layer); run the model once on a batch before"
                )
            if tensor.is_meta:
                raise ModelError(
                    f"{where} is on the meta device and holds no numbers; "
                    "call model.to_empty(device=...) and load its weights before"
                )
            if writes and tensor.is_inference():
                raise ModelError(
                    f"{where} was made under torch.inference_mode(), so it cannot be changed; "
                    "make the model outside of it, or give copy.deepcopy(model)"
                )


def check_runnable(model: nn.Module, *, writes: bool = False) -> None:
    """Refuse what a pass cannot run or see into; see `refuse_traced` and `refuse_unready`."""
    refuse_traced(model)
    refuse_unready(model, writes=writes)


def program_kind(module: object) -> Literal["exported", "torchscript"] | None:
    """Return what kind of program a module is; None where it is none."""
    if isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        return "torchscript"
    if type(module).__module__.startswith("torch.export"):
        return "exported"
    if isinstance(module, fx.GraphModule):
        operators = (n.target for n in module.graph.nodes if n.op == "call_function")
        fixed = any(isinstance(op, torch._ops.OpOverload) and "norm" in str(op) for op in operators)
        # torch.export puts methods that raise over train() and eval()
        return "exported" if fixed or "train" in vars(module) else None
    return None
