"""fold: batch norms into their linear neighbours, exactly; and what is left, with its reason."""

import copy
import io
import random
import re
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import normscope
from normscope import InputError, ModelError
from normscope.folding import Folded, fold

CONVS: dict[str, tuple[nn.Module, int, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 8), 1, (5, 6)),
    "conv1d": (nn.Conv1d(6, 8, 3, padding=1), 1, (5, 6, 9)),
    "conv2d": (nn.Conv2d(6, 8, 3, stride=2, padding=1), 2, (5, 6, 9, 7)),
    "conv3d": (nn.Conv3d(6, 8, 2, dilation=2), 3, (2, 6, 5, 6, 5)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2, bias=False), 2, (5, 6, 9, 7)),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8, bias=False), 2, (5, 8, 9, 7)),
    "reflect": (nn.Conv2d(6, 8, 3, padding=2, padding_mode="reflect"), 2, (5, 6, 9, 7)),
    "same": (nn.Conv2d(6, 8, (4, 3), padding="same", padding_mode="circular"), 2, (5, 6, 9, 7)),
    "transposed1d": (nn.ConvTranspose1d(6, 8, 3, stride=2), 1, (5, 6, 9)),
    "transposed2d": (nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1), 2, (5, 6, 4, 7)),
    "transposed3d": (nn.ConvTranspose3d(6, 8, 2, bias=False), 3, (2, 6, 3, 4, 3)),
    "transposed grouped": (nn.ConvTranspose2d(6, 8, 3, groups=2, output_padding=1, stride=2), 2, (5, 6, 4, 7)),
}  # fmt: skip
PADDED = {"conv1d", "conv2d"}  # with zeros


def lived(module: Any) -> Any:
    """In eval(), with statistics and parameters as after some training."""
    for tensors in module.state_dict().values():
        if tensors.is_floating_point():
            tensors.uniform_(0.3, 2.0)
    for inner in module.modules():
        for name in ("bias", "running_mean"):
            if isinstance(value := getattr(inner, name, None), Tensor):
                value.data.sub_(1.0)
    return module.eval()


def norm_of(rank: int, features: int, **options: Any) -> Any:
    cls: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
    return cls(features, **options)


def state(model: nn.Module) -> list[tuple[Any, ...]]:
    """All of a model that looking at it must leave as it is."""
    tensors = [(n, t.data_ptr(), t.clone()) for n, t in model.state_dict(keep_vars=True).items()]
    modules = [(n, id(m), type(m), m.training) for n, m in model.named_modules()]
    return [*((n, p, t.tolist()) for n, p, t in tensors), *modules]


@pytest.mark.parametrize(("affine", "bias"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("name", CONVS)
def test_before(name: str, affine: bool, bias: bool) -> None:
    layer, rank, shape = copy.deepcopy(CONVS[name])
    norm = norm_of(rank, 8, affine=affine, eps=1e-2)
    if not bias:
        norm.register_parameter("bias", None)  # as bias=False from torch 2.13 on
    model = lived(nn.Sequential(layer, norm, nn.ReLU())).double()
    x = torch.randn(shape, dtype=torch.float64)
    expected, before = model(x), state(model)
    folding = fold(model)
    assert folding.folded == (("1", "0"),)
    assert folding.left == ()
    assert isinstance(folding.model[1], Folded)
    torch.testing.assert_close(folding.model(x), expected, rtol=1e-12, atol=1e-12)
    assert folding.verify(x).ok
    assert state(model) == before


@pytest.mark.parametrize("name", CONVS)
def test_behind(name: str) -> None:
    layer, rank, shape = copy.deepcopy(CONVS[name])
    model = lived(nn.Sequential(norm_of(rank, shape[1]), nn.Dropout(), layer)).double()
    x = torch.randn(shape, dtype=torch.float64)
    expected = model(x)
    folding = fold(model)
    torch.testing.assert_close(folding.model(x), expected, rtol=1e-12, atol=1e-12)
    if name in PADDED or "transposed" in name:
        assert folding.folded == ()
        assert re.search("the zeros with which|the shift would miss", folding.left[0][1])
    else:
        assert folding.folded == (("0", "2"),)


@pytest.mark.parametrize("kind", ["sync", "batch", "ghost", "renorm", "frozen"])
def test_the_family(kind: str) -> None:
    model = lived(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)))
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    options = {"ghost_size": 2} if kind == "ghost" else {}
    normscope.convert(model, kind, **options)
    folding = fold(model)
    assert folding.folded == (("1", "0"),)
    torch.testing.assert_close(folding.model(x), expected)


