"""Checkpoints of Keras, Flax and inplace_abn, judged by what those layers compute, in NumPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import normscope
from normscope import InputError
from normscope.conversion import from_flax, from_inplace_abn, from_keras

C = 3


class Peer:
    """A layer with the conventions that Keras and Flax share, on (N, H, W, C), in float64."""

    def __init__(self, eps: float, momentum: float) -> None:
        rng = np.random.default_rng(0)
        self.eps, self.momentum = eps, momentum
        self.gamma, self.beta, self.mean = rng.normal(size=(3, C))
        self.var = rng.uniform(0.5, 2.0, size=C)

    def train(self, x: Any) -> None:
        for name, new in (("mean", x.mean((0, 1, 2))), ("var", x.var((0, 1, 2)))):
            old = getattr(self, name)
            setattr(self, name, self.momentum * old + (1 - self.momentum) * new)

    def eval(self, x: Any) -> Any:
        return self.gamma * (x - self.mean) / np.sqrt(self.var + self.eps) + self.beta


def keras(peer: Peer) -> dict[str, Any]:
    return {
        "block/conv/kernel": np.zeros((1, 1, C, C)),
        "block/bn/gamma": peer.gamma,
        "block/bn/beta": peer.beta,
        "block/bn/moving_mean": peer.mean,
        "block/bn/moving_variance": peer.var,
    }


def old_keras(peer: Peer) -> dict[str, Any]:
    """TensorFlow's names, and the shape that virtual_batch_size gives."""
    return {f"{k}:0": v.reshape(1, 1, 1, C) if "bn" in k else v for k, v in keras(peer).items()}


def linen(peer: Peer) -> dict[str, Any]:
    bn = {"scale": peer.gamma, "bias": peer.beta}
    return {
        "params": {"block": {"conv": {"kernel": np.zeros((1, 1, C, C))}, "bn": bn}},
        "batch_stats": {"block": {"bn": {"mean": peer.mean, "var": peer.var}}},
    }


def flat_linen(peer: Peer) -> dict[str, Any]:
    return {
        "params/block/conv/kernel": np.zeros((1, 1, C, C)),
        "params/block/bn/scale": peer.gamma,
        "params/block/bn/bias": peer.beta,
        "batch_stats/block/bn/mean": peer.mean,
        "batch_stats/block/bn/var": peer.var,
    }


def nnx(peer: Peer) -> dict[str, Any]:
    bn = {"scale": peer.gamma, "bias": peer.beta, "mean": peer.mean, "var": peer.var}
    return {"block": {"conv": {"kernel": np.zeros((1, 1, C, C))}, "bn": bn}}


FORMS: dict[str, tuple[Callable[..., Any], Callable[[Peer], dict[str, Any]], float, str]] = {
    "keras": (from_keras, keras, 1e-3, "block/conv/kernel"),
    "old keras": (from_keras, old_keras, 1e-3, "block/conv/kernel:0"),
    "linen": (from_flax, linen, 1e-5, "params/block/conv/kernel"),
    "flat linen": (from_flax, flat_linen, 1e-5, "params/block/conv/kernel"),
    "nnx": (from_flax, nnx, 1e-5, "block/conv/kernel"),
}


def loaded(imported: Any, cls: Any = nn.BatchNorm2d) -> Any:
    block = nn.ModuleDict(
        {"bn": cls(C, eps=imported.eps, momentum=imported.momentum, dtype=torch.float64)}
    )
    nn.ModuleDict({"block": block}).load_state_dict(imported.state)
    return block["bn"]


def channels_first(x: Any) -> torch.Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2)


