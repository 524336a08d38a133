"""Calls that loops over plain memory cannot take: each is refused with a sentence or equals torch."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import normscope
from normscope import functional
from normscope.errors import InputError

X = (6, 4, 5, 3)


def tables() -> dict[str, Tensor]:
    return {"weight": torch.rand(4) + 0.5, "bias": torch.randn(4)}


def call(x: Tensor, **given: Any) -> Tensor:
    running = {"running_mean": torch.zeros(4), "running_var": torch.ones(4)}
    return functional.batch_norm(x, **{**running, "training": True, **given})


def freed(shape: tuple[int, ...]) -> Tensor:
    t = torch.randn(shape)
    t.untyped_storage().resize_(0)
    return t


def shortened(shape: tuple[int, ...]) -> Tensor:
    t = torch.randn(shape)
    t.untyped_storage().resize_(8)
    return t


REFUSED: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "residual on meta": (
        RuntimeError,
        "residual is on meta",
        lambda: call(torch.randn(X), residual=torch.empty(X, device="meta")),
    ),
    "residual of another shape": (
        ValueError,
        "it must be as x",
        lambda: call(torch.randn(X), residual=torch.randn(6, 4, 5, 1)),
    ),
    "running statistics of two shapes": (
        ValueError,
        "give both alike",
        lambda: call(
            torch.randn(X),
            running_mean=torch.zeros(3, 4),
            groups=torch.arange(6) % 3,
            num_groups=3,
        ),
    ),
    "running statistics of two dtypes": (
        ValueError,
        "give both alike",
        lambda: functional.batch_norm(
            torch.randn(X).bfloat16(),
            torch.zeros(4, dtype=torch.bfloat16),
            torch.ones(4),
            training=True,
        ),
    ),
    "too few affine rows": (
        ValueError,
        "num_groups is 4",
        lambda: functional.batch_norm(
            torch.randn(X),
            weight=torch.ones(6, 4),
            training=True,
            groups=torch.arange(6) % 4,
            num_groups=4,
        ),
    ),
    "affine rows that differ": (
        ValueError,
        "bias has 2 rows and there are 4",
        lambda: functional.batch_norm(
            torch.randn(X),
            weight=torch.ones(4, 4),
            bias=torch.ones(2, 4),
            training=True,
            groups=torch.arange(6) % 4,
            num_groups=4,
        ),
    ),
    "a weight of three axes": (
        RuntimeError,
        "weight should contain 4",
        lambda: call(torch.randn(X), weight=torch.ones(1, 2, 4)),
    ),
    "a weight without axes": (
        RuntimeError,
        "weight should contain 4 elements not 0",
        lambda: call(torch.randn(X), weight=torch.tensor(1.0)),
    ),
    "no groups at all": (ValueError, "at least 1", lambda: call(torch.randn(X), num_groups=0)),
    "fewer than none": (ValueError, "at least 1", lambda: call(torch.randn(X), num_groups=-3)),
    "a group too many": (
        InputError,
        "outside 0..1",
        lambda: call(torch.randn(X), groups=torch.tensor([0, 1, 2, 0, 1, 0]), num_groups=2),
    ),
    "a negative group": (
        InputError,
        "outside 0..1",
        lambda: call(torch.randn(X), groups=torch.tensor([0, 1, -1, 0, 1, 0]), num_groups=2),
    ),
    "eps is nan": (ValueError, "eps must be positive", lambda: call(torch.randn(X), eps=math.nan)),
    "eps is nan in eval": (
        ValueError,
        "eps must be positive",
        lambda: call(torch.randn(X), eps=math.nan, training=False),
    ),
    "momentum is nan": (
        ValueError,
        "momentum is nan",
        lambda: call(torch.randn(X), momentum=math.nan),
    ),
    "x was freed": (RuntimeError, "x .* needs .* freed", lambda: call(freed(X))),
    "x was shortened": (RuntimeError, "x .* holds 8", lambda: call(shortened(X))),
    "weight was freed": (
        RuntimeError,
        "weight .* freed",
        lambda: call(torch.randn(X), weight=freed((4,))),
    ),
    "residual was freed": (
        RuntimeError,
        "residual .* freed",
        lambda: call(torch.randn(X), residual=freed(X)),
    ),
    "running_var was freed": (
        RuntimeError,
        "running_var .* freed",
        lambda: call(torch.randn(X), running_var=freed((4,))),
    ),
    "running_mean of another dtype": (
        RuntimeError,
        "mixed dtype",
        lambda: call(torch.randn(X), running_mean=torch.zeros(4).double()),
    ),
    "complex": (
        NotImplementedError,
        "not implemented",
        lambda: call(torch.randn(X, dtype=torch.cfloat)),
    ),
    "by name, on another layout": (
        InputError,
        "cannot serve",
        lambda: call(torch.nn.Buffer(torch.randn(X).to_sparse()), impl="cpu"),
    ),
    "by name, running statistics with gaps": (
        InputError,
        "contiguous",
        lambda: call(torch.randn(X), running_mean=torch.zeros(8)[::2], impl="cpu"),
    ),
}


class Marked(Tensor):
    """A subclass that keeps plain memory."""


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_sentence(name: str) -> None:
    error, sentence, wrong = REFUSED[name]
    with pytest.raises(error, match=sentence):
        wrong()


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "negated": lambda t: torch._neg_view(t),
    "imaginary part of a conjugate": lambda t: torch.complex(t, t).conj().imag,
    "flipped": lambda t: t.flip(0),
    "every second": lambda t: t.repeat_interleave(2, 3)[..., ::2],
    "expanded": lambda t: t[:1].expand(6, -1, -1, -1),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "inside another": lambda t: torch.cat([t, t])[3:9],
    "channels of another": lambda t: torch.cat([t, t], 1)[:, 2:6],
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape),
    "subclass": lambda t: t.as_subclass(Marked),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("place", ["x", "residual", "dy", "weight", "running_mean"])
@pytest.mark.parametrize("name", VIEWS)
def test_every_view_equals_torch(name: str, place: str, training: bool) -> None:
    """Views, and memory that is not there, as x, residual, gradient, weight and buffer."""
    view = VIEWS[name]
    given = {"x": torch.randn(X), "residual": torch.randn(X), "dy": torch.randn(X), **tables()}
    given |= {"running_mean": torch.randn(4), "running_var": torch.ones(4)}
    if place in ("weight", "running_mean"):
        found = (
            view(torch.randn(X)).flatten()[:4]
            if name != "negated"
            else torch._neg_view(torch.randn(4))
        )
    else:
        found = view(given[place])
    given[place] = found
    if name == "zeros without memory" and place == "running_mean" and training:
        with pytest.raises(RuntimeError, match="ZeroTensors are immutable"):
            call(given["x"], running_mean=given["running_mean"])
        return
    results = []
    for ours in (True, False):
        t = {k: v.detach() for k, v in given.items()}
        if place != "running_mean":
            t["running_mean"] = t["running_mean"].clone()
        elif ours:
            before = t["running_mean"].clone()
        else:
            t["running_mean"] = before
        t["running_var"] = t["running_var"].clone()
        x, weight = t["x"].requires_grad_(), t["weight"].requires_grad_()
        running = t["running_mean"], t["running_var"]
        if ours:
            y = functional.batch_norm(
                x, *running, weight, t["bias"], training, act="relu", residual=t["residual"]
            )
        else:
            y = F.batch_norm(x, *running, weight, t["bias"], training)
            y = F.relu(y + t["residual"])
        y.backward(t["dy"])
        results.append((y.detach(), x.grad, weight.grad, *running))
    for mine, torchs in zip(*results, strict=True):
        torch.testing.assert_close(
            mine.as_subclass(Tensor), torchs.as_subclass(Tensor), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
@pytest.mark.parametrize("act", [None, "relu"])
def test_a_residual_of_another_dtype_is_promoted_as_torch_does(
    dtype: torch.dtype, act: Any
) -> None:
    x, residual = torch.randn(X), (3 * torch.randn(X)).to(dtype)
    mask, affine = torch.rand(6, 5, 3) < 0.7, tables()
    y = functional.batch_norm(x, None, None, **affine, residual=residual, act=act, mask=mask)
    plain = functional.batch_norm(x, None, None, **affine, mask=mask) + residual
    plain = plain if act is None else F.relu(plain)
    assert torch.equal(y, torch.where(mask.unsqueeze(1), plain, 0))
    assert y.dtype == torch.promote_types(torch.float32, dtype)


def test_under_autocast_a_block_with_a_residual_equals_torch() -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(4, 4, 1)
    ours, plain = normscope.BatchNorm2d(4, act="relu"), torch.nn.BatchNorm2d(4)
    x = torch.randn(X)
    with torch.autocast("cpu", torch.bfloat16):
        h = convolution(x)
        assert h.dtype == torch.bfloat16
        y, expected = ours(h, x), F.relu(plain(h) + x)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)


def test_running_statistics_that_overlap_are_refused_as_by_torch() -> None:
    with pytest.raises(RuntimeError, match="single memory location"):
        call(torch.randn(X), running_mean=torch.zeros(1).expand(4))


def test_running_statistics_with_gaps_are_updated_where_they_are() -> None:
    buffers = torch.zeros(2, 8)
    x = torch.randn(X)
    call(x, running_mean=buffers[0, ::2], running_var=buffers[1, 1::2])
    mean, var = torch.zeros(4), torch.zeros(4)
    F.batch_norm(x, mean, var, training=True)
    torch.testing.assert_close(buffers[0, ::2], mean)
    torch.testing.assert_close(buffers[1, 1::2], var)
    assert buffers[0, 1::2].eq(0).all()


def test_groups_and_masks_of_any_memory() -> None:
    x, ids = torch.randn(X), torch.tensor([0, 2, 1, 2, 0, 1])
    mask = torch.rand(X[0], *X[2:]) < 0.6
    rest = {"running_mean": None, "running_var": None, "num_groups": 3}
    expected = call(x, groups=ids, mask=mask, **rest)
    for groups in (
        ids.int(),
        ids.repeat_interleave(2)[::2],
        ids.to(torch.uint8),
        ids.flip(0).flip(0),
    ):
        strided = mask.repeat_interleave(2, 0)[::2]
        assert torch.equal(call(x, groups=groups, mask=strided, **rest), expected)


def test_a_dispatch_mode_sees_operations_that_it_knows() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    x = torch.randn(X, requires_grad=True)
    with Seen() as seen:
        call(x).sum().backward()
    assert seen.names
    assert all(name.startswith("aten.") for name in seen.names)


def test_gradients_of_many_cotangents_at_once() -> None:
    x = torch.randn(X, requires_grad=True)
    y, many = call(x, act="relu"), torch.randn(3, *X)
    (together,) = torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        (alone,) = torch.autograd.grad(y, x, many[i], retain_graph=True)
        torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-5)


def test_what_was_changed_in_place_meanwhile_is_noticed() -> None:
    x = torch.randn(X, requires_grad=True)
    for change in ("groups", "mask", "weight"):
        given: dict[str, Any] = {
            "groups": torch.arange(6) % 2,
            "num_groups": 2,
            "mask": torch.rand(6, 1, 5, 3) < 0.9,
            "weight": torch.ones(4),
            "running_mean": None,
            "running_var": None,
        }
        y = call(x, **given)
        given[change].zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
