import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import normscope
from normscope.functional import batch_norm, plain_call
from normscope.kernels import cpu
from tests import oracle

IMPLS = ["auto", "reference"]
# (shape, statistics groups, affine rows)
CASES = [
    ((7, 3, 5), 1, 1),
    ((9, 4), 3, 3),
    ((9, 4, 2, 3), 3, 1),
    ((9, 2, 3), 1, 3),
    ((5, 1, 2, 2, 2), 4, 4),
]


def case(
    shape: tuple[int, ...], num_groups: int, rows: int, dtype: torch.dtype = torch.double
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """x, weight, bias (all requiring gradients) and groups with one empty and one singleton."""
    x = (torch.randn(shape, dtype=dtype) * 2 + 1).requires_grad_()
    weight = torch.randn(rows, shape[1], dtype=dtype, requires_grad=True)
    bias = torch.randn(rows, shape[1], dtype=dtype, requires_grad=True)
    wanted = max(num_groups, rows)
    groups = None
    if wanted > 1:
        groups = torch.zeros(shape[0], dtype=torch.long)
        groups[1::2] = wanted - 1
        groups = groups[torch.randperm(shape[0])]
    return x, weight, bias, groups


def with_gradients(y: Tensor, dy: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [y, *torch.autograd.grad(y, inputs, dy)]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("shape", "num_groups", "rows"), CASES)
def test_values_and_gradients_equal_the_oracle(
    shape: tuple[int, ...], num_groups: int, rows: int, masked: bool, impl: str
) -> None:
    x, weight, bias, groups = case(shape, num_groups, rows)
    dy = torch.randn_like(x)
    mask = torch.rand(shape[0], *shape[2:]) < 0.7 if masked and len(shape) > 2 else None
    y = batch_norm(
        x, None, None, weight, bias, True,
        groups=groups, num_groups=num_groups, mask=mask, impl=impl,
    )  # fmt: skip
    got = with_gradients(y, dy, x, weight, bias)

    ids = None if groups is None else groups.numpy()
    allowed = None if mask is None else mask.numpy()
    numbers = [t.detach().numpy() for t in (x, dy, weight, bias)]
    if num_groups > 1 or ids is None:
        expected = oracle.batch_norm(*numbers, 1e-5, ids, num_groups, allowed)
    else:  # shared statistics, affine by group: the oracle normalises, then each row acts
        ones, zeros = np.ones((1, shape[1])), np.zeros((1, shape[1]))
        wide = [n[ids].reshape(shape[0], shape[1], *[1] * (len(shape) - 2)) for n in numbers[2:]]
        plain = oracle.batch_norm(
            numbers[0], numbers[1] * wide[0], ones, zeros, 1e-5, None, 1, allowed
        )
        inside = (
            np.ones(shape, bool) if allowed is None else np.repeat(allowed[:, None], shape[1], 1)
        )
        dw, db = np.zeros((rows, shape[1])), np.zeros((rows, shape[1]))
        axes = tuple(range(2, len(shape)))
        np.add.at(dw, ids, (numbers[1] * plain["y"] * inside).sum(axes))
        np.add.at(db, ids, (numbers[1] * inside).sum(axes))
        expected = {
            "y": (plain["y"] * wide[0] + wide[1]) * inside,
            "dx": plain["dx"], "dweight": dw, "dbias": db,
        }  # fmt: skip
    for ours, name in zip(got, ("y", "dx", "dweight", "dbias"), strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(expected[name]), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "num_groups", "rows"), CASES)
def test_first_second_and_forward_derivatives(
    shape: tuple[int, ...], num_groups: int, rows: int, training: bool
) -> None:
    x, weight, bias, groups = case(shape, num_groups, rows)
    mean, var = torch.randn(num_groups, shape[1]), torch.rand(num_groups, shape[1])

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        running = (None, None) if training else (mean.double(), var.double())
        return batch_norm(x, *running, weight, bias, training, groups=groups, num_groups=num_groups)

    assert gradcheck(call, (x, weight, bias), check_forward_ad=True)
    assert gradgradcheck(call, (x, weight, bias))


