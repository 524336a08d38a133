"""The sample's own weight at inference: against NumPy, at its ends, saved, converted and back."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

import normscope
from normscope.doctor import own_weight
from normscope.errors import InputError
from normscope.folding import fold

SHAPES = {"(N, C)": (6, 3), "1d": (6, 3, 5), "2d": (6, 3, 4, 5), "3d": (6, 3, 2, 3, 2)}
SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def layer(shape: tuple[int, ...], w: float, **kwargs: Any) -> Any:
    made = getattr(normscope, f"EvalNorm{max(1, len(shape) - 2)}d")(3, w, **kwargs).double()
    for _ in range(5):
        made(torch.randn(shape, dtype=torch.double) * 3 + torch.tensor(2.0))
    if made.affine:
        nn.init.normal_(made.weight), nn.init.normal_(made.bias)
    return made.eval()


def oracle(norm: Any, x: Tensor, w: float) -> Any:
    """Mean and variance of a mixture: of the sample's values and of the stored distribution."""
    values, eps = x.detach().double().numpy(), norm.eps
    mean, var = (b.double().numpy() for b in (norm.running_mean, norm.running_var))
    y = np.empty_like(values)
    for n in range(len(values)):
        for c in range(values.shape[1]):
            own = values[n, c]
            mixed = w * own.mean() + (1 - w) * mean[c]
            second = w * (own**2).mean() + (1 - w) * (var[c] + mean[c] ** 2)
            y[n, c] = (own - mixed) / np.sqrt(second - mixed**2 + eps)
            y[n, c] = y[n, c] * norm.weight[c].item() + norm.bias[c].item()
    return y


@SHAPE
@pytest.mark.parametrize("w", [0.05, 0.5, 1.0])
def test_against_numpy(shape: tuple[int, ...], w: float) -> None:
    norm, x = layer(shape, w), torch.randn(shape, dtype=torch.double) * 2 - 1
    np.testing.assert_allclose(norm(x).detach().numpy(), oracle(norm, x, w), rtol=1e-9, atol=1e-9)
    # each sample by itself, whoever else is there
    torch.testing.assert_close(norm(x)[2:3], norm(x[2:3]), rtol=1e-12, atol=1e-12)


@SHAPE
def test_no_weight_is_batch_norm_to_the_bit(shape: tuple[int, ...]) -> None:
    norm, x = layer(shape, 0.0).float(), torch.randn(shape)
    x[0] = torch.nan
    rank = max(1, len(shape) - 2)
    plain = getattr(normscope, f"BatchNorm{rank}d")(3).eval()
    plain.load_state_dict({k: v for k, v in norm.state_dict().items() if k != "own_weight"})
    assert torch.equal(norm(x).nan_to_num(7), plain(x).nan_to_num(7))
    norm.own_weight = 0.3
    assert torch.equal(norm.train()(x[1:]), plain.train()(x[1:]))  # training is batch norm
    assert torch.equal(norm.running_var, plain.running_var)


def test_full_weight_is_instance_norm() -> None:
    norm, x = layer((6, 3, 4, 5), 1.0), torch.randn(6, 3, 4, 5, dtype=torch.double)
    expected = nn.functional.instance_norm(x, weight=norm.weight, bias=norm.bias)
    torch.testing.assert_close(norm(x), expected)


@SHAPE
def test_gradients(shape: tuple[int, ...]) -> None:
    norm = layer(shape, 0.3)
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    assert gradcheck(norm, x)
    norm(x).square().sum().backward()
    assert norm.weight.grad.abs().min() > 0
    assert norm.bias.grad.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True])
def test_dtypes_and_memory_formats(dtype: torch.dtype, last: bool) -> None:
    norm, x = layer((6, 3, 4, 5), 0.3).float(), (torch.randn(6, 3, 4, 5) + 3).to(dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    y = norm(x)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last) == last
    expected = torch.from_numpy(oracle(norm, x, 0.3)).to(dtype)
    torch.testing.assert_close(y, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_far_from_zero() -> None:
    norm, x = layer((6, 3, 4, 5), 0.3).float(), torch.randn(6, 3, 4, 5) + 1e4
    norm.running_mean.fill_(1e4)
    torch.testing.assert_close(
        norm(x), torch.from_numpy(oracle(norm, x, 0.3)).float(), rtol=1e-5, atol=1e-5
    )


def test_activation_residual_and_mask() -> None:
    shape = (6, 3, 4, 5)
    norm, x = layer(shape, 0.3, act="relu"), torch.randn(shape, dtype=torch.double)
    mask, residual = torch.rand(6, 4, 5) < 0.7, torch.randn_like(x)
    wrong = x.masked_fill(~mask.unsqueeze(1), torch.nan)
    y = norm(wrong, residual, mask)
    assert (y.movedim(1, -1)[~mask] == 0).all()
    one = x[2:3, :, mask[2]]  # the values that count, as a line
    plain = normscope.EvalNorm1d(3, 0.3).double().eval()
    plain.load_state_dict(norm.state_dict())
    expected = (plain(one) + residual[2:3, :, mask[2]]).relu()
    torch.testing.assert_close(y[2:3, :, mask[2]], expected)


def test_the_weight_is_saved_and_plain_checkpoints_load() -> None:
    norm, x = layer((6, 3), 0.25), torch.randn(6, 3, dtype=torch.double)
    state = norm.state_dict()
    assert float(state["own_weight"]) == 0.25
    other = nn.Sequential(normscope.EvalNorm1d(3)).double().eval()
    other.load_state_dict({f"0.{key}": value for key, value in state.items()})
    assert torch.equal(other(x), norm(x))
    other.load_state_dict({f"0.{key}": v for key, v in nn.BatchNorm1d(3).state_dict().items()})
    assert other[0].own_weight == 0.25
    assert copy.deepcopy(norm).own_weight == 0.25
    with pytest.raises(RuntimeError, match="Unexpected key.*own_weight"):
        nn.BatchNorm1d(3).load_state_dict(state)  # which would compute something else
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="own_weight is .*; it must be from 0 to 1"):
            normscope.EvalNorm1d(3, wrong)


def test_from_torch_layers_and_back() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))
    for _ in range(3):
        model(torch.randn(8, 3))
    model.eval()
    x, before, state = (
        torch.randn(8, 3),
        [type(m) for m in model],
        copy.deepcopy(model.state_dict()),
    )
    plain, weight = model(x), model[1].weight
    none = own_weight(model, [], 0.0)
    torch.testing.assert_close(model(x), plain)
    assert {change.equal for change in none.changed} == {"eval"}
    changed = own_weight(model, ["1"], 0.4)
    assert [(c.name, c.equal) for c in changed.changed] == [("1", "never")]
    assert not torch.allclose(model(x), plain)
    assert model[1].weight is weight
    assert fold(model).left[0] == ("1", "evalnorm norm is not one map for all samples")
    changed.revert()
    none.revert()
    assert [type(m) for m in model] == before
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    assert torch.equal(model(x), plain)
    with pytest.raises(InputError, match="it must be from 0 to 1"):
        own_weight(model, [], 2)
    assert [type(m) for m in model] == before