@pytest.mark.parametrize("act", ["relu", "leaky_relu", "silu"])
@pytest.mark.parametrize("kind", ["batch", "frozen"])
def test_its_own_activation_runs_on(act: Any, kind: str) -> None:
    model = lived(nn.Sequential(nn.Conv2d(3, 4, 3), normscope.BatchNorm2d(4, act=act)))
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    assert expected.min() < 0 or act == "relu"
    normscope.convert(model, kind)
    folding = fold(model)
    assert folding.folded == (("1", "0"),)
    torch.testing.assert_close(folding.model(x), expected)


def test_one_rounding_to_the_dtype_of_the_layer() -> None:
    model = lived(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)))
    folding = fold(model)
    double = copy.deepcopy(model).double()
    scale = double[1].weight / (double[1].running_var + 1e-5).sqrt()
    expected = (scale[:, None] * double[0].weight).float()
    assert torch.equal(folding.model[0].weight, expected)
    half = fold(copy.deepcopy(model).bfloat16())
    assert half.model[0].weight.dtype == torch.bfloat16
    assert half.verify(torch.randn(5, 6, dtype=torch.bfloat16)).ok


class Net(nn.Module):
    """Blocks in forms that a walk over modules in their order gets wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)  # named before its neighbour
        self.conv = nn.Conv2d(3, 4, 1)
        self.skipped = nn.BatchNorm2d(4)  # behind a sum, alone before a convolution
        self.fork = nn.Conv2d(4, 4, 1)  # seen by two
        self.fork_norm = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 1)  # runs twice
        self.norm_a, self.norm_b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.unused = nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        x = self.norm(self.conv(x))
        x = self.skipped(x + 1)
        y = self.fork(x)
        x = y + self.fork_norm(y)
        x = torch.relu(self.norm_a(self.shared(x)))
        return self.norm_b(self.shared(x)).relu()


@pytest.mark.parametrize("act", [None, "relu"])
def test_a_graph_of_torch_fx_that_holds_the_layers(act: Any) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), normscope.BatchNorm2d(4, act=act), nn.Conv2d(4, 2, 1),
        normscope.BatchNorm2d(2),
    )  # fmt: skip
    x = torch.randn(6, 3, 5, 5)
    net(x)
    traced = fx.symbolic_trace(net.eval())
    done = fold(traced)
    assert done.folded == (("1", "0"), ("3", "2"))
    assert done.verify(x).ok
    torch.testing.assert_close(done.model(x), net(x))
    assert "normalised" in traced.code, "the graph that was given stays"


def test_a_layer_that_is_given_a_residual_in_a_graph_is_left() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.norm = nn.Conv2d(3, 3, 1), normscope.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return cast(Tensor, self.norm(self.map(x), x))

    done = fold(fx.symbolic_trace(Sum().eval()))
    assert done.left == (("norm", "it is called with more than its input"),)
    assert done.verify(torch.randn(2, 3, 4, 4)).ok


def test_what_is_traced_and_what_is_left() -> None:
    model = lived(Net()).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    expected = model(x)
    folding = fold(model)
    torch.testing.assert_close(folding.model(x), expected)
    assert folding.folded == (("norm", "conv"), ("skipped", "fork"))
    left = dict(folding.left)
    assert set(left) == {"fork_norm", "norm_a", "norm_b", "unused"}
    assert "the output of 'fork' is used elsewhere too" in left["fork_norm"]
    assert "'shared' runs 2 times" in left["norm_a"]
    assert "does not run it" in left["unused"]
    assert type(folding.model) is Net
    assert folding.original is model


def chain() -> Any:
    return lived(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_sees_what_it_saw(where: int, hook: str) -> None:
    model = chain()
    getattr(model[where], hook)(lambda *_: None)
    folding = fold(model)
    assert folding.folded == ()
    assert f"'{where}' has a hook" in folding.left[0][1]


def test_hooks_outside_stay_and_run() -> None:
    model, seen = chain(), []
    model.register_forward_hook(lambda *_: seen.append(1))
    model[2].register_forward_hook(lambda *_: seen.append(2))
    folding = fold(model)
    assert folding.folded == (("1", "0"),)
    assert seen == []
    folding.model(torch.randn(1, 3, 2, 2))
    assert seen == [2, 1]


def test_tied_weights_are_left() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.ReLU())
    model[2].weight = model[0].weight
    folding = fold(lived(model))
    assert folding.folded == ()
    assert "'0' shares a parameter" in folding.left[0][1]
    assert folding.verify(torch.randn(3, 4)).ok


def test_batch_statistics_and_conditions_are_left() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert "keeps no running statistics" in fold(model).left[0][1]
    conditional = nn.Sequential(nn.Linear(3, 4), normscope.ConditionalBatchNorm1d(4, 2))
    assert "conditional norm is not one map" in fold(conditional).left[0][1]


def test_channels_on_another_axis() -> None:
    model = lived(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm2d(8)))
    folding = fold(model)
    assert folding.folded == ()
    assert "channels on another axis" in folding.left[0][1]
    # (N, L, C) through Linear, then BatchNorm1d takes L for the channels
    folded = fold(lived(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))))
    with pytest.raises(ValueError, match=re.escape("expected 2D input")):
        folded.model(torch.randn(3, 8, 6))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("running_var", -1.0, "channel 2 has running_var -1; it must be finite and at least 0"),
        ("running_var", float("nan"), "channel 2 has running_var nan"),
        ("running_mean", float("inf"), "channel 2 has running_mean inf; it must be finite"),
        ("weight", float("nan"), "channel 2 has weight nan"),
        ("bias", float("-inf"), "channel 2 has bias -inf"),
    ],
)
def test_a_bad_number_is_named(name: str, value: float, message: str) -> None:
    model = chain()
    getattr(model[1], name).data[2] = value
    before = str(state(model))
    with pytest.raises(ModelError, match=re.escape(f"fold of '1': {message}")):
        fold(model)
    assert str(state(model)) == before


def test_what_would_not_be_finite_is_named() -> None:
    model = chain()
    model[1].eps = 0.0
    model[1].running_var[1] = 0.0
    with pytest.raises(ModelError, match="channel 1 has running_var 0 and the norm eps 0"):
        fold(model)
    model = chain().half()
    model[1].weight.data[1] = 6e4
    model[0].weight.data[1] = 6e4
    with pytest.raises(ModelError, match="channel 1 of '0' would not be finite in float16"):
        fold(model)
    assert fold(model.float()).left == ()


def test_control_flow() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.sum() > 0 else x

    with pytest.raises(ModelError, match=r"Branch cannot be folded, since torch.fx cannot trace"):
        fold(Branch())
    model = lived(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), Branch()))
    x = torch.rand(4, 3)
    expected = model(x)
    folding = fold(model)
    assert folding.folded == (("1", "0"),)
    assert "it is inside '2', which torch.fx cannot trace" in dict(folding.left)["2.inner.1"]
    torch.testing.assert_close(folding.model(x), expected)


def test_the_whole_model_is_a_norm_or_has_none() -> None:
    assert fold(nn.BatchNorm1d(3)).left == (("BatchNorm1d", "it is the whole model"),)
    assert fold(nn.Linear(3, 3)).left == ()


def test_verify_needs_a_batch_and_sees_a_difference() -> None:
    folding = fold(chain())
    with pytest.raises(InputError, match="verify needs a batch"):
        folding.verify()
    with pytest.raises(ModelError, match="Sequential fails on these inputs"):
        folding.verify(torch.randn(3))
    x = torch.randn(2, 3, 4, 4)
    assert folding.verify(x).ok
    folding.model[0].weight.data[0] += 0.01
    assert not folding.verify(x).ok


def test_saved_and_loaded_exported_and_scripted() -> None:
    folding = fold(chain())
    x = torch.randn(2, 3, 4, 4)
    expected = folding.model(x)
    file = io.BytesIO()
    torch.save(folding.model.state_dict(), file)
    file.seek(0)
    other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity(), nn.ReLU())
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), expected)
    exported = torch.export.export(folding.model, (x,)).module()
    torch.testing.assert_close(exported(x), expected)
    assert torch.equal(copy.deepcopy(folding.model)(x), expected)


class Draws(nn.Module):
    """Takes a path at random, as stochastic depth does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    def forward(self, x: Tensor) -> Tensor:
        scale = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
        return self.body(x) * scale if random.random() < 2 else x


