"""Checks of the operator's arguments; each error names the value, what is allowed, what to do."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normscope.errors import InputError, ModelError
from normscope.kernels.autograd import is_transformed
from normscope.kernels.dispatch import IMPLS
from normscope.kernels.problem import check_storage
from normscope.kernels.reference import ACTIVATIONS

NAN_MOMENTUM = "momentum is nan; give the share of the batch in the update, or None"
Activation = Literal["relu", "leaky_relu", "silu"]


def rows_needed(num_groups: int, *affine: Tensor | None) -> int:
    """Return the number of group ids that the tables have rows for."""
    return max(num_groups, *(t.shape[0] for t in affine if t is not None and t.dim() == 2), 1)


def check_batch_size(count: int | Tensor, x: Tensor) -> None:
    """Refuse a single value per channel, with torch's sentence and the three ways out."""
    if count == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.shape}; "
            "drop the last batch (drop_last=True), use a larger one, or call eval()"
        )


def check_impl(impl: str) -> None:
    """Refuse an unknown impl."""
    if impl not in IMPLS:
        raise ValueError(f"impl is {impl!r}; it can be {listed(IMPLS)}")


def check_choices(
    eps: float, momentum: float | None, use_batch: bool, act: str | None, impl: str
) -> None:
    """Refuse an unknown impl or act, and an eps or a momentum that is no number to use."""
    check_impl(impl)
    if act is not None and act not in ACTIVATIONS:
        raise ValueError(f"act is {act!r}; it can be None, {listed(ACTIVATIONS)}")
    if not eps >= 0 or (use_batch and eps == 0):  # NaN is not either
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
    if momentum is not None and momentum != momentum:  # in a compiled graph it can be a symbol
        raise ValueError(NAN_MOMENTUM)


def check_settings(eps: float, momentum: float | None) -> None:
    """Refuse an eps or a momentum of a new layer that is not finite."""
    if not _is_finite(eps):  # one below 0 is refused at the first call, where torch refuses it
        raise InputError(f"eps is {eps!r}; it must be a finite number above 0, such as 1e-5")
    if momentum is not None and not _is_finite(momentum):
        raise InputError(NAN_MOMENTUM.replace("nan", repr(momentum)))


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def check_one_group(num_groups: int, rows: int) -> None:
    """Refuse several groups or rows of tables without the group of each sample."""
    if num_groups != 1:
        raise ValueError(f"num_groups is {num_groups} but groups is None; give each sample's group")
    if rows > 1:
        raise ValueError("weight or bias has a row per group but groups is None; give groups")


def check_tensors(
    x: Tensor,
    num_groups: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
) -> None:
    """Refuse ranks, dtypes and sizes that do not fit each other, with torch's errors."""
    if num_groups < 1:
        raise ValueError(f"num_groups is {num_groups}; there is at least 1 group")
    running = {"running_mean": running_mean, "running_var": running_var}
    tables = {**running, "weight": weight, "bias": bias}
    _refuse_others({"x": x, "residual": residual, **tables})
    if x.dim() < 2:
        raise ValueError(f"expected x of (N, C, *S), got {x.dim()}D input")
    if not x.is_floating_point():
        kind = str(x.dtype).removeprefix("torch.")
        raise NotImplementedError(
            f'"batch_norm" not implemented for {kind!r}; give a floating point input'
        )
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    for name, tensor in tables.items():
        if tensor is None:
            continue
        if tensor.dim() not in (1, 2) or tensor.shape[-1] != x.shape[1]:
            found = tensor.shape[-1] if tensor.dim() else 0
            raise RuntimeError(
                f"{name} should contain {x.shape[1]} elements not {found}: "
                f"the input {tuple(x.shape)} has {x.shape[1]} channels"
            )
        _check_device(name, tensor, x)
        if tensor.dtype != x.dtype and not (narrow and tensor.dtype == torch.float32):
            raise RuntimeError(
                f"mixed dtype: {name} is {tensor.dtype}, the input {x.dtype}; all must share the "
                "same datatype, or be torch.float32 for a 16-bit input"
            )
        if name in running and tensor.dim() == 2 and tensor.shape[0] not in (1, num_groups):
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}; num_groups={num_groups} needs "
                f"{(num_groups, x.shape[1])}, or {(x.shape[1],)} for all groups pooled"
            )
    kinds = [(tuple(t.shape), t.dtype) for t in running.values() if t is not None]
    if kinds[1:] and kinds[0] != kinds[1]:
        both = " and ".join(f"{shape} in {dtype}" for shape, dtype in kinds)
        raise ValueError(f"running_mean and running_var are {both}; give both alike")
    rows = rows_needed(num_groups, weight, bias)
    for name, tensor in {"weight": weight, "bias": bias}.items():
        if tensor is not None and tensor.dim() == 2 and tensor.shape[0] not in (1, rows):
            raise ValueError(
                f"{name} has {tensor.shape[0]} rows and there are {rows} groups; give "
                f"{(rows, x.shape[1])}, or {(x.shape[1],)} for all groups"
            )
    if num_groups not in (1, rows):
        raise ValueError(
            f"weight or bias has {rows} rows, but num_groups is {num_groups}; give one row per "
            "group, or num_groups=1 for one set of statistics"
        )
    if residual is not None:
        if residual.shape != x.shape:
            raise ValueError(
                f"residual is {tuple(residual.shape)}; it must be as x {tuple(x.shape)}"
            )
        _check_device("residual", residual, x)
    if not is_transformed():
        for name, tensor in {"x": x, "residual": residual, **tables}.items():
            check_storage(name, tensor)


