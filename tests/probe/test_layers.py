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
from normscope.probe.layers import (
    culprit,
    has_statistics,
    in_training,
    own_norms,
    stored_eps,
    tried_alone,
    without_norms,
)

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


def test_a_model_is_in_training_where_any_layer_is() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.BatchNorm1d(2))
    assert in_training(model) is True
    model[1].eval()
    assert in_training(model), "one layer is enough"
    model[0][0].eval()
    assert not in_training(model), "what holds layers does nothing itself"
    model.train().training = False
    assert not in_training(model), "somebody asked for eval()"
    assert not in_training(nn.DataParallel(nn.Linear(2, 2).eval()))
    assert in_training(nn.Linear(2, 2))


def test_what_normalises_is_said_in_words() -> None:
    assert has_statistics(nn.Sequential(nn.GroupNorm(1, 2), nn.BatchNorm1d(2))) is True
    assert has_statistics(nn.Sequential(nn.GroupNorm(1, 2))) is False
    assert without_norms(nn.Linear(2, 2)) == ""
    said = without_norms(nn.Sequential(OwnBatchNorm(3), OwnBatchNorm(3)))
    assert said.startswith("; 0 (OwnBatchNorm, which keeps moving_mean and moving_var)")
    assert "may be a batch norm of your own" in said

    class Bn(nn.Module):
        """Named so, and keeps nothing."""

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("ema_mean", torch.zeros(2))

    assert own_norms(Bn()) == ["the model (Bn)"]
    assert own_norms(nn.Sequential(Keeps())) == ["0 (Keeps, which keeps ema_mean)"]
    whole = Keeps()
    whole.part = nn.Linear(2, 2)
    assert own_norms(nn.Sequential(whole)) == []


def test_an_eps_has_one_of_three_names() -> None:
    for name in ("eps", "epsilon", "variance_epsilon"):
        layer: Any = nn.Identity()
        setattr(layer, name, 0.25)
        assert stored_eps(layer) == 0.25
        setattr(layer, name, "small")
        assert stored_eps(layer) is None
    assert stored_eps(nn.Identity()) is None


def test_a_copy_is_tried_whose_statistics_are_zero() -> None:
    layer: Any = FrozenBatchNorm2d(4)
    tried = tried_alone(layer, torch.tensor([0.0, 2.0]))
    assert tried is not None
    alone, y = tried
    assert alone is not layer
    assert not alone.training
    assert layer.training
    torch.testing.assert_close(y[0], layer.bias.double())
    slope = layer.weight.double() / layer.hidden[0] ** 0.5
    torch.testing.assert_close(y[1], layer.bias.double() + 2 * slope)
    trains = tried_alone(layer, torch.zeros(2), training=True)
    assert trains is not None
    assert trains[0].training
    assert not y.requires_grad
    for odd in (nn.Linear(2, 2), nn.LazyBatchNorm1d(), nn.BatchNorm1d(2, device="meta")):
        assert tried_alone(odd, torch.zeros(2)) is None
    layer.running_mean = torch.zeros(1, 4)
    assert tried_alone(layer, torch.zeros(2)) is None


def test_an_eps_is_the_same_for_all_channels_and_below_one() -> None:
    layer: Any = FrozenBatchNorm2d(3)
    del layer.weight
    layer.weight = None
    layer.forward = lambda x: x  # of the copy too: it maps as it is
    assert eps_of(layer) is None, "1 is no eps"

    class Scaled(FrozenBatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            scale = self.factor if self.weight is None else self.factor * self.weight.flatten()
            return x * scale.reshape(1, -1, 1, 1)

    for factor, weight, expected in (
        ((10.0, 10, 10), None, 0.01), ((10.0, 10, 11), None, None), ((0.5, 0.5, 0.5), None, None),
        ((10.0, 10, 10), (1, 0, 2), 0.01), ((10.0, 10, 10), (0, 0, 0), None),
        ((10.0, 10, 10), ((1, 1, 1),), None), ((1.0, 1, 1), None, None),
    ):  # fmt: skip
        scaled: Any = Scaled(3)
        scaled.factor = torch.tensor(factor).double()
        del scaled.weight
        scaled.weight = None if weight is None else torch.tensor(weight).double()
        assert eps_of(scaled) == (None if expected is None else pytest.approx(expected)), factor


def test_the_culprit_is_the_last_module_that_ran() -> None:
    class Fails(nn.Module):
        def forward(self, x: Any) -> Any:
            raise ValueError

    fails = Fails()
    model = nn.Sequential(nn.Sequential(nn.ReLU(), fails))
    for run, said in (
        (lambda: model(torch.ones(2)), "layer 0.1 (Fails)"),
        (lambda: fails(1), "layer 0.1 (Fails)"),
        (lambda: 1 / 0, "the model (Sequential)"),
        (lambda: model.get_submodule("none"), "the model (Sequential)"),
    ):
        with pytest.raises(Exception) as raised:  # noqa: PT011
            run()
        assert culprit(model, raised.value) == said
