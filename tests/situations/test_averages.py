"""Second copies of a network: targets, averages, momentum encoders, clients."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from normscope import doctor
from tests.situations.situation import (
    accuracy,
    assert_cleared,
    assert_kept,
    assert_stale,
    blamed,
    by_hand,
    digit_batches,
    digit_net,
    digits,
    digits_model,
    look,
    mended,
    norms,
    settled,
    train,
)

# statistics that still hold their start, are another's, or belong to weights that were not averaged
FOLLOWS = frozenset({"NS002", "NS003", "NS015"})


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def averaged(copies_buffers: bool) -> tuple[nn.Module, nn.Module]:
    """A classifier and its exponential average over 80 steps, which follows parameters only or all."""
    torch.manual_seed(0)
    online = digit_net()
    average = copy.deepcopy(online)
    steps = torch.optim.SGD(online.parameters(), 0.2, momentum=0.9)
    for batch in digit_batches() * 4:
        steps.zero_grad()
        cross_entropy(online, batch).backward()
        steps.step()
        with torch.no_grad():
            for a, b in zip(average.parameters(), online.parameters(), strict=True):
                a.lerp_(b, 0.1)
            if copies_buffers:
                for own, other in zip(average.buffers(), online.buffers(), strict=True):
                    own.copy_(other)
    return online.eval(), average.eval()


def test_an_average_whose_buffers_stayed_at_their_start() -> None:
    online, average = averaged(copies_buffers=False)
    best = accuracy(by_hand(average, digit_batches()))
    assert accuracy(average) < best - 3, "the fault must show"
    batches = digit_batches()
    found = look(average, batches, reference=online)
    assert FOLLOWS & set(blamed(found)[:2]), found.codes
    done = doctor.repair(average, found, batches)
    assert_kept(done)
    assert accuracy(average) > best - 1


def test_the_reference_says_so_without_data() -> None:
    """Buffers of the average beside those of the network that it follows: nothing else is needed."""
    online, average = averaged(copies_buffers=False)
    found = doctor.diagnose(average, reference=online)
    assert FOLLOWS & set(blamed(found)[:2]), found.codes


def test_an_average_that_follows_its_reference_is_healthy() -> None:
    online, average = averaged(copies_buffers=True)
    found = look(settled(average, digit_batches()), digit_batches(), reference=online)
    assert_cleared(found)


def test_weights_averaged_late_with_the_buffers_of_the_last_copy() -> None:
    """torch's AveragedModel with use_buffers=False: handed over as it is, wrapper and all."""
    torch.manual_seed(0)
    model = digit_net()
    swa = AveragedModel(model)
    steps = torch.optim.SGD(model.parameters(), 1.0, momentum=0.9)
    for number, batch in enumerate(digit_batches() * 4):
        steps.zero_grad()
        cross_entropy(model, batch).backward()
        steps.step()
        if number >= 5 and number % 4 == 0:
            swa.update_parameters(model)
    swa.eval()
    best = accuracy(by_hand(swa, digit_batches()))
    before = accuracy(swa)
    assert before < best - 3, "the fault must show"
    found, done = mended(swa, digit_batches())
    assert FOLLOWS & set(blamed(found)[:2]), found.codes
    assert_kept(done)
    assert accuracy(swa) > best - 1


def replay(n: int, seed: int) -> list[tuple[Tensor, ...]]:
    """(state, action, reward, next state, done): a cart that is to be held in the middle."""
    random = torch.Generator().manual_seed(seed)
    batches: list[tuple[Tensor, ...]] = []
    for _ in range(n):
        state = torch.randn(64, 4, generator=random) * torch.tensor(
            [2.0, 20.0, 0.3, 5.0]
        ) + torch.tensor([0.0, 0.0, 4.0, -3.0])
        action = torch.randint(0, 3, (64,), generator=random)
        ahead = state + (action - 1)[:, None] * torch.tensor([0.5, 5.0, 0.0, 1.0])
        batches.append(
            (state, action, -ahead[:, 0].abs(), ahead, torch.zeros(64, dtype=torch.bool))
        )
    return batches


def learn(batch: tuple[Tensor, ...], q: nn.Module, target: nn.Module) -> Tensor:
    state, action, reward, ahead, done = batch
    with torch.no_grad():
        value = reward + 0.6 * ~done * target(ahead).max(1).values
    return F.smooth_l1_loss(q(state).gather(1, action[:, None]).squeeze(1), value)


def agent() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    q = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    target = copy.deepcopy(q).eval()
    steps = torch.optim.Adam(q.parameters(), 3e-3)
    for batch in replay(200, 1):
        steps.zero_grad()
        learn(batch, q, target).backward()
        steps.step()
        with torch.no_grad():
            for a, b in zip(target.parameters(), q.parameters(), strict=True):
                a.lerp_(b, 0.05)
    return q.eval(), target


