"""Linear layers and batch norms of any program of torch, seen where their operators run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# where each operator keeps its input, weight and bias; the axis of its channels
_LINEAR: dict[str, tuple[int, int, int, int]] = {
    "aten::convolution": (0, 1, 2, 1),
    "aten::_convolution": (0, 1, 2, 1),
    "aten::addmm": (1, 2, 0, -1),
    "aten::mm": (0, 1, -1, -1),
    "aten::linear": (0, 1, 2, -1),
}
# a norm that became two operators: a product and a sum with a tensor per channel
_AFFINE = {"aten::mul": "scale", "aten::add": "shift"}
_TURNED = ("aten::addmm", "aten::mm")
# the norms' arguments behind input, weight, bias, running_mean, running_var
_NORMS: dict[str, tuple[str, ...]] = {
    "aten::batch_norm": ("training", "momentum", "eps"),
    "aten::native_batch_norm": ("training", "momentum", "eps"),
    "aten::cudnn_batch_norm": ("training", "momentum", "eps"),
    "aten::miopen_batch_norm": ("training", "momentum", "eps"),
    "aten::_native_batch_norm_legit": ("training", "momentum", "eps"),
    "aten::_native_batch_norm_legit_functional": ("training", "momentum", "eps"),
    "aten::_native_batch_norm_legit_no_training": ("momentum", "eps"),
    "aten::_batch_norm_with_update": ("momentum", "eps"),
    "aten::_batch_norm_no_update": ("momentum", "eps"),
}
_TRAINS = {"aten::_batch_norm_with_update": True}
SIGNS = 8_209  # random ones
QUANTISING = ("quantized_decomposed", "quantized", "torchao")  # namespaces of such operators


@dataclass(frozen=True, eq=False)
class OperatorCall:
    """One run of a linear operator or a batch norm; tensors are the program's own.

    Attributes:
        kind: "linear" or "norm"; "scale" and "shift" for a product and a sum per channel with a
            tensor that has a name.
        name: of the module that owns its tensors; "" where they have no name.
        operator: as torch calls it.
        axis: of the channels, in input and output.
        tensors: weight, bias, running_mean, running_var, those that there are.
        settings: eps, momentum, training, of a norm.
    """

    kind: str
    name: str
    operator: str
    axis: int
    before: Tensor
    after: Tensor
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]


class Operators(TorchDispatchMode):
    """Inside, tell `seen` of every linear operator and batch norm, whatever program runs it.

    Modules, exported programs and TorchScript all come down to the same operators here. With
    `noise` every output of theirs is moved by one rounding error of its channel's largest value,
    up or down: two such runs differ as far as rounding alone can drive the program.

    Attributes:
        quantised: whether an operator of quantised arithmetic ran.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        seen: Callable[[OperatorCall], None],
        *,
        noise: bool = False,
    ) -> None:
        """Take the names of tensors by address, as `addresses` gives them."""
        super().__init__()
        self._names, self._seen, self._noise = names, seen, noise
        self.quantised = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        self.quantised |= name.startswith(QUANTISING)
        linear, norm = _LINEAR.get(name), _NORMS.get(name)
        if name in _AFFINE:
            return self._affine(_AFFINE[name], func, args, kwargs or {})
        if linear is None and norm is None:
            return func(*args, **(kwargs or {}))
        given = _positional(func, args, kwargs or {})
        # what batch norm updates in place is told as it was
        call = None
        if norm is not None:
            tensors, settings = _norm_arguments(name, given, norm, func)
            kept = {n: t.clone() if n.startswith("running") else t for n, t in tensors.items()}
            owner = self._owner(tensors)
            output = func(*args, **(kwargs or {}))
            after = output[0] if isinstance(output, (tuple, list)) else output
            after = self._moved(after, 1)
            call = OperatorCall("norm", owner, name, 1, given[0], after, kept, settings)
            output = (after, *output[1:]) if isinstance(output, (tuple, list)) else after
        else:
            assert linear is not None, "one of the two"
            x, weight, bias, axis = linear
            after = output = self._moved(func(*args, **(kwargs or {})), axis)
            tensors = {"weight": given[weight]}
            if bias >= 0 and isinstance(given[bias], Tensor):
                tensors["bias"] = given[bias]
            owner = self._owner(tensors)
            if name in _TURNED:  # as the layer holds it: (outputs, inputs)
                tensors["weight"] = tensors["weight"].t()
            call = OperatorCall("linear", owner, name, axis, given[x], after, tensors, {})
        self._seen(call)
        return output

    def _affine(self, kind: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = func(*args, **kwargs)
        both = [a for a in args if isinstance(a, Tensor)]
        if len(both) == 2 and isinstance(output, Tensor) and output.dim() > 1:
            x, own = both if both[0].numel() >= both[1].numel() else both[::-1]
            owner = self._names.get(own.data_ptr()) if own.numel() else None
            if owner and own.numel() == output.shape[1] == max(own.shape, default=0):
                name, held = (
                    func._schema.name,
                    {"weight" if kind == "scale" else "bias": own.flatten()},
                )
                self._seen(OperatorCall(kind, owner, name, 1, x, output, held, {}))
        return output

    def _owner(self, tensors: Mapping[str, Tensor]) -> str:
        for tensor in tensors.values():
            if tensor.numel() and (name := self._names.get(tensor.data_ptr())) is not None:
                return name
        return ""

    def _moved(self, output: Tensor, axis: int) -> Tensor:
        if not self._noise or not output.is_floating_point() or not output.numel():
            return output
        axes = [d for d in range(output.dim()) if d != axis % output.dim()]
        size = torch.maximum(output.amax(axes, keepdim=True), -output.amin(axes, keepdim=True))
        size = size.nan_to_num(0, 0, 0) * torch.finfo(output.dtype).eps
        return torch.addcmul(output, self._signs(output), size)

    def _signs(self, output: Tensor) -> Tensor:
        """Return +1 and -1 at random; a prime number of them in turn, as drawing each is slow."""
        signs = torch.empty(min(SIGNS, output.numel()), dtype=output.dtype, device=output.device)
        signs = signs.bernoulli_().mul_(2).sub_(1)
        times = -(-output.numel() // len(signs))
        return signs.repeat(times)[: output.numel()].view(output.shape)


def addresses(program: nn.Module) -> dict[int, str]:
    """Map where the tensors of a module or program lie to the module that owns them."""
    found: dict[int, str] = {}
    for name, tensor in [*program.named_parameters(), *program.named_buffers()]:
        if tensor.numel() and tensor.layout is torch.strided and not tensor.is_meta:
            owner = ".".join(part for part in name.split(".")[:-1] if part != "_orig_mod")
            found.setdefault(tensor.data_ptr(), owner)
    return found


def _positional(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Put all arguments in the order of the schema."""
    arguments = func._schema.arguments
    rest = arguments[len(args) :]
    return [*args, *(kwargs.get(a.name, a.default_value) for a in rest)]


def _norm_arguments(
    name: str, given: list[Any], behind: tuple[str, ...], func: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    names = [argument.name for argument in func._schema.arguments]
    by_name = dict(zip(names, given, strict=False))
    tensors = {
        key: by_name[key]
        for key in ("running_mean", "running_var", "weight", "bias")
        if isinstance(by_name.get(key), Tensor)
    }
    other = {"epsilon": "eps", "exponential_average_factor": "momentum"}
    settings = {other.get(key, key): value for key, value in by_name.items()}
    found = {key: settings[key] for key in behind if key in settings}
    found.setdefault("training", _TRAINS.get(name, False))
    return tensors, found