@pytest.mark.parametrize("cls", [nn.BatchNorm2d, normscope.BatchNorm2d], ids=["torch", "ours"])
@pytest.mark.parametrize("form", FORMS)
def test_equal_in_eval(form: str, cls: Any) -> None:
    function, write, eps, rest = FORMS[form]
    peer = Peer(eps, 0.99)
    x = np.random.default_rng(1).normal(1.0, 2.0, size=(4, 5, 6, C))
    imported = function(write(peer))
    assert imported.eps == eps
    assert imported.rest == (rest,)
    y = loaded(imported, cls).eval()(channels_first(x))
    torch.testing.assert_close(y, channels_first(peer.eval(x)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_training_goes_on_as_it_would_have(form: str) -> None:
    """Imported then trained is trained then imported: the momentum and n / (n - 1) are right."""
    function, write, eps, _ = FORMS[form]
    peer = Peer(eps, 0.9)
    batches = np.random.default_rng(2).normal(1.0, 2.0, size=(3, 4, 5, 6, C))
    n = 4 * 5 * 6
    layer = loaded(function(write(peer), momentum=0.9, count=n)).train()
    for x in batches:
        layer(channels_first(x))
        peer.train(x)
    after = loaded(function(write(peer), momentum=0.9, count=n))
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(layer, name), getattr(after, name), rtol=1e-12, atol=0.0)
    wrong = loaded(function(write(peer), momentum=0.9))
    assert not torch.allclose(layer.running_var, wrong.running_var, rtol=1e-4)


def test_without_scale_or_center() -> None:
    peer = Peer(1e-3, 0.99)
    weights = keras(peer)
    del weights["block/bn/gamma"]
    state = from_keras(weights).state
    assert torch.equal(state["block.bn.weight"], torch.ones(C, dtype=torch.float64))
    del weights["block/bn/beta"]
    assert set(from_keras(weights).state) == {
        f"block.bn.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_layer_norms_and_halves_are_rest() -> None:
    weights = keras(Peer(1e-3, 0.99)) | {"ln/gamma": np.ones(C), "half/moving_mean": np.ones(C)}
    assert from_keras(weights).rest == ("block/conv/kernel", "ln/gamma", "half/moving_mean")


def test_the_layer_alone_and_tensors_of_its_own() -> None:
    mean = torch.zeros(C, dtype=torch.bfloat16)
    imported = from_flax({"mean": mean, "var": np.ones(C, dtype=np.float16)})
    assert imported.state["running_mean"].dtype == torch.bfloat16
    assert imported.state["running_var"].dtype == torch.float16
    imported.state["running_mean"].add_(1)
    assert mean.eq(0).all()
    assert imported.momentum == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"block/bn/gamma": np.ones(2)}, {}, r"block/bn has tensors of several shapes: gamma \(2,\)"),
        ({"block/bn/beta": np.ones((2, 2))}, {}, r"block/bn/beta must hold .* float64 of shape \(2, 2\)"),
        ({"block/bn/beta": np.ones(3, int)}, {}, "block/bn/beta must hold .* int64"),
        ({}, {"count": 1}, "count must be 0, or .* at least 2; got 1"),
        ({}, {"momentum": 1.5}, "momentum from 0 to 1; got .*momentum=1.5"),
        ({}, {"eps": -1.0}, "eps must be at least 0"),
    ],
)  # fmt: skip
def test_refused(change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_keras(keras(Peer(1e-3, 0.99)) | change, **options)


def test_no_batch_norm() -> None:
    with pytest.raises(InputError, match="no layer has moving_mean and moving_variance"):
        from_keras({"dense/kernel": np.ones((2, 2))})
    with pytest.raises(InputError, match="no layer has mean and var"):
        from_flax({"params": {}})


def test_inplace_abn() -> None:
    eps, slope = 1e-2, 0.01
    rng = np.random.default_rng(3)
    weight, bias, mean = rng.normal(size=(3, C))
    weight[0] = -abs(weight[0])
    var = rng.uniform(0.5, 2.0, size=C)
    x = rng.normal(size=(5, C, 4))
    shaped = [v.reshape(1, C, 1) for v in (np.abs(weight) + eps, bias, mean, var)]
    z = shaped[0] * (x - shaped[2]) / np.sqrt(shaped[3] + eps) + shaped[1]
    state = {
        "0.weight": torch.from_numpy(weight),
        "0.bias": torch.from_numpy(bias),
        "0.running_mean": torch.from_numpy(mean),
        "0.running_var": torch.from_numpy(var),
        "0.num_batches_tracked": torch.tensor(7),
        "2.weight": -torch.ones(2, C),
    }
    imported = from_inplace_abn(state, eps=eps)
    assert torch.equal(imported["2.weight"], state["2.weight"])
    assert state["0.weight"][0] < 0
    norm = nn.BatchNorm1d(C, eps=eps, dtype=torch.float64).eval()
    norm.load_state_dict({k[2:]: v for k, v in imported.items() if k[0] == "0"})
    y = nn.functional.leaky_relu(norm(torch.from_numpy(x)), slope)
    expected = torch.from_numpy(np.where(z > 0, z, slope * z))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_inplace_abn_only() -> None:
    state = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)).state_dict()
    imported = from_inplace_abn(state, eps=0.5, only=["1"])
    assert imported["0.weight"].tolist() == [1.0, 1.0]
    assert imported["1.weight"].tolist() == [1.5, 1.5]
    assert from_inplace_abn(nn.BatchNorm1d(2).state_dict(), eps=0.5)["weight"][0] == 1.5
    with pytest.raises(InputError, match="no batch norm is called 'x'; there is 0, 1"):
        from_inplace_abn(state, only=["x"])
    with pytest.raises(InputError, match="no batch norm with a weight"):
        from_inplace_abn(nn.Linear(2, 2).state_dict())


