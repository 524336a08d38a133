"""Random calls, most of them wrong: each raises a sentence, or gives what the definition gives.

`make sanitize` runs many more of them, in kernels that check every access to memory.
"""

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from normscope import functional
from normscope.kernels.cpu import build
from tests.kernels.test_wrong_calls import Marked

CALLS = int(os.environ.get("NORMSCOPE_FUZZ", "120"))  # per seed
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8, torch.bfloat16: 0.15, torch.float16: 0.03}
SENTENCES = (ValueError, TypeError, RuntimeError, NotImplementedError, IndexError)


def emptied(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def halved(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(t.untyped_storage().nbytes() // 2)
    return t


def other_shape(t: Tensor, draw: random.Random) -> Tensor:
    sizes = list(t.shape)
    if not sizes:
        return t[None]
    sizes[draw.randrange(len(sizes))] = draw.choice([0, 1, 2, 3, 7])
    if draw.random() < 0.2:
        sizes = sizes[1:] if draw.random() < 0.5 else [*sizes, 2]
    return torch.rand(sizes).to(t.dtype)


def view(t: Tensor, draw: random.Random) -> Tensor:
    """The same values in another memory, or others of the same shape."""
    axis = draw.randrange(t.dim()) if t.dim() else 0
    kind = draw.choice(
        ("flip", "expand", "step", "transpose", "inside", "neg", "zero", "last", "conj")
    )
    if not t.dim() or kind == "neg":
        return torch._neg_view(t) if t.is_floating_point() else t
    if kind == "flip":
        return t.flip(axis)
    if kind == "expand":
        return t.narrow(axis, 0, min(1, t.shape[axis])).expand(t.shape) if t.shape[axis] else t
    if kind == "step":
        return t.repeat_interleave(2, axis)[(slice(None),) * axis + (slice(None, None, 2),)]
    if kind == "transpose":
        return t.transpose(0, axis).contiguous().transpose(0, axis)
    if kind == "inside":
        return torch.cat([t, t, t], axis).narrow(axis, t.shape[axis], t.shape[axis])
    if kind == "last" and t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last)
    if t.dtype in (torch.float32, torch.float64):
        return torch.complex(t, t).conj().imag if kind == "conj" else t.as_subclass(Marked)
    return torch._efficientzerotensor(t.shape, dtype=t.dtype) if kind == "zero" else t


def wrong(t: Tensor, draw: random.Random) -> Any:
    """Something else in the place of a tensor."""
    kinds: list[Callable[[], Any]] = [
        lambda: t.to(draw.choice([*DTYPES, torch.int64, torch.int8, torch.bool, torch.complex64])),
        lambda: t.to("meta"),
        lambda: other_shape(t, draw),
        lambda: other_shape(t, draw),
        lambda: emptied(t),
        lambda: halved(t),
        lambda: t.to_sparse(),
        lambda: t.reshape(-1),
        lambda: t.new_empty(0),
        lambda: torch.nested.nested_tensor([t, t]) if t.dim() else t,
        lambda: None,
    ]
    return draw.choice(kinds)()


def arguments(draw: random.Random) -> dict[str, Any]:
    """A right call."""
    n, c = draw.choice([1, 2, 3, 9, 40]), draw.choice([1, 2, 5, 17, 66])
    spatial = draw.choice([(), (), (1,), (5,), (67,), (3, 3), (7, 7), (4, 9), (2, 3, 2)])
    dtype = draw.choice(DTYPES)
    table = dtype if dtype.itemsize > 2 or draw.random() < 0.3 else torch.float32
    k = draw.choice([1, 1, 1, 2, 3])
    rows = (k,) if k > 1 else ()
    given: dict[str, Any] = {"x": (3 * torch.randn(n, c, *spatial) + 1).to(dtype)}
    if draw.random() < 0.7:
        given["weight"] = torch.rand(*(rows if draw.random() < 0.5 else ()), c).to(table) + 0.5
        given["bias"] = torch.randn(c).to(table)
    if draw.random() < 0.7:
        given["running_mean"] = torch.randn(*rows, c).to(table)
        given["running_var"] = torch.rand(*rows, c).to(table) + 0.5
        if draw.random() < 0.5:
            given["num_batches_tracked"] = torch.zeros(rows, dtype=torch.int64)
    if k > 1:
        given |= {"groups": torch.randint(k, (n,)), "num_groups": k}
    if draw.random() < 0.3:
        given["mask"] = torch.rand(n, *spatial) < 0.8
    if draw.random() < 0.3:
        given["residual"] = torch.randn(n, c, *spatial).to(dtype)
    given["act"] = draw.choice([None, "relu", "leaky_relu", "silu"])
    given["training"] = draw.random() < 0.6
    given["dy"] = torch.randn(n, c, *spatial).to(dtype)
    return given


def spoilt(given: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The call with some tensors replaced."""
    found = dict(given)
    for name, value in given.items():
        if isinstance(value, Tensor) and draw.random() < 0.35:
            new = wrong(value, draw) if draw.random() < 0.4 else view(value, draw)
            if name == "running_var" and isinstance(new, Tensor) and new.is_neg():
                new = value  # below zero a variance is clamped, and its gradient another
            found[name] = value if new is None and name in ("x", "dy") else new
    if "groups" in given and draw.random() < 0.2:
        found["groups"] = given["groups"] + draw.choice([-1, 1, 2**40])
    if draw.random() < 0.05:
        found["num_groups"] = draw.choice([-1, 0, 2, 100])
    return found


def holds_all(t: Tensor) -> bool:
    """Whether a tensor's storage was not cut."""
    if t.is_meta or t._is_zerotensor() or not t.numel():
        return True
    steps = zip(t.shape, t.stride(), strict=True)
    last = t.storage_offset() + sum((size - 1) * stride for size, stride in steps)
    return (last + 1) * t.element_size() <= t.untyped_storage().nbytes()


def outcome(given: dict[str, Any], impl: str) -> list[Tensor] | str:
    """y, gradients and buffers after a step; or the sentence with which it is refused."""
    rest = {k: v for k, v in given.items() if k != "dy"}
    dy = given["dy"]
    whole = dy.is_nested or dy.layout is not torch.strided or holds_all(dy)
    if impl == "reference" and not whole:
        return "torch's own operations read what is not there"
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        t = rest.get(name)
        if type(t) is Tensor and t.layout is torch.strided and not t.is_nested:
            rest[name] = t.clone() if holds_all(t) else t  # an expanded one becomes whole
    x = rest.pop("x")
    try:
        x = x.detach().requires_grad_() if x.is_floating_point() else x
        y = functional.batch_norm(x, impl=impl, **rest)
        found = [y.detach(), *torch.autograd.grad(y, x, given["dy"])]
    except SENTENCES as problem:
        return str(problem) or "without a word"
    return [*found, *(rest[k] for k in ("running_mean", "running_var") if rest.get(k) is not None)]


def described(value: Any) -> Any:
    """An argument, for the message of a failure."""
    if not isinstance(value, Tensor) or value.is_nested:
        return value
    return type(value), tuple(value.shape), value.dtype, value.device.type, value.layout


@pytest.mark.filterwarnings("ignore")  # sparse and nested tensors are beta
@pytest.mark.parametrize("seed", range(4))
def test_random_calls_raise_a_sentence_or_equal_the_definition(seed: int) -> None:
    assert build.loaded(), build.obstacle()
    torch.manual_seed(seed)
    draw = random.Random(seed)
    served = refused = 0
    for number in range(CALLS):
        given = spoilt(arguments(draw), draw)
        mine, exact = outcome(given, "auto"), outcome(given, "reference")
        told = {k: described(v) for k, v in given.items()}
        if isinstance(mine, str) or isinstance(exact, str):
            assert type(mine) is type(exact), (number, mine, exact, told)
            assert mine != "without a word", told
            refused += 1
            continue
        served += 1
        for a, b in zip(mine, exact, strict=True):
            if a.device.type != "cpu" or a.layout is not torch.strided:
                continue
            a, b = a.as_subclass(Tensor).double(), b.as_subclass(Tensor).double()
            bound = TOLERANCE.get(given["x"].dtype, 0.15)
            scale = max(1.0, float(b.nan_to_num().abs().max())) if b.numel() else 1.0
            assert torch.allclose(a, b, rtol=bound, atol=bound * scale, equal_nan=True), (
                number,
                told,
            )
    assert min(served, refused) > CALLS // 10, "calls of both kinds"
