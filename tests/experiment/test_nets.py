"""Networks that differ in their normalisation only, and the loop that trains them."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import normscope
from normscope.environment import threads
from normscope.errors import InputError
from normscope.experiment.data import Data, load
from normscope.experiment.loop import Trainer, steps_per_epoch
from normscope.experiment.nets import NETS, NORMS, ModelConfig, build, norm_layers

DOMAINS = ("clean", "invert", "noise")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with threads(1):  # small steps that wait for a second core are many times slower
        yield


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits", domains=DOMAINS)


def linear_weights(model: nn.Module) -> list[Tensor]:
    linear = (nn.Linear, nn.Conv2d)
    in_norms = {id(m) for norm in norm_layers(model).values() for m in norm.modules()}
    found = [m for m in model.modules() if isinstance(m, linear) and id(m) not in in_norms]
    return [parameter for module in found for parameter in module.parameters()]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("norm", NORMS)
def test_weights_depend_on_the_seed_and_not_on_the_norm(net: str, norm: str, digits: Data) -> None:
    before = torch.get_rng_state()
    plain, built = build(net, "none", digits, 3), build(net, norm, digits, 3)
    assert torch.equal(torch.get_rng_state(), before)
    expected, found = linear_weights(plain), linear_weights(built)
    copies = len(DOMAINS) if NORMS[norm].separate else 1
    assert len(found) == copies * len(expected)
    for one, two in zip(expected * copies, found, strict=True):
        assert torch.equal(one, two)
    other = linear_weights(build(net, norm, digits, 4))
    assert not torch.equal(found[0], other[0])


@pytest.mark.parametrize("net", NETS)
def test_layers_have_places_that_correspond(net: str, digits: Data) -> None:
    for norm in NORMS.keys() - {"separate"}:
        model = build(net, norm, digits, 0)
        assert list(norm_layers(model)) == ["norm1", "norm2", "norm3"]
        names = [name for name, _ in model.named_children()]
        for i in (1, 2, 3):
            place = names.index(f"linear{i}")
            assert names[place : place + 3] == [f"linear{i}", f"norm{i}", f"relu{i}"]
    separate = build(net, "separate", digits, 0)
    assert list(norm_layers(separate))[:4] == [f"nets.0.norm{i}" for i in (1, 2, 3)] + [
        "nets.1.norm1"
    ]


def test_unknown_or_unfitting_designs_are_named(digits: Data) -> None:
    with pytest.raises(InputError, match=r"no norm 'magic'; there are batch, none, noaffine, aff"):
        build("mlp", "magic", digits, 0)
    with pytest.raises(InputError, match="no net 'vgg'; there are mlp, cnn"):
        build("vgg", "batch", digits, 0)
    iris = load("iris")
    with pytest.raises(InputError, match="the net cnn needs images"):
        build("cnn", "batch", iris, 0)
    with pytest.raises(InputError, match="frozen under affine_only alone, not under batch"):
        ModelConfig("mlp", "batch", (4,), 3, 0, freeze_head=True)
    for norm in ("conditional", "shared", "separate"):
        with pytest.raises(InputError, match=f"the norm {norm} needs domains; name some, as in"):
            build("mlp", norm, iris, 0)


def test_separate_sends_each_sample_through_its_own_network(digits: Data) -> None:
    model = build("mlp", "separate", digits, 0).eval()
    with torch.no_grad():
        for i, net in enumerate(model.nets):
            net.head.bias.fill_(float(i))
    assert digits.test_domain is not None
    pick = torch.randperm(len(digits.test_x))[:50]
    x, ids = digits.test_x[pick], digits.test_domain[pick]
    with normscope.condition(ids):
        y = model(x)
    for row in range(50):
        net = model.nets[int(ids[row])]
        torch.testing.assert_close(y[row], net(x[row : row + 1])[0])
    with pytest.raises(InputError, match="no condition"):
        model(x)
    elsewhere = normscope.condition(torch.full((50,), 9))
    with elsewhere, pytest.raises(InputError, match=r"no sample has a condition in 0\.\.2"):
        model(x)


def network(data: Data, norm: str, seed: int = 0, *, epochs: int = 2, lr: float = 0.1) -> Trainer:
    return Trainer(
        data, ModelConfig.of("mlp", norm, data), seed, lr=lr, epochs=epochs, batch_size=32
    )


def test_the_order_of_samples_is_that_of_the_seed_under_every_norm(digits: Data) -> None:
    batch, none, per_class = (network(digits, n) for n in ("batch", "none", "per_class"))
    for epoch in (1, 2):
        order = torch.cat(batch.batches(epoch))
        for other in (none, per_class):
            for one, two in zip(batch.batches(epoch), other.batches(epoch), strict=True):
                assert torch.equal(one, two)
        assert torch.equal(order.sort().values, torch.arange(len(digits.train_x)))
        separate = network(digits, "separate")
        assert digits.train_domain is not None
        for d in range(len(DOMAINS)):
            own = [b for b in separate.batches(epoch) if int(digits.train_domain[b[0]]) == d]
            assert torch.equal(torch.cat(own), order[digits.train_domain[order] == d])
    assert not torch.equal(torch.cat(batch.batches(1)), torch.cat(batch.batches(2)))
    assert not torch.equal(order, torch.cat(network(digits, "batch", seed=1).batches(2)))


@pytest.mark.parametrize("size", [2, 3, 7, 32, 1000])
def test_no_batch_is_a_leftover(size: int) -> None:
    data = load("iris", domains=("clean", "noise"))
    for norm in ("batch", "separate"):
        config = ModelConfig.of("mlp", norm, data)
        trained = Trainer(data, config, 0, lr=0.1, epochs=3, batch_size=size)
        sizes = [len(b) for b in trained.batches(1)]
        parts = 2 if norm == "separate" else 1
        assert min(sizes) >= min(size, len(data.train_x) // parts)
        assert max(sizes) <= max(2 * size - 1, math.ceil(len(data.train_x) / parts))
        assert len(sizes) == steps_per_epoch(data, norm, size) == trained.steps // 3


def test_an_epoch_is_plain_gradient_descent_with_momentum(digits: Data) -> None:
    trained, by_hand = network(digits, "none", lr=0.05), network(digits, "none", lr=0.05)
    losses: list[float] = []
    mean = trained.train_epoch(1, losses.append)
    parameters = list(by_hand.model.parameters())
    speed = [torch.zeros_like(p) for p in parameters]
    total = 0.0
    for step, rows in enumerate(by_hand.batches(1)):
        loss = cross_entropy(by_hand.model(digits.train_x[rows]), digits.train_y[rows])
        gradients = torch.autograd.grad(loss, parameters)
        rate = 0.05 * 0.5 * (1 + math.cos(math.pi * step / trained.steps))
        with torch.no_grad():
            for p, v, g in zip(parameters, speed, gradients, strict=True):
                v.mul_(0.9).add_(g)
                p.sub_(rate * v)
        total += float(loss.detach()) * len(rows)
        assert losses[step] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert mean == pytest.approx(total / len(digits.train_x), abs=1e-5)
    for one, two in zip(trained.model.parameters(), parameters, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_separate_networks_are_trained_apart(digits: Data) -> None:
    both = network(digits, "separate")
    assert digits.train_domain is not None
    fed = [b for b in both.batches(1) if int(digits.train_domain[b[0]]) == 0]
    both.batches = lambda epoch, size=None: fed  # type: ignore[method-assign]
    before = [[p.detach().clone() for p in net.parameters()] for net in both.model.nets]
    both.train_epoch(1, lambda _: None)
    for i, net in enumerate(both.model.nets):
        moved = any(not torch.equal(a, b) for a, b in zip(before[i], net.parameters(), strict=True))
        assert moved == (i == 0)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("freeze_head", [False, True])
def test_affine_only_trains_gamma_and_beta_and_nothing_else(
    net: str, freeze_head: bool, digits: Data
) -> None:
    config = ModelConfig.of(net, "affine_only", digits, freeze_head=freeze_head)
    trained = Trainer(digits, config, 0, lr=0.1, epochs=1, batch_size=300)
    before = {name: t.clone() for name, t in trained.model.state_dict().items()}
    trained.train_epoch(1, lambda _: None)
    learning = {f"norm{i}.{part}" for i in (1, 2, 3) for part in ("weight", "bias")}
    learning |= set() if freeze_head else {"head.weight", "head.bias"}
    named = {id(p): name for name, p in trained.model.named_parameters()}
    (group,) = trained.optimizer.param_groups
    assert {named[id(p)] for p in group["params"]} == learning
    for name, value in trained.model.named_parameters():
        assert torch.equal(value, before[name]) == (name not in learning), name
    again = ModelConfig.of(net, "batch", digits, freeze_head=freeze_head)
    assert not again.freeze_head  # the other norms of the same run are trained whole


def test_a_score_is_counted_in_eval_mode_and_by_domain(digits: Data) -> None:
    trained = network(digits, "batch")
    trained.train_epoch(1, lambda _: None)
    state = {name: t.clone() for name, t in trained.model.state_dict().items()}
    score = trained.score()
    assert trained.model.training
    assert all(torch.equal(t, state[name]) for name, t in trained.model.state_dict().items())
    with torch.no_grad():
        trained.model.eval()
        logits = trained.model(digits.test_x)
    right = logits.argmax(1) == digits.test_y
    assert score.accuracy == pytest.approx(right.double().mean().item())
    assert score.loss == pytest.approx(cross_entropy(logits, digits.test_y).item(), rel=1e-5)
    assert score.by_domain.keys() == set(DOMAINS)
    for i, name in enumerate(DOMAINS):
        here = digits.test_domain == i
        assert score.by_domain[name] == pytest.approx(right[here].double().mean().item())


def test_the_trap_is_seen_with_and_without_the_label() -> None:
    data = load("digits")
    trained = network(data, "per_class", epochs=4)
    for epoch in range(1, 5):
        trained.train_epoch(epoch, lambda _: None)
    assert trained.score().accuracy > 0.99
    assert trained.score(with_condition=False).accuracy < 0.4
    honest = network(data, "batch", epochs=4)
    for epoch in range(1, 5):
        honest.train_epoch(epoch, lambda _: None)
    assert honest.score().accuracy > 0.95
