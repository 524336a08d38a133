"""Linear layers and batch norms of any program of torch, seen where their operators run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# the axis of the channels that a linear operator puts out
_LINEAR = {
    "aten::convolution": 1,
    "aten::_convolution": 1,
    "aten::addmm": -1,
    "aten::mm": -1,
    "aten::linear": -1,
}
# where arguments have other names; these hold the weight transposed
_TURNED = {
    "aten::addmm": {"input": "mat1", "weight": "mat2", "bias": "self"},
    "aten::mm": {"input": "self", "weight": "mat2"},
}
# a norm that became two operators: a product and a sum with a tensor per channel
_AFFINE = {"aten::mul": "scale", "aten::add": "shift"}
_TRAINS = "aten::_batch_norm_with_update"
_NORMS = frozenset({
    "aten::batch_norm", "aten::native_batch_norm", "aten::cudnn_batch_norm",
    "aten::miopen_batch_norm", "aten::_native_batch_norm_legit",
    "aten::_native_batch_norm_legit_functional", "aten::_native_batch_norm_legit_no_training",
    _TRAINS, "aten::_batch_norm_no_update",
})  # fmt: skip
_HELD = ("running_mean", "running_var", "weight", "bias")
_SETTINGS = {"training": "training", "momentum": "momentum", "eps": "eps",
             "epsilon": "eps", "exponential_average_factor": "momentum"}  # fmt: skip
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
        self._series: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self.quantised = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        self.quantised |= name.startswith(QUANTISING)
        if name in _AFFINE:
            return self._affine(_AFFINE[name], func, args, kwargs or {})
        norm = name in _NORMS
        if not norm and name not in _LINEAR:
            return func(*args, **(kwargs or {}))
        given = {a.name: a.default_value for a in func._schema.arguments}
        given |= zip(given, args, strict=False)  # kwargs are alpha and beta alone
        names = _TURNED.get(name, {})
        settings: dict[str, Any] = {}
        before = given[names.get("input", "input")]
        held = {k: t for k in _HELD if isinstance(t := given.get(names.get(k, k)), Tensor)}
        owner = self._owner(held)
        if norm:
            settings = {_SETTINGS[k]: value for k, value in given.items() if k in _SETTINGS}
            settings.setdefault("training", name == _TRAINS)
            # what it updates in place is told as it was
            held = {k: t.clone() if k.startswith("running") else t for k, t in held.items()}
        if name in _TURNED:  # as the layer holds it: (outputs, inputs)
            held["weight"] = held["weight"].t()
        output = func(*args, **(kwargs or {}))
        several = isinstance(output, (tuple, list))
        axis = _LINEAR.get(name, 1)
        after = self._moved(output[0] if several else output, axis)
        kind = "norm" if norm else "linear"
        self._seen(OperatorCall(kind, owner, name, axis, before, after, held, settings))
        return (after, *output[1:]) if several else after

    def _affine(self, kind: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = func(*args, **kwargs)
        both = [a for a in args if isinstance(a, Tensor)]
        if len(both) == 2 and isinstance(output, Tensor) and output.dim() > 1:
            x, own = both if both[0].numel() >= both[1].numel() else both[::-1]
            owner = self._names.get(own.data_ptr()) if own.numel() else None
            if owner and own.numel() == output.shape[1] == max(own.shape, default=0):
                held = {"weight" if kind == "scale" else "bias": own.flatten()}
                call = OperatorCall(kind, owner, func._schema.name, 1, x, output, held, {})
                self._seen(call)
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
        """Return +1 and -1 in the strides of an output, from a place of the series at random.

        The series is a prime number of signs over and over, as drawing each is slow.
        """
        like = torch.empty_like(output)  # what overlaps has other strides here
        series = self._series.get((like.dtype, like.device), like[:0].flatten())
        if len(series) < like.numel() + SIGNS:
            once = like.new_empty(SIGNS).bernoulli_().mul_(2).sub_(1)
            series = once.repeat(like.numel() // SIGNS + 2)
            self._series[like.dtype, like.device] = series
        begin = int(torch.randint(SIGNS, ()))
        return series.as_strided(like.shape, like.stride(), begin)


def addresses(program: nn.Module) -> dict[int, str]:
    """Map where the tensors of a module or program lie to the module that owns them."""
    found: dict[int, str] = {}
    for name, tensor in [*program.named_parameters(), *program.named_buffers()]:
        if tensor.numel() and tensor.layout is torch.strided and not tensor.is_meta:
            owner = ".".join(part for part in name.split(".")[:-1] if part != "_orig_mod")
            found.setdefault(tensor.data_ptr(), owner)
    return found
