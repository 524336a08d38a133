"""Which kernel serves a call: a fixed table, and the sentence that says why."""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from normscope.errors import InputError
from normscope.kernels import reference

FAST = {"cpu": "cpu", "cuda": "gpu"}  # the kernel of each device type
# what "auto" may choose: the GPU kernel is to be asked for until it has been run and timed on one
MEASURED = ("cpu",)
TORCHS = ("cuda",)  # where torch's own batch norm is fast and no kernel here was measured faster
IMPLS = ("auto", "reference", *FAST.values())


def kernel_for(x: Tensor, impl: str) -> Any:
    """Return the module that serves x: `reference`, or the one of its device.

    Raises:
        InputError: an impl was asked for by name and cannot take x; it never falls back.
    """
    name, reason = _chosen(x, impl)
    if name is None:
        raise InputError(f"impl={impl!r} cannot serve this call: {reason}; use impl='auto'")
    return reference if name == "reference" else import_module(f"normscope.kernels.{name}")


def prefers_torch(x: Tensor) -> bool:
    """Whether "auto" gives a plain call on x to torch: one group of this process's values."""
    kind = x.device.type
    return kind in TORCHS and FAST[kind] not in MEASURED and x.numel() > 0


def explanation(x: Tensor, impl: str) -> str:
    """Which kernel serves x and why, as a sentence."""
    name, reason = _chosen(x, impl)
    if impl == "auto" and prefers_torch(x):
        return (
            f"torch: on {x.device.type} one group without a mask takes torch's own batch norm; "
            f"other calls take the reference: {reason}."
        )
    return f"impl={impl!r} refuses: {reason}." if name is None else f"{name}: {reason}."


def _chosen(x: Tensor, impl: str) -> tuple[str | None, str]:
    if impl == "reference":
        return "reference", "asked for by name"
    if impl != "auto":
        missing = _obstacle(x, impl)
        return (impl, "asked for by name") if missing is None else (None, missing)
    kernel = FAST.get(x.device.type)
    if kernel is None:
        return "reference", f"{x.device.type} has no kernel of its own"
    if kernel not in MEASURED:
        return "reference", f"the {kernel} kernel has not been measured; ask for impl={kernel!r}"
    missing = _obstacle(x, kernel)
    if missing is not None:
        return "reference", missing
    return kernel, f"x has {x.numel():,} values of {x.dtype} on {x.device.type}"


def _obstacle(x: Tensor, kernel: str) -> str | None:
    """Why a kernel cannot serve, as a phrase."""
    if kernel == "gpu" and not _installed("triton"):
        return "triton is not installed"
    problem: str | None = import_module(f"normscope.kernels.{kernel}").unsupported(x)
    return problem


@cache
def _installed(package: str) -> bool:
    return find_spec(package) is not None
