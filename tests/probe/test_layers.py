"""Which layers are norms, also those that are written in a way of their own; what is no model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normscope
from normscope.doctor.state import of_model
from normscope.errors import InputError, ModelError, NormscopeError
from normscope.probe import eps_of, find_norms
from normscope.probe.layers import own_norms

BATCHES = [(torch.randn(8, 3, 5, 5), torch.arange(8) % 2) for _ in range(3)]


class FrozenBatchNorm2d(nn.Module):
    """As detectors have it: four buffers, and an eps that only the forward knows."""

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        start = {
            "weight": (0.5, 2),
            "bias": (-1, 1),
            "running_mean": (-1, 1),
            "running_var": (0.5, 2),
        }
        for name, (low, high) in start.items():
            self.register_buffer(name, torch.empty(channels).uniform_(low, high))
        self.hidden = [eps]

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        scale = (
            self.weight.reshape(shape) * (self.running_var.reshape(shape) + self.hidden[0]).rsqrt()
        )
        return x * scale + (self.bias.reshape(shape) - self.running_mean.reshape(shape) * scale)


class OwnBatchNorm(nn.Module):
    """As a textbook writes it: statistics that are no buffers, of another shape and name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.moving_mean, self.moving_var = (
            torch.zeros(1, channels, 1, 1),
            torch.ones(1, channels, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * (x - self.moving_mean) / (self.moving_var + 1e-5).sqrt() + self.beta


def network(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)).eval()


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.1])
def test_an_eps_that_only_the_forward_knows_is_found(eps: float) -> None:
    layer = FrozenBatchNorm2d(4, eps)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert eps_of(layer) == pytest.approx(eps, rel=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_an_eps_of_zero_is_an_eps() -> None:
    layer = nn.BatchNorm2d(4, eps=0)
    assert eps_of(layer) == 0
    assert of_model(network(layer))[0].eps == 0


def test_a_layer_with_statistics_that_does_something_else_has_no_eps() -> None:
    class Centres(FrozenBatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return x - self.running_mean.reshape(1, -1, 1, 1)

    class Fails(FrozenBatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("not today")

    for kind in (Centres, Fails):
        assert eps_of(kind(4)) is None
        assert find_norms(network(kind(4))) == []


def test_frozen_norms_of_detectors_are_followed_converted_and_folded() -> None:
    torch.manual_seed(0)
    model = network(FrozenBatchNorm2d(4))
    x = BATCHES[0][0]
    expected = model(x)
    seen = normscope.inspect(model, BATCHES, progress=False)
    assert seen.layers[0].eps == pytest.approx(1e-3)
    done = normscope.convert(model, "torch")
    assert type(model[1]) is nn.BatchNorm2d
    assert model[1].eps == pytest.approx(1e-3)
    torch.testing.assert_close(model(x), expected)
    done.revert()
    assert isinstance(model[1], FrozenBatchNorm2d)
    folded = normscope.fold(model)
    assert not any(hasattr(m, "running_mean") for m in folded.model.modules())
    torch.testing.assert_close(folded.model(x), expected)


def test_a_batch_norm_of_ones_own_is_named() -> None:
    model = network(OwnBatchNorm(4))
    assert own_norms(model) == ["1 (OwnBatchNorm, which keeps moving_mean and moving_var)"]
    for verb in (normscope.inspect, normscope.diagnose, normscope.recalibrate):
        with pytest.raises(
            ModelError, match=r"1 \(OwnBatchNorm, which keeps moving_mean.* running_mean"
        ):
            verb(model, BATCHES)
    assert own_norms(network(nn.BatchNorm2d(4))) == []
    assert own_norms(network(nn.GroupNorm(2, 4))) == []


VERBS: dict[str, Callable[[Any], Any]] = {
    "inspect": lambda model: normscope.inspect(model, BATCHES),
    "diagnose": lambda model: normscope.diagnose(model, BATCHES),
    "repair": lambda model: normscope.repair(model, None, BATCHES),
    "recalibrate": lambda model: normscope.recalibrate(model, BATCHES),
    "adapt": lambda model: normscope.adapt(model, BATCHES),
    "convert": lambda model: normscope.convert(model, "batch"),
    "fold": lambda model: normscope.fold(model),
    "passport": lambda model: normscope.passport(model),
    "guard": lambda model: normscope.guard(model).__enter__(),
    "snapshot": lambda model: normscope.snapshot(model),
}
NO_MODELS: dict[str, tuple[Any, str]] = {
    "class": (nn.BatchNorm2d, r"class BatchNorm2d; give an instance"),
    "nothing": (None, "NoneType"),
    "number": (3, "int; it must be a torch.nn.Module"),
    "state dict": (nn.BatchNorm2d(3).state_dict(), "state_dict"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", NO_MODELS)
def test_what_is_no_model_is_refused_in_one_sentence(verb: str, kind: str) -> None:
    given, sentence = NO_MODELS[kind]
    if verb == "diagnose" and kind == "state dict":
        sentence = "give the model, not its weights"
    with pytest.raises(NormscopeError, match=sentence):
        VERBS[verb](given)


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        ({"train": BATCHES}, r"a dict with the keys 'train'; give what is under one of them"),
        ("train", "the text 'train'"),
        (network(nn.BatchNorm2d(4)), "the model comes first"),
        ([None], "batch 0 is None; a batch can be"),
        (["a.png"], r"batch 0 is 'a.png'; a batch can be"),
        ([BATCHES[0], 3], "batch 1 is 3; a batch can be"),
    ],
)
def test_what_holds_no_batches_is_refused_in_one_sentence(batches: Any, sentence: str) -> None:
    model = network(nn.BatchNorm2d(4))
    for verb in (normscope.inspect, normscope.diagnose, normscope.recalibrate):
        with pytest.raises(InputError, match=sentence):
            verb(model, batches)


def test_an_optimizer_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"the optimizer is a str; give the torch.optim.Optimizer"):
        normscope.diagnose(network(nn.BatchNorm2d(4)), optimizer="adam")


def test_the_innermost_module_that_was_running_is_named() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] == 2:
                raise ValueError("two columns")
            y: Tensor = self.norm(x)
            return y

    for wrapped in (Picky(), nn.DataParallel(Picky())):
        with pytest.raises(ModelError, match=r"the model \(Picky\) failed .*two columns"):
            normscope.recalibrate(wrapped, [torch.randn(8, 2)])
        with pytest.raises(ModelError, match=r"layer norm \(BatchNorm1d\) failed"):
            normscope.recalibrate(wrapped, [torch.randn(8, 4)])


def test_an_eps_is_found_in_a_forward_of_one_rank_alone() -> None:
    class Frozen(FrozenBatchNorm2d):
        rank, shape = 3, (1, -1, 1)

        def forward(self, x: Tensor) -> Tensor:
            if x.dim() != self.rank:
                raise ValueError(x.dim())
            shaped = [t.reshape(self.shape) for t in (self.running_mean, self.running_var)]
            y: Tensor = (x - shaped[0]) * self.weight.reshape(self.shape)
            return y / (shaped[1] + self.hidden[0]).sqrt()

    for rank, shape in ((2, (1, -1)), (3, (1, -1, 1)), (5, (1, -1, 1, 1, 1))):
        layer: Any = Frozen(4)
        layer.rank, layer.shape = rank, shape
        assert eps_of(layer) == pytest.approx(1e-3)
    layer.rank = 6
    assert eps_of(layer) is None


def test_statistics_of_another_shape_cannot_be_followed() -> None:
    layer: Any = FrozenBatchNorm2d(4)
    layer.eps = 1e-3
    layer.running_mean, layer.running_var = torch.zeros(1, 4, 1, 1), torch.ones(1, 4, 1, 1)
    (norm,) = find_norms(nn.Sequential(layer))
    assert (norm.name, norm.skipped) == ("0", "lens.skip.not_per_channel")
    assert find_norms(nn.Sequential(normscope.ConditionalBatchNorm2d(4, 3)))[0].skipped is None