@pytest.mark.parametrize("min_count", [2, 5])
def test_small_groups_are_filled_up_with_running_values(min_count: int) -> None:
    x = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    groups = torch.tensor([0, 1, 0, 0])  # group 1 has one value, group 2 none
    mean, var = torch.randn(3, 3).double(), torch.rand(3, 3).double() + 0.5
    before_mean, before_var = mean.clone(), var.clone()
    y = batch_norm(
        x, mean, var, None, None, True, 0.5, groups=groups, num_groups=3, min_count=min_count
    )
    fill = min_count - 1
    mixed = (x[1] + fill * before_mean[1]) / min_count
    spread = ((x[1] - mixed) ** 2 + fill * (before_var[1] + (before_mean[1] - mixed) ** 2)) / (
        min_count
    )
    torch.testing.assert_close(y[1], (x[1] - mixed) / (spread + 1e-5).sqrt())
    assert torch.equal(mean[1:], before_mean[1:])
    assert torch.equal(var[1:], before_var[1:])
    torch.testing.assert_close(mean[0], 0.5 * before_mean[0] + 0.5 * x[[0, 2, 3]].mean(0))
    torch.testing.assert_close(
        var[0], 0.5 * before_var[0] + 0.5 * x[[0, 2, 3]].var(0, correction=1)
    )

    def call(x: Tensor) -> Tensor:
        return batch_norm(
            x, before_mean.clone(), before_var.clone(), training=True,
            groups=groups, num_groups=3, min_count=min_count,
        )  # fmt: skip

    assert gradcheck(call, (x,), check_forward_ad=True)
    assert gradgradcheck(call, (x,))


def test_one_set_of_running_statistics_for_many_groups_is_the_pooled_one() -> None:
    x = torch.randn(9, 4, 2, dtype=torch.double) + torch.arange(9).view(9, 1, 1)
    mean, var = torch.zeros(4).double(), torch.ones(4).double()
    groups = torch.arange(9) // 4  # the last group has one sample
    batch_norm(x, mean, var, training=True, momentum=1.0, groups=groups, num_groups=3)
    torch.testing.assert_close(mean, x.mean((0, 2)))
    torch.testing.assert_close(var, x.var((0, 2), correction=1))