def _refuse_others(tensors: Mapping[str, object]) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; give a torch.Tensor")
        if tensor is not None and tensor.is_nested:
            raise ValueError(f"{name} is a nested tensor; give a padded one, and mask= beside it")


def _check_device(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {name} is on {tensor.device}, "
            f"the input on {x.device}"
        )


def plain(tensor: Tensor | None) -> Any:
    """Copy the same values to memory that loops can read: no negated view, no zeros alone."""
    if tensor is None:
        return None
    if tensor._is_zerotensor():
        return tensor + torch.zeros(tensor.shape, dtype=tensor.dtype)
    return tensor.resolve_neg()


def checked_groups(groups: Tensor, x: Tensor, num_groups: int, *, look: bool = True) -> Tensor:
    """Check the groups: int64 on x's device, each in 0..num_groups-1.

    That is not asked under a compiler, nor without `look`: it waits for the device.
    """
    _refuse_others({"groups": groups})
    if groups.dtype.is_floating_point or groups.dtype.is_complex or groups.dtype == torch.bool:
        raise TypeError(f"groups are {groups.dtype}; they must be integers, one per sample")
    if groups.shape != (x.shape[0],):
        raise ValueError(
            f"groups are {tuple(groups.shape)}; one per sample is needed: ({x.shape[0]},)"
        )
    if not is_transformed():
        check_storage("groups", groups)
    groups = groups.to(device=x.device, dtype=torch.int64)
    if look and groups.numel() and not (is_transformed() or groups.is_meta):
        lowest, highest = groups.aminmax()
        if int(lowest) < 0 or int(highest) >= num_groups:
            wrong = int(((groups < 0) | (groups >= num_groups)).nonzero()[0])
            raise InputError(
                f"group {int(groups[wrong])} of sample {wrong} is outside 0..{num_groups - 1}"
            )
    return groups


def checked_mask(mask: Tensor, x: Tensor) -> Tensor:
    """Return the mask as (N, 1, *S)."""
    _refuse_others({"x": x, "mask": mask})
    if mask.dtype != torch.bool:
        raise TypeError(f"mask is {mask.dtype}; it must be torch.bool, True where a value counts")
    n, positions = x.shape[0], x.shape[2:]
    if mask.shape == (n,):
        mask = mask.reshape(n, *[1] * (x.dim() - 1))
    elif mask.shape == (n, *positions):
        mask = mask.unsqueeze(1)
    elif mask.shape != (n, 1, *positions):
        raise ValueError(
            f"mask is {tuple(mask.shape)}; it must be {(n,)}, {(n, *positions)} "
            f"or {(n, 1, *positions)}"
        )
    if not is_transformed():
        check_storage("mask", mask)
    return mask.expand(n, 1, *positions)


def check_model(given: object) -> None:
    """Refuse an object that is not a module; the error says what to pass instead.

    Raises:
        ModelError: it is none.
    """
    if isinstance(given, nn.Module):
        return
    kind = type(given).__name__
    if isinstance(given, type):
        said = f"the class {given.__name__}; give an instance: {given.__name__}(...)"
    elif isinstance(given, str):
        said = f"the text {given!r}; give the module itself, a torch.nn.Module"
    elif isinstance(given, Mapping):
        said = (
            f"a mapping ({kind}), perhaps a state_dict; give the module that it belongs to, after "
            "load_state_dict"
        )
    else:
        said = f"a {kind}; it must be a torch.nn.Module"
    raise ModelError(f"the model is {said}")


def listed(names: Iterable[str]) -> str:
    """Return the allowed values, for a message."""
    return ", ".join(repr(name) for name in names)
