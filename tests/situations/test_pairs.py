"""Embeddings: pairs, triplets, two views, identities."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.situations.situation import (
    assert_cleared,
    assert_kept,
    assert_stale,
    blamed,
    digits,
    epoch_ago,
    look,
    mended,
    settled,
    train,
)


def encoder(out: int = 24) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(144, out),
    )  # fmt: skip


@torch.no_grad()
def neighbours(embed: nn.Module) -> float:
    """Share of unseen digits whose nearest unseen neighbour is of their class, in per cent."""
    x, y = digits()
    z = F.normalize(copy.deepcopy(embed).eval()(x[1280:]), dim=1)
    near = (z @ z.T).fill_diagonal_(-2).argmax(1)
    return 100 * float((y[1280:][near] == y[1280:]).double().mean())


def partners(size: int = 64) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Indices of anchors, of another of the class, and of one of another class."""
    _, y = digits()
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(1280, generator=random)
    found = []
    for anchors in order.split(size):
        same = torch.stack([_pick((y[:1280] == y[i]).nonzero().flatten(), random) for i in anchors])
        other = torch.stack(
            [_pick((y[:1280] != y[i]).nonzero().flatten(), random) for i in anchors]
        )
        found.append((anchors, same, other))
    return found


def _pick(values: Tensor, random: torch.Generator) -> Tensor:
    return values[torch.randint(0, len(values), (), generator=random)]


class Siamese(nn.Module):
    """Two pictures in, their distance out; one trunk for both."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = encoder()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.trunk(a) - self.trunk(b)).pow(2).sum(1).add(1e-6).sqrt()  # type: ignore[no-any-return]


def contrastive(model: nn.Module, batch: Any) -> Tensor:
    (a, b), same = batch
    distance = model(a, b)
    return torch.where(same == 1, distance**2, F.relu(4 - distance) ** 2).mean()


def siamese_batches() -> list[Any]:
    """((left, right), same or not): whole numbers that are no argmax of anything."""
    x, _ = digits()
    found = []
    for a, b, c in partners():
        same = torch.arange(len(a)) % 2
        right = torch.where(same[:, None, None, None] == 1, x[b], x[c])
        found.append(((x[a], right), same))
    return found


def test_siamese_pairs() -> None:
    batches = siamese_batches()
    torch.manual_seed(0)
    model = train(Siamese(), batches, contrastive, epochs=4)
    model = settled(model, batches, lambda m, b: m(*b[0]))
    assert_cleared(look(model, batches))
    best = neighbours(model.trunk)
    epoch_ago(model, dose=1.5)
    assert neighbours(model.trunk) < best - 2, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    assert "NS017" not in blamed(found), "both calls see the same images"
    assert_kept(done)
    assert neighbours(model.trunk) > best - 1.5


def triplet(model: nn.Module, batch: Any) -> Tensor:
    return F.triplet_margin_loss(*(model(x) for x in batch), margin=2.0)


def three(model: nn.Module, batch: Any) -> tuple[Tensor, ...]:
    return tuple(model(x) for x in batch)


def test_triplets_through_one_trunk() -> None:
    x, _ = digits()
    batches = [(x[a], x[b], x[c]) for a, b, c in partners()]
    torch.manual_seed(0)
    model = settled(train(encoder(), batches, triplet, epochs=4), batches, three)
    assert_cleared(look(model, batches, forward=three))
    best = neighbours(model)
    epoch_ago(model, dose=1.5)
    assert neighbours(model) < best - 2, "the fault must show"
    found, done = mended(model, batches, forward=three)
    assert_stale(found)
    assert_kept(done)
    assert neighbours(model) > best - 1.5


def views(x: Tensor, random: torch.Generator) -> Tensor:
    """Shifted by up to a pixel, with another gain and noise."""
    step = torch.randint(-1, 2, (2,), generator=random).tolist()
    gain = 0.8 + 0.4 * torch.rand(len(x), 1, 1, 1, generator=random)
    return gain * x.roll(step, (2, 3)) + 0.1 * torch.randn(x.shape, generator=random)


def test_two_views_of_each_image() -> None:
    """([first, second], y), as a contrastive transform collates; both go through the trunk at once."""
    x, y = digits()
    random = torch.Generator().manual_seed(0)
    batches: list[Any] = [
        ([views(a, random), views(a, random)], b)
        for a, b in zip(x[:1280].split(64), y[:1280].split(64), strict=True)
    ]

    def together(model: nn.Module, batch: Any) -> Tensor:
        return model(torch.cat(list(batch[0])))  # type: ignore[no-any-return]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        z = F.normalize(together(model, batch), dim=1)
        n = len(z) // 2
        near = (z @ z.T / 0.2).fill_diagonal_(-torch.inf)
        return F.cross_entropy(near, torch.arange(2 * n).roll(n))

    torch.manual_seed(0)
    model = settled(train(encoder(), batches, loss, epochs=3), batches, together)
    assert_cleared(look(model, batches, forward=together))
    best = neighbours(model)
    epoch_ago(model, dose=1.5)
    assert neighbours(model) < best - 2, "the fault must show"
    found, done = mended(model, batches, forward=together)
    assert_stale(found)
    assert_kept(done)
    assert neighbours(model) > best - 1.5


@pytest.mark.parametrize("identities", [10, 24, 640])
def test_identities_are_no_scores_of_an_embedding(identities: int) -> None:
    """(x, identity): fewer, as many, and more identities than the embedding has dimensions."""
    x, y = digits()
    who = (y + 10 * torch.arange(len(y))) % identities if identities > 10 else y
    batches = list(zip(x[:1280].split(64), who[:1280].split(64), strict=True))
    triples = [(x[a], x[b], x[c]) for a, b, c in partners()]
    torch.manual_seed(0)
    model = settled(train(encoder(), triples, triplet, epochs=4), batches)
    found = look(model, batches)
    assert not found.fails("error"), [(f.code, f.severity, f.facts) for f in found.findings]
    assert "NS021" not in blamed(found)
    best = neighbours(model)
    epoch_ago(model, dose=1.5)
    assert neighbours(model) < best - 2, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert neighbours(model) > best - 1.5
