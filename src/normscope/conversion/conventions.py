"""Checkpoints of other libraries: names, eps, momentum and variance as torch has them."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from normscope.errors import InputError

KERAS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
FLAX = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
COLLECTIONS = ("params", "batch_stats")


class Imported(NamedTuple):
    """The batch norms of another library's checkpoint, for layers of torch or of normscope.

    Attributes:
        state: "name.weight", "name.bias", "name.running_mean", "name.running_var", each (C,), and
            "name.num_batches_tracked", 0 where the other library does not count.
        eps: for the layers.
        momentum: for the layers, torch's: the share of the new batch.
        rest: names of the entries that are not in `state`: of no batch norm with both statistics.
    """

    state: dict[str, Tensor]
    eps: float
    momentum: float
    rest: tuple[str, ...]


def from_keras(
    weights: Mapping[str, Any], *, eps: float = 1e-3, momentum: float = 0.99, count: int = 0
) -> Imported:
    """Read the batch norms of a Keras model.

        weight = gamma, bias = beta, running_mean = moving_mean, running_var = moving_variance
        momentum = 1 - Keras's momentum

    Args:
        weights: arrays by path, as `{v.path: v.numpy() for v in model.variables}` gives them:
            "block/bn/gamma" or "block/bn/gamma:0" becomes "block.bn.weight". Any floating dtype,
            (C,), or of length 1 in the other axes.
        eps: `epsilon` of the Keras layers.
        momentum: of the Keras layers: the share of the old value.
        count: 0 keeps the variance as it is, so that eval() computes the same. Else the values
            per channel and batch in training, n >= 2: running_var = moving_variance * n / (n - 1),
            which is what torch would have stored, for layers that go on training. Keras stores
            the population variance; the fused kernel of TensorFlow stores n / (n - 1) already.

    A layer with scale=False or center=False gets a weight of ones or a bias of zeros; with both
    it has neither (affine=False).

    Raises:
        InputError: no batch norm with both statistics, shapes that differ, momentum outside [0, 1],
            eps below 0, or a count of 1.

    Source: https://keras.io/api/layers/normalization_layers/batch_normalization/

    >>> import normscope
    >>> import numpy as np
    >>> names = ("gamma", "beta", "moving_mean", "moving_variance")
    >>> found = normscope.from_keras({f"bn/{name}": np.ones(3) for name in names})
    >>> found.state["bn.running_var"]
    tensor([1., 1., 1.], dtype=torch.float64)
    """
    entries = {
        tuple(name.removesuffix(":0").split("/")): (name, value) for name, value in weights.items()
    }
    return _imported("Keras", entries, KERAS, eps, momentum, count)


def from_flax(
    variables: Mapping[str, Any], *, eps: float = 1e-5, momentum: float = 0.99, count: int = 0
) -> Imported:
    """Read the batch norms of a Flax model, linen or nnx.

        weight = scale, bias = bias, running_mean = mean, running_var = var
        momentum = 1 - Flax's momentum

    Args:
        variables: of linen, {"params": ..., "batch_stats": ...}; of nnx, `nnx.to_pure_dict` of its
            state. Nested, or flat with "/" in the names; "block/bn" becomes "block.bn". Any
            floating dtype, (C,).
        eps: `epsilon` of the Flax layers.
        momentum: of the Flax layers: the share of the old value. Flax's default is 0.99.
        count: as for `from_keras`; Flax stores the population variance.

    Layers without scale or bias: as for `from_keras`.

    Raises:
        InputError: as for `from_keras`.

    Source: https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/nn/normalization.html

    >>> import normscope
    >>> import numpy as np
    >>> affine = {"scale": np.ones(3), "bias": np.zeros(3)}
    >>> stored = {"mean": np.zeros(3), "var": np.ones(3)}
    >>> variables = {"params": {"bn": affine}, "batch_stats": {"bn": stored}}
    >>> found = normscope.from_flax(variables, momentum=0.9)
    >>> round(found.momentum, 3), len(found.state)
    (0.1, 5)
    """
    entries = {}
    for path, value in _leaves(variables):
        short = path[1:] if path[0] in COLLECTIONS else path
        entries[short] = ("/".join(path), value)
    return _imported("Flax", entries, FLAX, eps, momentum, count)


def from_inplace_abn(
    state: Mapping[str, Tensor], *, eps: float = 1e-5, only: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Read a state dict with the InPlaceABN layers of inplace_abn, for plain batch norm.

        weight = abs(weight) + eps

    is what InPlaceABN scales with: its activation must be invertible, so its scale is positive.
    All other entries stay: names, momentum and the unbiased running variance are torch's. The
    activation (leaky_relu with slope 0.01, unless told) is no part of a state dict: put it behind.

    Args:
        state: the whole state dict.
        eps: of the InPlaceABN layers.
        only: patterns of layer names, as "encoder.*"; empty: all layers with running statistics.
            Layers of class `ABN`, and plain batch norms beside, scale with their weight as it is:
            leave them out.

    Raises:
        InputError: no layer with running statistics and weight, or a pattern that fits none.

    Source: https://github.com/mapillary/inplace_abn, README, note 3.

    >>> import torch
    >>> import normscope
    >>> state = torch.nn.BatchNorm1d(2).state_dict() | {"weight": torch.tensor([-1.0, 1.0])}
    >>> normscope.from_inplace_abn(state)["weight"]
    tensor([1.0000, 1.0000])
    """
    ending = ".running_var"
    names = [key.removesuffix(ending) for key in state if f".{key}".endswith(ending)]
    names = ["" if name == ending[1:] else name for name in names]
    layers = {name: f"{name}.weight".lstrip(".") for name in names}
    layers = {name: key for name, key in layers.items() if key in state}
    if not layers:
        raise InputError("there is no batch norm with a weight in this inplace_abn checkpoint")
    patterns = tuple(only)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise InputError(
                f"no batch norm is called {pattern!r}; there is {', '.join(list(layers)[:5])}"
            )
    chosen = {
        key
        for name, key in layers.items()
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    return {key: t.detach().abs() + eps if key in chosen else t for key, t in state.items()}


Path = tuple[str, ...]


def _imported(
    library: str,
    entries: Mapping[Path, tuple[str, Any]],
    names: Mapping[str, str],
    eps: float,
    momentum: float,
    count: int,
) -> Imported:
    if not eps >= 0 or not 0 <= momentum <= 1:
        raise InputError(
            f"eps must be at least 0 and momentum from 0 to 1; got eps={eps}, momentum={momentum}"
        )
    if count < 0 or count == 1:
        raise InputError(
            f"count must be 0, or the values per channel and batch, at least 2; got {count}"
        )
    mean, var = (key for key, ours in names.items() if ours.startswith("running"))
    state: dict[str, Tensor] = {}
    taken: set[Path] = set()
    for layer in [path[:-1] for path in entries if path[-1] == mean]:
        if (*layer, var) not in entries:
            continue
        title = "/".join(layer) or "the layer"
        found = {key: (*layer, key) for key in names if (*layer, key) in entries}
        taken.update(found.values())
        tensors = {names[k]: _row(f"{title}/{k}", entries[p][1]) for k, p in found.items()}
        shapes = {tuple(tensor.shape) for tensor in tensors.values()}
        if len(shapes) > 1:
            sizes = ", ".join(f"{k} {tuple(tensors[names[k]].shape)}" for k in found)
            raise InputError(f"{title} has tensors of several shapes: {sizes}")
        statistics = tensors["running_mean"]
        if "weight" in tensors or "bias" in tensors:
            tensors.setdefault("weight", torch.ones_like(statistics))
            tensors.setdefault("bias", torch.zeros_like(statistics))
        if count:
            tensors["running_var"] = tensors["running_var"] * (count / (count - 1))
        tensors["num_batches_tracked"] = torch.tensor(0)
        state |= {".".join((*layer, key)): tensor for key, tensor in tensors.items()}
    if not state:
        raise InputError(
            f"there is no batch norm in this {library} checkpoint: no layer has {mean} and {var}"
        )
    rest = tuple(name for path, (name, _) in entries.items() if path not in taken)
    return Imported(state, eps, 1 - momentum, rest)


def _leaves(variables: Mapping[str, Any], above: Path = ()) -> list[tuple[Path, Any]]:
    found: list[tuple[Path, Any]] = []
    for key, value in variables.items():
        path = (*above, *str(key).split("/"))
        found += _leaves(value, path) if isinstance(value, Mapping) else [(path, value)]
    return found


def _row(name: str, value: Any) -> Tensor:
    """Copy an array of any library to a tensor of its own, (C,)."""
    if not isinstance(value, Tensor):
        array = np.array(value)
        # bfloat16 of other libraries is no dtype of numpy's own
        value = torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "V" else array)
    if not value.is_floating_point() or value.squeeze().dim() > 1:
        raise InputError(
            f"{name} must hold floating point numbers, one per channel; got "
            f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
        )
    row: Tensor = value.detach().clone().reshape(-1)
    return row
