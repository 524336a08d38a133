"""convert(fuse=True): which activations and sums norm layers take over, proved and reversible."""

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normscope
from normscope.conversion import convert
from normscope.conversion.fused_forward import fused_class
from normscope.errors import InputError
from normscope.lens import inspect
from tests.conversion.test_conversion import state

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """As the blocks of residual networks: one ReLU module, called twice, and a sum."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.conv1: Any = nn.Conv2d(width, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Identity()
        self.downsample: nn.Module | None = None

    def forward(self, x: Any) -> Any:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(self.dropout(out))


class Functions(nn.Module):
    """Activations without a module, and a sum without an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(7))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(7))

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.norms[0](self.convs[0](x)), True)
        y = torch.relu(self.norms[1](self.convs[1](y)))
        y = self.norms[2](self.convs[2](y)).relu_()
        y = F.silu(self.norms[3](self.convs[3](y)))
        y = F.leaky_relu(self.norms[4](self.convs[4](y)), negative_slope=0.01)
        y = F.leaky_relu(self.norms[5](self.convs[5](y)), 0.2)
        return y + self.norms[6](self.convs[6](y))


def sequential(*parts: nn.Module) -> Any:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), *parts)


@pytest.fixture
def relus(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The ReLU modules that run, one entry for each call."""
    calls: list[nn.Module] = []
    forward = nn.ReLU.forward

    def counted(self: nn.ReLU, input: Tensor) -> Tensor:
        calls.append(self)
        return forward(self, input)

    monkeypatch.setattr(nn.ReLU, "forward", counted)
    return calls


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (nn.ReLU(inplace=True), "relu"),
        (nn.ReLU(), "relu"),
        (nn.LeakyReLU(), "leaky_relu"),
        (nn.SiLU(inplace=True), "silu"),
    ],
)
@pytest.mark.parametrize("kind", ["batch", "frozen"])
def test_an_activation_behind_a_norm_is_taken_in(act: nn.Module, name: str, kind: str) -> None:
    model = sequential(act, nn.Identity(), nn.BatchNorm2d(3))
    before, keys = state(model), list(model.state_dict())
    conversion = convert(model, kind, fuse=True)
    assert [(f.name, f.act, f.place, f.residual) for f in conversion.fused] == [
        ("1", name, "2", False)
    ]
    assert [(left.name, left.layer) for left in conversion.unfused] == [
        ("4", type(model[4]).__name__)
    ]
    assert model[1].act == name
    assert type(model[2]) is nn.Identity
    assert model[2] is act, "whoever holds the module holds what became of it"
    assert model[4].act is None
    assert list(model.state_dict()) == keys
    result = conversion.verify(X)
    assert result.ok, result
    model[1].act = "silu" if name == "relu" else "relu"
    assert not conversion.verify(X).ok, "another activation is found"
    conversion.revert()
    assert state(model) == before


def test_what_was_converted_before_is_fused_too_and_no_kind_without_activation() -> None:
    model = sequential(nn.ReLU())
    convert(model, "batch")
    assert [f.name for f in convert(model, "batch", fuse=True).fused] == ["1"]
    assert not convert(model, "batch", fuse=True).fused, "nothing is left to do"
    for kind in ("torch", "group"):
        with pytest.raises(InputError, match=r"fuse=True needs .*, which .*; to can be 'batch'"):
            convert(model, kind, fuse=True, **({"num_groups": 1} if kind == "group" else {}))
    alone = convert(nn.BatchNorm2d(3), "batch", fuse=True)
    assert [left.reason for left in alone.unfused] == ["it is the whole model"]


class TwoConsumers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.relu = nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        y = self.bn(x)
        return self.relu(y) * y


class OnlyInTraining(TwoConsumers):
    def forward(self, x: Tensor) -> Any:
        y = self.bn(x)
        return self.relu(y) if self.training else torch.tanh(y)


class Untraceable(TwoConsumers):
    def forward(self, x: Tensor) -> Any:
        return self.relu(self.bn(x if bool(x.sum() > 0) else -x))


class Random(TwoConsumers):
    def forward(self, x: Tensor) -> Any:
        return self.relu(self.bn(x)) + self.relu(x if random.random() < 2 else -x)


class Asking(TwoConsumers):
    def forward(self, x: Tensor) -> Any:
        return self.relu(self.bn(x)) + (self.relu(x) if torch.is_grad_enabled() else x)


class Uncopyable(TwoConsumers):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("there is only one")


def hooked(kind: str) -> Any:
    model = nn.Sequential(sequential(), nn.ReLU())
    target = {"activation": model[1], "norm": model[0][1], "around": model[0]}[kind]
    target.register_forward_hook(lambda *_: None)
    return model


def shared_with_other() -> Any:
    relu = nn.ReLU()
    return sequential(relu, nn.Conv2d(3, 3, 1), relu)


UNFUSED: list[tuple[Callable[[], Any], str]] = [
    (TwoConsumers, "its output is used 2 times"),
    (OnlyInTraining, "which is no activation module; OnlyInTraining stays: .*another one in eval"),
    (Untraceable, r"torch.fx cannot trace the model \(.*\); Untraceable stays: .*'bool'"),
    (Random, "'relu' is also given the output of 'x'; Random stays: .*uses 'random'"),
    (Asking, "'relu' is also given the output of 'x'; Asking stays: .*asks for 'is_grad_enabled'"),
    (lambda: hooked("activation"), "'1' has a hook"),
    (lambda: hooked("norm"), "'0.1' has a hook"),
    (lambda: hooked("around"), "'0' has a hook"),
    (shared_with_other, "'2' is also given the output of '3'"),
    (lambda: sequential(nn.GELU()), r"'2' \(GELU\) behind it is no activation"),
    (lambda: sequential(nn.LeakyReLU(0.2)), r"'2' \(LeakyReLU\) behind it is no activation"),
    (lambda: sequential(), "its output goes to 'output', which is no activation module"),
]


@pytest.mark.parametrize(("make", "sentence"), UNFUSED)
def test_what_cannot_be_fused_is_converted_and_says_why(
    make: Callable[[], Any], sentence: str
) -> None:
    model = make()
    acts = [type(m) for m in model.modules() if not list(m.children())]
    conversion = convert(model, "batch", fuse=True)
    assert not conversion.fused
    (left,) = conversion.unfused
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(left.reason)
    assert len(conversion.changed) == 1
    expected = [normscope.BatchNorm2d if a is nn.BatchNorm2d else a for a in acts]
    assert [type(m) for m in model.modules() if not list(m.children())] == expected
    assert conversion.verify(X).ok


def test_a_model_that_cannot_be_copied_is_converted() -> None:
    conversion = convert(Uncopyable(), "batch", fuse=True)
    assert len(conversion.changed) == 1
    assert "cannot be copied (RuntimeError: there is only one)" in conversion.unfused[0].reason


def test_a_shared_activation_goes_when_all_its_calls_are_fused(relus: list[nn.Module]) -> None:
    relu: Any = nn.ReLU()
    model = sequential(relu, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), relu)
    model.append(model[0]).append(model[1]).append(relu)  # and a norm that runs twice
    conversion = convert(model, "batch", fuse=True)
    assert [(f.name, f.place) for f in conversion.fused] == [("1", "2"), ("4", "2")]
    assert isinstance(relu, nn.Identity)
    assert conversion.verify(X).ok
    relus.clear()
    model(X)
    assert not relus
    conversion.revert()
    assert isinstance(relu, nn.ReLU)
    model(X)
    assert relus == [relu] * 3


def test_a_block_that_calls_one_activation_twice_adds_and_activates_in_its_norms(
    relus: list[nn.Module],
) -> None:
    model: Any = nn.Sequential(Residual(), Residual())
    model[1].downsample = sequential()
    before = state(model)
    conversion = convert(model, "batch", fuse=True)
    assert [(f.name, f.act, f.place, f.residual) for f in conversion.fused] == [
        (f"{i}.{norm}", "relu", f"{i}.relu", residual)
        for i in (0, 1)
        for norm, residual in (("bn1", False), ("bn2", True))
    ]
    assert type(model[0].relu) is nn.ReLU, "its module stays what it is"
    assert isinstance(model[0], Residual)
    assert model[0].bn1.act is None
    result = conversion.verify(X)
    assert result.ok, result
    assert len([c for c in result.comparisons if c.allowed is not None]) == 6
    relus.clear()
    fused = model.eval()(X)
    assert not relus
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(X), fused)
    assert not relus, "a copy is fused too"
    own = pickle.loads(pickle.dumps(model))
    assert type(own[0]) is Residual, "a pickled one has its block's own forward"
    torch.testing.assert_close(own(X), fused)
    assert len(relus) == 4
    assert conversion.revert() is model
    torch.testing.assert_close(model(X), fused)
    assert state(model.train()) == before


def test_the_fused_forward_gives_way_where_it_would_not_be_the_same(
    relus: list[nn.Module],
) -> None:
    block: Any = Residual()
    twin = copy.deepcopy(block)
    convert(block, "batch", fuse=True)

    def calls(change: Callable[[Any], Any], x: Tensor = X) -> int:
        """How often ReLU runs by itself once both were changed; their outputs are equal."""
        undone = [change(module) for module in (block, twin)]
        expected = twin(x)
        relus.clear()
        torch.testing.assert_close(block(x), expected)
        for handle in undone:
            if hasattr(handle, "remove"):
                handle.remove()
        return len(relus)

    assert calls(lambda b: None) == 0
    assert calls(lambda b: None, X.clone().requires_grad_()) == 0
    seen: list[Tensor] = []
    for name in ("bn1", "bn2", "relu"):
        hook = lambda module, args, y: seen.append(y)
        assert calls(lambda b, n=name, h=hook: getattr(b, n).register_forward_hook(h)) == 2, name
    assert len(seen) == 2 * (1 + 1 + 2), "a hook sees every call"
    assert calls(lambda b: b.conv1.register_forward_hook(lambda *_: None)) == 0
    assert calls(lambda b: setattr(b, "downsample", nn.MaxPool2d(1))) == 2
    assert calls(lambda b: setattr(b, "downsample", None)) == 0
    assert calls(lambda b: b.bn1.__dict__.update(act="relu")) == 2, "it has one of its own now"
    block.bn1.act = None
    del twin.bn1.__dict__["act"]
    assert calls(lambda b: setattr(b, "relu", nn.GELU())) == 0, "the GELU runs"
    assert calls(lambda b: setattr(b, "relu", nn.ReLU())) == 0
    narrow: Any = Residual()
    narrow.downsample = nn.AvgPool2d(6)  # a sum that broadcasts
    expected = narrow(X)
    conversion = convert(narrow, "batch", fuse=True)
    torch.testing.assert_close(narrow(X), expected)
    assert conversion.verify(X).ok


def test_functions_and_sums_in_a_forward_are_fused() -> None:
    model = Functions()
    conversion = convert(model, "batch", fuse=True)
    found = {f.name: (f.act, f.place, f.residual) for f in conversion.fused}
    assert found == {
        "norms.0": ("relu", "relu() in Functions", False),
        "norms.1": ("relu", "relu() in Functions", False),
        "norms.2": ("relu", ".relu_() in Functions", False),
        "norms.3": ("silu", "silu() in Functions", False),
        "norms.4": ("leaky_relu", "leaky_relu() in Functions", False),
        "norms.6": ("", "+ in Functions", True),
    }
    assert [left.name for left in conversion.unfused] == ["norms.5"]
    assert conversion.verify(X).ok


def test_nothing_changes_when_fusing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = nn.Sequential(*sequential(nn.ReLU()), Residual(), Residual())
    before = state(model)
    calls = []

    def fails(block: nn.Module, path: str) -> Any:
        calls.append(block)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return made(block, path)

    made = fused_class
    monkeypatch.setattr("normscope.conversion.fuse.fused_class", fails)
    with pytest.raises(KeyboardInterrupt):
        convert(model, "batch", fuse=True)
    assert state(model) == before


def test_the_lens_sees_the_same() -> None:
    model = nn.Sequential(*sequential(nn.ReLU()), Residual()).eval()
    batches = [(torch.randn(8, 3, 6, 6), torch.arange(8) % 2)]
    before = inspect(model, batches).layers
    convert(model, "batch", fuse=True)
    after = inspect(model, batches).layers
    assert [(a.name, a.activation) for a in after] == [(b.name, b.activation) for b in before]
    for old, new in zip(before, after, strict=True):
        for stage, other in zip(old.stages, new.stages, strict=True):
            assert other.eta2_mean == pytest.approx(stage.eta2_mean, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["tinynet_e", "resnet10t"])
def test_networks_of_timm(name: str, timm: Any) -> None:
    """One behind whose norms modules of timm's own activate, one whose blocks add."""
    model = timm.create_model(name, pretrained=False, num_classes=5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    conversion = convert(model, "batch", fuse=True)
    # of resnet10t's blocks each adds; of tinynet's those whose input fits the output
    blocks = [m for m in model.modules() if getattr(m, "has_skip", name == "resnet10t")]
    blocks = [m for m in blocks if hasattr(m, "conv2") or hasattr(m, "has_skip")]
    assert sum(f.residual for f in conversion.fused) == len(blocks) > 2
    assert list(model.state_dict()) == list(before)
    result = conversion.verify(torch.randn(3, 3, 32, 32))
    assert result.ok, result
    conversion.revert()
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


class Shared(nn.Module):
    """A ReLU module that also gets what a function made, be it of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.relu = nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        return self.relu(self.bn(x)) + self.relu(torch.neg(x))


def test_an_activation_module_that_functions_use_too_stays() -> None:
    model = Shared()
    expected = copy.deepcopy(model)(X)
    done = convert(model, "batch", fuse=True)
    assert type(model.relu) is nn.ReLU
    for left in done.unfused:
        assert "'relu' is also given the output of 'neg'" in left.reason
    torch.testing.assert_close(model(X), expected)


class Bare(nn.Module):
    """Nothing stands behind the norm that it could do."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Any:
        return self.bn(x).tanh()


class Active(Bare):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn(x))


class Depending(Active):
    """A trace would fix what depends on the values."""

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn(x)) if x.sum() > 0 else x


@pytest.mark.parametrize("odd", [Bare, Depending])
@pytest.mark.parametrize("place", [0, 1])
def test_a_block_that_cannot_be_fused_does_not_keep_those_behind_it_from_fusing(
    odd: type[nn.Module], place: int
) -> None:
    blocks: list[nn.Module] = [Active(), Active()]
    blocks.insert(place, odd())
    done = convert(nn.Sequential(*blocks), "batch", fuse=True)
    assert [left.name for left in done.unfused] == [f"{place}.bn"]
    assert ("stays:" in done.unfused[0].reason) is (odd is Depending)
    assert len(done.fused) == 2