def test_what_was_never_counted_begins_at_none_and_goes_on_in_torch() -> None:
    found = from_keras(keras(Peer(1e-3, 0.99)))
    counter = found.state["block.bn.num_batches_tracked"]
    assert (counter.item(), counter.dtype, counter.dim()) == (0, torch.long, 0)
    layer = loaded(found)
    layer.train()(torch.randn(4, C, 2, 2).double())
    assert layer.num_batches_tracked == 1


def test_what_lacks_a_statistic_does_not_keep_the_next_from_being_read() -> None:
    odd = {"half/moving_mean": np.ones(C), "other/moving_variance": np.ones(C)}
    found = from_keras(odd | keras(Peer(1e-3, 0.99)))
    assert found.rest == ("half/moving_mean", "other/moving_variance", "block/conv/kernel")
    assert "block.bn.weight" in found.state
    weights = keras(Peer(1e-3, 0.99))
    del weights["block/bn/beta"]
    assert from_keras(weights).state["block.bn.bias"].tolist() == [0] * C


def test_the_defaults_of_each_library() -> None:
    norm = nn.BatchNorm1d(2).state_dict() | {"weight": torch.tensor([-1.0, 1.0]).double()}
    assert from_inplace_abn(norm)["weight"].tolist() == [1.00001, 1.00001]
    peer = Peer(1e-3, 0.99)
    for function, write, eps in ((from_keras, keras, 1e-3), (from_flax, nnx, 1e-5)):
        found = function(write(peer))
        assert (found.eps, found.momentum) == (eps, 1 - 0.99)
        assert torch.equal(found.state["block.bn.running_var"], torch.from_numpy(peer.var))
        two = function(write(peer), count=2, momentum=0, eps=0)
        assert torch.equal(two.state["block.bn.running_var"], torch.from_numpy(2 * peer.var))
        assert (two.eps, two.momentum) == (0, 1)
        assert function(write(peer), momentum=1).momentum == 0
        for wrong in ({"count": -1}, {"count": 1}, {"momentum": -0.1}, {"eps": float("nan")}):
            with pytest.raises(InputError, match="at least"):
                function(write(peer), **wrong)


def test_one_of_several_patterns_is_enough() -> None:
    state = nn.Sequential(*[nn.BatchNorm1d(2) for _ in range(7)]).state_dict()
    found = from_inplace_abn(state, eps=0.5, only=["1", "3"])
    assert [found[f"{i}.weight"][0].item() for i in range(4)] == [1, 1.5, 1, 1.5]
    with pytest.raises(InputError, match=r"called 'x'; there is 0, 1, 2, 3, 4$"):
        from_inplace_abn(state, only=["1", "x"])