@pytest.mark.parametrize("impl", IMPLS)
def test_masked_values_are_no_data(impl: str) -> None:
    x = torch.randn(3, 2, 4)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    poisoned = torch.where(mask.unsqueeze(1), x, torch.nan).requires_grad_()
    weight = torch.ones(2, requires_grad=True)
    y = batch_norm(poisoned, weight=weight, training=True, mask=mask, impl=impl)
    (dx,) = torch.autograd.grad(y, poisoned, torch.randn_like(y), create_graph=True)
    second = torch.autograd.grad(dx, [poisoned, weight], torch.randn_like(dx), retain_graph=True)
    assert all(g.isfinite().all() for g in second)
    y.backward(torch.randn_like(y))
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    inside = mask.unsqueeze(1).expand_as(x)
    assert (y[~inside] == 0).all()
    assert poisoned.grad is not None
    assert (poisoned.grad[~inside] == 0).all()
    kept = x.transpose(0, 1)[:, mask].T  # (values, C)
    torch.testing.assert_close(
        y.transpose(0, 1)[:, mask].T,
        torch.nn.functional.batch_norm(kept, None, None, training=True),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("ratio", [1.0, 1e2, 1e4])
def test_statistics_are_accurate_far_from_zero(dtype: torch.dtype, ratio: float) -> None:
    x = (torch.randn(64, 3, 20) + ratio).to(dtype).to(memory_format=torch.contiguous_format)
    mean, var = torch.zeros(3, dtype=torch.double), torch.ones(3, dtype=torch.double)
    exact = x.double().transpose(0, 1).flatten(1)
    batch_norm(x.double(), mean, var, training=True, momentum=1.0)
    torch.testing.assert_close(mean, exact.mean(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(var, exact.var(1, correction=1), rtol=1e-9, atol=1e-12)
    y = batch_norm(x, training=True)
    want = (exact - exact.mean(1, keepdim=True)) / (
        exact.var(1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    want = want.view(3, 64, 20).transpose(0, 1).to(dtype)
    torch.testing.assert_close(y, want, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_constant_channel_comes_out_as_exactly_the_bias() -> None:
    x = torch.full((50, 2, 3), 1000.1)
    y = batch_norm(x, bias=torch.tensor([0.5, -2.0]), training=True)
    assert (y[:, 0] == 0.5).all()
    assert (y[:, 1] == -2).all()


def test_running_buffers_may_change_between_forward_and_backward() -> None:
    # torch#13402: there the gradient of the first call silently becomes wrong
    mean, var = torch.zeros(2).double(), torch.ones(2).double()
    x, weight = torch.randn(5, 2).double(), torch.ones(2).double().requires_grad_()
    y = batch_norm(x, mean, var, weight, eps=1e-12)
    mean.fill_(100), var.fill_(4)
    (dweight,) = torch.autograd.grad(y, weight, torch.ones_like(y))
    torch.testing.assert_close(dweight, x.sum(0))


@pytest.mark.parametrize("training", [True, False])
def test_eager_compiled_and_exported_agree(training: bool) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3, 4))
            self.register_buffer("var", torch.ones(3, 4))
            self.weight = torch.nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor, groups: Tensor) -> Tensor:
            return batch_norm(
                x, self.mean, self.var, self.weight, None, training,
                groups=groups, num_groups=3, act="relu",
            )  # fmt: skip

    net = Net()
    x, groups = torch.randn(8, 4, 5), torch.randint(0, 3, (8,))
    compiled_net, exported_net = copy.deepcopy(net), copy.deepcopy(net)
    compiled = torch.compile(compiled_net, fullgraph=True, backend="aot_eager")
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {"x": {0: batch}, "groups": {0: batch}}
    exported = torch.export.export(exported_net, (x, groups), dynamic_shapes=shapes)
    assert "normscope" not in str(exported.graph)  # plain ATen: runs where normscope is not

    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    dy = torch.randn(8, 4, 5)
    want, got = net(leaf, groups), compiled(other, groups)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        torch.autograd.grad(got, other, dy), torch.autograd.grad(want, leaf, dy)
    )
    torch.testing.assert_close(compiled_net.mean, net.mean)
    torch.testing.assert_close(exported.module()(x, groups), want)
    torch.testing.assert_close(compiled_net.var, net.var)


def test_functional_transforms() -> None:
    x, weight = torch.randn(6, 3, dtype=torch.double), torch.randn(3, dtype=torch.double)

    def loss(x: Tensor) -> Tensor:
        return (batch_norm(x, weight=weight, training=True) ** 3).sum()

    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), want)
    hessian = torch.func.hessian(loss)(x)
    assert hessian.shape == (6, 3, 6, 3)
    stacked = torch.randn(4, 6, 3, dtype=torch.double)
    torch.testing.assert_close(
        torch.vmap(lambda x: batch_norm(x, training=True))(stacked),
        torch.stack([batch_norm(x, training=True) for x in stacked]),
    )
    with pytest.raises(RuntimeError, match="got a batched tensor as input while the running_mean"):
        torch.vmap(lambda x: batch_norm(x, torch.zeros(3), torch.ones(3), training=True))(
            stacked.float()
        )


@pytest.mark.parametrize("act", ["relu", "leaky_relu", "silu"])
def test_residual_then_activation(act: Any) -> None:
    x, residual = torch.randn(5, 3, 2), torch.randn(5, 3, 2)
    plain = batch_norm(x, training=True)
    want = getattr(torch.nn.functional, act)(plain + residual)
    got = batch_norm(x, training=True, act=act, residual=residual)
    torch.testing.assert_close(got, want)


