"""What may be given to the operator: each check names what came, what is allowed, what to do."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from normscope.errors import InputError
from normscope.kernels.autograd import is_transformed
from normscope.kernels.dispatch import IMPLS
from normscope.kernels.reference import ACTIVATIONS

Activation = Literal["relu", "leaky_relu", "silu"]


def rows_needed(num_groups: int, *affine: Tensor | None) -> int:
    """How many group ids the tables have rows for."""
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


def check_choices(eps: float, use_batch: bool, act: str | None, impl: str) -> None:
    """Refuse an unknown impl or act, and an eps that cannot normalise."""
    check_impl(impl)
    if act is not None and act not in ACTIVATIONS:
        raise ValueError(f"act is {act!r}; it can be None, {listed(ACTIVATIONS)}")
    if eps < 0 or (use_batch and eps == 0):
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")


def check_tensors(
    x: Tensor,
    num_groups: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> None:
    """Refuse ranks, dtypes and sizes that do not fit each other, with torch's errors."""
    if x.dim() < 2:
        raise ValueError(f"expected x of (N, C, *S), got {x.dim()}D input")
    if not x.is_floating_point():
        kind = str(x.dtype).removeprefix("torch.")
        raise NotImplementedError(
            f'"batch_norm" not implemented for {kind!r}; give a floating point input'
        )
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    tables = {"running_mean": running_mean, "running_var": running_var}
    for name, tensor in {**tables, "weight": weight, "bias": bias}.items():
        if tensor is None:
            continue
        if tensor.shape[-1] != x.shape[1]:
            raise RuntimeError(
                f"{name} should contain {x.shape[1]} elements not {tensor.shape[-1]}: "
                f"the input {tuple(x.shape)} has {x.shape[1]} channels"
            )
        if tensor.device != x.device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {name} is on {tensor.device}, "
                f"the input on {x.device}"
            )
        if tensor.dtype != x.dtype and not (narrow and tensor.dtype == torch.float32):
            raise RuntimeError(
                f"mixed dtype: {name} is {tensor.dtype}, the input {x.dtype}; all must share the "
                "same datatype, or be torch.float32 for a 16-bit input"
            )
        if name in tables and tensor.dim() == 2 and tensor.shape[0] not in (1, num_groups):
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}; num_groups={num_groups} needs "
                f"{(num_groups, x.shape[1])}, or {(x.shape[1],)} for all groups pooled"
            )


def checked_groups(groups: Tensor, x: Tensor, num_groups: int) -> Tensor:
    """The groups as int64 on x's device, each in 0..num_groups-1 (not asked under a compiler)."""
    if groups.dtype.is_floating_point or groups.dtype.is_complex or groups.dtype == torch.bool:
        raise TypeError(f"groups are {groups.dtype}; they must be integers, one per sample")
    if groups.shape != (x.shape[0],):
        raise ValueError(
            f"groups are {tuple(groups.shape)}; one per sample is needed: ({x.shape[0]},)"
        )
    groups = groups.to(device=x.device, dtype=torch.int64)
    if groups.numel() and not is_transformed():
        lowest, highest = groups.aminmax()
        if int(lowest) < 0 or int(highest) >= num_groups:
            wrong = int(((groups < 0) | (groups >= num_groups)).nonzero()[0])
            raise InputError(
                f"group {int(groups[wrong])} of sample {wrong} is outside 0..{num_groups - 1}"
            )
    return groups


def checked_mask(mask: Tensor, x: Tensor) -> Tensor:
    """The mask as (N, 1, *S)."""
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
    return mask.expand(n, 1, *positions)


def listed(names: Iterable[str]) -> str:
    """The allowed values, for a message."""
    return ", ".join(repr(name) for name in names)
