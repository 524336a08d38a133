"""What is computed again in backward: the same to the bit, and truly not kept."""

import copy
import gc
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import normscope
from normscope.kernels import recomputation


class Watched(nn.Module):
    """Lets its input through and remembers its memory weakly."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[StorageWeakRef] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(StorageWeakRef(x.untyped_storage()))
        return x


def net(norm: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(3):
        parts += [nn.Conv2d(6, 6, 3, padding=1), norm(), Watched()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(6 * 7 * 5, 3))


def step(model: nn.Module, x: Tensor, recompute: bool) -> list[Tensor]:
    model, x = copy.deepcopy(model), x.detach().clone().requires_grad_()
    watched = [m for m in model.modules() if isinstance(m, Watched)]
    with normscope.recompute() if recompute else nullcontext():
        loss = model(x).square().sum()
    assert all(m.seen[0].expired() == recompute for m in watched[:2])
    loss.backward()
    found = [x, *model.parameters()]
    return [t.grad for t in found if t.grad is not None]


@pytest.mark.parametrize("act", [None, "relu", "leaky_relu", "silu"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_equal_and_outputs_are_gone(act: Any, layout: Any) -> None:
    model = net(lambda: normscope.BatchNorm2d(6, act=act))
    model.to(memory_format=layout)  # type: ignore[call-overload]
    x = torch.randn(4, 6, 7, 5)
    for mode in (True, False):
        model.train(mode)
        for mine, plain in zip(step(model, x, True), step(model, x, False), strict=True):
            assert torch.equal(mine, plain)


def test_groups_masks_and_frozen_statistics() -> None:
    ids = torch.tensor([0, 2, 2, 1])

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = normscope.BatchNorm2d(6, act="relu")

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.arange(7)[:, None].expand(4, 7, 5) < 4
            y: Tensor = self.norm(x, mask=mask)
            return y

    x = torch.randn(4, 6, 7, 5)
    for norm in (
        lambda: normscope.ConditionalBatchNorm2d(6, 3),
        lambda: normscope.FrozenBatchNorm2d(6),
        Masked,
    ):
        model = net(norm)
        with normscope.condition(ids):
            for mine, plain in zip(step(model, x, True), step(model, x, False), strict=True):
                assert torch.equal(mine, plain)


def made(**given: Any) -> tuple[Tensor, nn.Module, nn.Module]:
    x = torch.randn(4, 6, 7, 5, requires_grad=True)
    return x, normscope.BatchNorm2d(6, act="relu", **given), nn.Conv2d(6, 6, 3)


def test_an_output_that_is_changed_in_place_is_kept_as_it_is_then() -> None:
    x, norm, conv = made()

    def weight_gradient() -> Any:
        y = norm(x)
        y += 1
        return torch.autograd.grad(conv(y).square().sum(), conv.weight)[0]

    plain = weight_gradient()
    with normscope.recompute():
        assert torch.equal(weight_gradient(), plain)


def test_what_was_changed_before_backward_is_an_error() -> None:
    for change in ("input", "weight"):
        x, norm, conv = made()
        z = x * 1
        with normscope.recompute():
            loss = conv(norm(z)).sum()
        with torch.no_grad():
            (z if change == "input" else norm.weight).add_(1)
        with pytest.raises(RuntimeError, match="changed in place between forward"):
            loss.backward()


def test_second_derivatives() -> None:
    torch.manual_seed(0)
    norm, conv = normscope.BatchNorm2d(3, act="silu").double(), nn.Conv2d(3, 2, 2).double()
    x = torch.randn(3, 3, 3, 3, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        with normscope.recompute():
            y: Tensor = conv(norm(x))
            return y

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_a_residual_keeps_its_output() -> None:
    x, norm, conv = made()
    with normscope.recompute():
        y = norm(x, residual=torch.randn_like(x))
        place = StorageWeakRef(y.untyped_storage())
        z = conv(y)
    del y
    assert not place.expired()
    z.sum().backward()


def test_nothing_lives_longer_than_its_graph() -> None:
    x, norm, conv = made()
    with normscope.recompute():
        outputs = recomputation.active.get()
        assert outputs is not None
        z = x * 2
        place = StorageWeakRef(z.untyped_storage())
        loss = conv(norm(z)).sum()
        del z
        assert len(outputs._by_storage) == 1
        assert not place.expired()
        loss.backward()
        del loss
        gc.collect()
        assert place.expired()
        assert len(outputs._by_storage) == 0
    assert recomputation.active.get() is None


def test_other_threads_and_no_grad_are_left_alone() -> None:
    x, norm, conv = made()
    found: list[Any] = []

    def elsewhere() -> None:
        found.append(recomputation.active.get())
        conv(norm(x)).sum().backward()

    with normscope.recompute():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        with torch.no_grad():
            norm(x)
        outputs = recomputation.active.get()
        assert outputs is not None
        assert len(outputs._by_storage) == 0
    assert found == [None]
    assert x.grad is not None


def test_a_view_of_an_output_of_every_layout() -> None:
    for shape in ((6, 5), (6, 5, 4), (2, 5, 3, 4)):
        for transposed in (False, True):
            x = torch.randn(shape, requires_grad=True)
            norm = getattr(normscope, f"BatchNorm{max(1, len(shape) - 2)}d")(5, act="relu")

            def gradient(x: Tensor = x, norm: Any = norm, transposed: bool = transposed) -> Tensor:
                y = norm(x.transpose(0, 1).contiguous().transpose(0, 1) if transposed else x)
                return torch.autograd.grad(y.flatten(1)[:, 1:].square().sum(), x)[0]

            plain = gradient()
            with normscope.recompute():
                assert torch.equal(gradient(), plain)