BAD = [
    (ValueError, "group 5 of sample 2 is outside 0..2", {"groups": torch.tensor([0, 1, 5, 0]), "num_groups": 3}),
    (ValueError, "group -1 of sample 0", {"groups": torch.tensor([-1, 1, 0, 0]), "num_groups": 3}),
    (ValueError, r"groups are \(3,\); one per sample", {"groups": torch.tensor([0, 1, 1]), "num_groups": 3}),
    (TypeError, "groups are torch.float32", {"groups": torch.zeros(4), "num_groups": 3}),
    (TypeError, "groups are torch.bool", {"groups": torch.zeros(4).bool(), "num_groups": 3}),
    (ValueError, "num_groups is 3 but groups is None", {"num_groups": 3}),
    (ValueError, r"running_mean is \(2, 3\); num_groups=1 needs", {"running_mean": torch.ones(2, 3), "running_var": torch.ones(2, 3)}),
    (TypeError, "mask is torch.int64", {"mask": torch.ones(4).long()}),
    (ValueError, r"mask is \(5,\)", {"mask": torch.ones(5).bool()}),
    (ValueError, r"residual is \(4, 2\)", {"residual": torch.ones(4, 2)}),
    (ValueError, "impl is 'fast'; it can be 'auto', 'reference'", {"impl": "fast"}),
    (ValueError, "act is 'tanh'", {"act": "tanh"}),
    (ValueError, "eps must be positive", {"eps": 0.0}),
    (RuntimeError, "weight should contain 3 elements not 2", {"weight": torch.ones(2)}),
    (RuntimeError, "mixed dtype: bias is torch.float64", {"bias": torch.ones(3).double()}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "arguments"), BAD, ids=[b[1] for b in BAD])
def test_bad_arguments_teach(
    error: type[Exception], message: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(error, match=message):
        batch_norm(torch.randn(4, 3), training=True, **arguments)


@pytest.mark.parametrize("x", [torch.ones(4, 3).long(), torch.ones(4, 3, dtype=torch.cfloat)])
def test_integer_and_complex_inputs_are_refused(x: Tensor) -> None:
    with pytest.raises(NotImplementedError, match='"batch_norm" not implemented for'):
        batch_norm(x, training=True)


@pytest.mark.parametrize("shape", [(6, 3, 5), (6, 3), (6, 3, 80, 80)], ids=str)
@pytest.mark.parametrize("rows", [(3, 1), (1, 3), (3, None)], ids=str)
def test_weight_and_bias_may_have_unlike_rows(
    shape: tuple[int, ...], rows: tuple[int, int | None]
) -> None:
    """One row for all groups beside a row for each, in values and in gradients."""
    groups, dy = torch.arange(6) % 3, torch.randn(shape).double()
    found = []
    for impl in ("auto", "reference"):
        torch.manual_seed(0)
        x = torch.randn(shape).double().requires_grad_()
        tables = [torch.randn((n, 3) if n else (3,)).double().requires_grad_() for n in rows]
        y = batch_norm(
            x,
            weight=tables[0],
            bias=tables[1],
            training=True,
            groups=groups,
            num_groups=3,
            impl=impl,
        )
        y.backward(dy)
        found.append([y, x.grad, *(t.grad for t in tables)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_rows_without_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="a row per group but groups is None"):
        batch_norm(torch.randn(4, 3), weight=torch.randn(2, 3), training=True)


def test_running_buffers_with_gaps_in_memory() -> None:
    x, memory = torch.randn(8, 3), torch.zeros(3, 2)
    mean, var = memory[:, 0], torch.ones(3)
    batch_norm(x, mean, var, training=True, momentum=1.0)
    torch.testing.assert_close(mean, x.mean(0))
    assert memory[:, 1].eq(0).all()


def test_a_residual_of_more_digits_is_added_to_what_the_layer_gives() -> None:
    x, residual = torch.randn(6, 3, 5).half(), torch.randn(6, 3, 5)
    y = batch_norm(x, training=True, residual=residual, act="relu")
    alone = batch_norm(x, training=True)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, (alone.float() + residual).relu())


def test_plain_calls_go_straight_to_the_operator() -> None:
    x = torch.randn(4, 3)
    assert plain_call(x) is cpu.ready("batch_norm")
    assert plain_call(torch.nn.Parameter(x)) is None, "a class of its own"
    with normscope.recompute():
        assert plain_call(x) is None