def test_a_healthy_q_network_is_no_classifier_of_actions() -> None:
    """The actions of a random policy cannot be predicted; that is no fault."""
    q, _ = agent()
    batches = replay(20, 2)
    found = look(settled(q, batches), batches)
    assert_cleared(found)
    if found.gap is not None:
        assert found.gap.train_accuracy != found.gap.train_accuracy, (
            "an accuracy of actions was made up"
        )


def test_the_target_network_beside_the_online_one() -> None:
    q, target = agent()
    batches = replay(20, 2)
    found = look(target, batches, reference=q)
    assert FOLLOWS & set(blamed(found)[:2]), found.codes
    done = doctor.repair(target, found, batches)
    assert_kept(done)
    right = norms(by_hand(target, batches))[0]
    torch.testing.assert_close(
        norms(target)[0].running_mean, right.running_mean, rtol=0.05, atol=0.2
    )


def test_a_momentum_encoder() -> None:
    """As MoCo's key encoder: parameters follow slowly, and it ran in train() on other batches than it is judged by."""
    torch.manual_seed(0)
    x, _ = digits()
    query = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 16)
    )
    key = copy.deepcopy(query)
    batches = list(x[:1280].split(64))
    steps = torch.optim.SGD(query.parameters(), 0.1, momentum=0.9)
    for a in batches * 4:
        z, k = F.normalize(query(a), dim=1), F.normalize(key.eval()(a), dim=1).detach()
        steps.zero_grad()
        F.cross_entropy(z @ k.T / 0.1, torch.arange(len(a))).backward()
        steps.step()
        with torch.no_grad():
            for p, o in zip(key.parameters(), query.parameters(), strict=True):
                p.lerp_(o, 0.05)
    found, done = mended(key.eval(), batches)
    assert_stale(found)
    assert_kept(done)


def clients() -> tuple[list[nn.Module], list[list[tuple[Tensor, Tensor]]]]:
    """Three clients with the same weights; each saw other digits, of another brightness, and not as many."""
    x, y = digits()
    order = y[:1280].argsort(stable=True)
    parts = [order[:640], order[640:1024], order[1024:]]
    data = []
    for part, gain in zip(parts, (1.0, 0.6, 1.5), strict=True):
        mixed = part[torch.randperm(len(part), generator=torch.Generator().manual_seed(0))]
        data.append([(gain * x[i], y[i]) for i in mixed.split(64)])
    torch.manual_seed(0)
    model = train(digit_net(), [b for d in data for b in d], cross_entropy, epochs=3)
    models = []
    for d in data:
        own = copy.deepcopy(model)
        doctor.recalibrate(own, d, propagate="sequential")
        models.append(own)
    return models, data


def test_statistics_of_clients_are_merged_by_total_variance() -> None:
    """What lies between clients is variance too; the first layer's statistics are those of all data at once."""
    models, data = clients()
    counts = [sum(len(x) for x, _ in d) for d in data]
    merged = doctor.merge_statistics([m.state_dict() for m in models], counts)
    every = torch.cat([x for d in data for x, _ in d]).double()
    first = copy.deepcopy(models[0])[0].double()
    inputs = first(every).movedim(1, 0).flatten(1)
    torch.testing.assert_close(
        merged["1.running_mean"].double(), inputs.mean(1), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        merged["1.running_var"].double(), inputs.var(1), rtol=4e-3, atol=1e-6
    )
    plain = sum(
        n * m.state_dict()["1.running_var"] for n, m in zip(counts, models, strict=True)
    ) / sum(counts)
    assert float(((merged["1.running_var"] - plain) / plain).max()) > 0.01, (
        "averaging variances is another law"
    )
    assert set(merged) == set(models[0].state_dict())


def test_merging_keeps_one_checkpoint_as_it_is() -> None:
    state = digits_model().state_dict()
    merged = doctor.merge_statistics([state, state], [10, 10_000])
    for key, value in state.items():
        if "running" in key:
            torch.testing.assert_close(merged[key], value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda state: state.pop("1.running_var"), "running_var"),
        (lambda state: state.update({"1.running_mean": torch.zeros(5)}), "running_mean"),
    ],
    ids=["a key is missing", "another width"],
)
def test_checkpoints_that_do_not_belong_together(change: Any, word: str) -> None:
    from normscope.errors import NormscopeError

    state = digits_model().state_dict()
    other = dict(state)
    change(other)
    with pytest.raises(NormscopeError, match=word):
        doctor.merge_statistics([state, other], [100, 100])