def test_no_generator_moves() -> None:
    def states() -> Any:
        name, keys, *place = np.random.get_state()  # noqa: NPY002
        return random.getstate(), name, keys.tolist(), place, torch.get_rng_state().tolist()

    model, x = Draws(), torch.randn(5, 3)
    before = states()
    folding = fold(model)
    assert folding.folded == (("body.1", "body.0"),)
    assert states() == before
    folding.verify(x)
    assert states() == before
    conversion = normscope.convert(model, "batch")
    assert conversion.verify(x).ok  # both sides draw the same numbers
    assert states() == before


@pytest.mark.parametrize("seed", range(8))
def test_random_chains(seed: int) -> None:
    """Norms between any two layers: whatever is folded, the function is the same."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(0, 6, (9,), generator=generator).tolist()
    made: list[Any] = [
        lambda: nn.Conv2d(4, 4, 3, padding=1),
        lambda: nn.Conv2d(4, 4, 1, groups=2, bias=False),
        lambda: nn.BatchNorm2d(4),
        lambda: nn.BatchNorm2d(4, affine=False),
        nn.Dropout,
        lambda: nn.ConvTranspose2d(4, 4, 3),
    ]
    model = lived(nn.Sequential(*(made[kind]() for kind in kinds), nn.ReLU())).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    folding = fold(model)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model)
    assert len(folding.folded) + len(folding.left) == norms
    torch.testing.assert_close(folding.model(x), model(x), rtol=1e-10, atol=1e-10)


TIMM = {
    # architecture: the share of its norms that fold
    "resnet10t": 1.0,
    "mobilenetv2_050": 1.0,
    "tinynet_e": 1.0,
    "repvgg_a0": 0.5,
    "densenet121": 0.4,
    "levit_128s": 0.1,  # most see the output of their Linear flattened
}


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str, timm: Any) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=5)
    side = 224 if name.startswith("levit") else 64
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        model.train()(x)
        model.eval()
        folding = fold(model)
        assert folding.verify(x).ok
        share = len(folding.folded) / (len(folding.folded) + len(folding.left))
        assert share >= TIMM[name]


class Moved(nn.Module):
    """A norm over the last axis of a linear layer, as LeViT and users of BatchNorm1d write it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.linear = nn.Linear(5, 6, bias=way == "reshape")
        self.norm = nn.BatchNorm2d(6) if way == "permute" else nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.way == "flatten":
            z = self.norm(y.flatten(0, 1)).reshape_as(y)
        elif self.way == "reshape":
            z = self.norm(y.reshape(-1, y.shape[-1])).view(y.size())
        elif self.way == "permute":
            z = self.norm(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        elif self.way == "watched":
            z = self.norm(y.transpose(1, 2)).transpose(1, 2) + y
        elif self.way == "all":
            z = self.norm(y.flatten(1)).view_as(y)
        elif self.way == "behind":
            z = torch.relu(self.linear(x)).transpose(1, 2)
            z = self.norm(z).transpose(1, 2)
        else:
            z = self.norm(y.transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.last(z if self.way == "behind" else z.relu())
        return out


@pytest.mark.parametrize(
    "way", ["flatten", "reshape", "permute", "transpose", "behind", "watched", "all"]
)
def test_a_step_between_that_moves_the_channels(way: str) -> None:
    torch.manual_seed(0)
    net = Moved(way)
    x = torch.randn(4, 3, 2, 5) if way == "permute" else torch.randn(4, 1 if way == "all" else 3, 5)
    with torch.no_grad():
        for _ in range(3):
            net(x)
        nn.init.uniform_(net.norm.weight, 0.5, 1.5)
        nn.init.normal_(net.norm.bias)
    net.double().eval()
    x = torch.randn(7, *x.shape[1:], dtype=torch.float64)
    done = fold(net)
    torch.testing.assert_close(done.model(x), net(x), rtol=1e-12, atol=1e-12)
    into = {"behind": "last", "watched": None, "all": None}.get(way, "linear")
    assert done.folded == (() if into is None else (("norm", into),))
    if into and way != "reshape":  # of another rank the norm would take another axis
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            done.model(torch.randn(7, 3, 2, 2, 5, dtype=torch.float64))
