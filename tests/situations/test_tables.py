"""Targets that are no classes, and whole numbers that only look like them."""

import resource
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn import functional as F

from tests.situations.situation import (
    accuracy,
    assert_cleared,
    assert_kept,
    assert_stale,
    blamed,
    digit_batches,
    digits,
    digits_model,
    epoch_ago,
    error,
    look,
    mended,
    norms,
    reset,
    settled,
    train,
)


def regressor(features: int, out: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Linear(features, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, out),
    )  # fmt: skip


def patients() -> tuple[Tensor, Tensor]:
    """442 patients, ten measurements each, and how far the disease has gone, standardised."""
    data = load_diabetes(scaled=False)
    x = torch.tensor(data.data, dtype=torch.float32)
    y = torch.tensor(data.target, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), ((y - y.mean()) / y.std())[:, None]


def mse(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[-1])


@pytest.mark.parametrize("size", [4, 8, 32])
def test_regression_with_small_batches(size: int) -> None:
    """Held out are whole batches; the right repair is kept whatever their size."""
    x, y = patients()
    batches = list(zip(x.split(size), y.split(size), strict=True))
    torch.manual_seed(0)
    model = settled(train(regressor(10), batches, mse, epochs=4), batches)
    good = error(model, x, y)
    epoch_ago(model, dose=1.2)
    bad = error(model, x, y)
    assert bad > 1.2 * good, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert error(model, x, y) < good + 0.2 * (bad - good)


def test_ages_lie_in_second_place() -> None:
    """(measurements, age, target): ages are whole numbers from 19 to 79, and the output is one value."""
    x, y = patients()
    age = torch.tensor(load_diabetes(scaled=False).data[:, 0]).long()
    batches = list(zip(x.split(32), age.split(32), y.split(32), strict=True))
    torch.manual_seed(0)
    model = settled(train(regressor(10), batches, mse, epochs=4), batches)
    healthy = look(model, batches)
    assert not healthy.fails("error"), healthy.codes
    assert not {"NS008", "NS021"} & set(blamed(healthy)), "ages are neither classes nor domains"
    good = error(model, x, y)
    reset(model)
    norms(model)[0].running_mean += 1
    bad = error(model, x, y)
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert error(model, x, y) < good + 0.1 * (bad - good)


def test_counts_as_targets_of_a_wide_output() -> None:
    """(x, count) with 8 outputs: quantiles of a count, no scores of eight classes."""
    x, y = patients()
    count = (
        torch.poisson(torch.exp(0.8 * y[:, 0] + 0.5), generator=torch.Generator().manual_seed(0))
        .long()
        .clamp(max=7)
    )
    batches = list(zip(x.split(32), count.split(32), strict=True))
    levels = torch.linspace(0.06, 0.94, 8)

    def pinball(model: nn.Module, batch: Any) -> Tensor:
        away = batch[1][:, None] - model(batch[0])
        return torch.maximum(levels * away, (levels - 1) * away).mean()

    torch.manual_seed(0)
    model = settled(train(regressor(10, 8), batches, pinball, epochs=6, lr=1e-2), batches)
    good = pinball(model, (x, count)).item()
    epoch_ago(model, dose=1.2)
    bad = pinball(model, (x, count)).item()
    assert bad > 1.2 * good, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert pinball(model, (x, count)).item() < good + 0.2 * (bad - good)


def test_the_number_of_the_sample_is_no_domain() -> None:
    """(image, class, index), as data sets give it whose samples are re-weighted."""
    x, y = digits()
    batches = list(
        zip(x[:1280].split(64), y[:1280].split(64), torch.arange(1280).split(64), strict=True)
    )
    model = digits_model()
    found = look(model, batches)
    assert_cleared(found)
    best = accuracy(model)
    epoch_ago(model, dose=1.5)
    assert accuracy(model) < best - 3, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert "domains" not in done.record.kept
    assert accuracy(model) > best - 1.5


def test_several_labels_at_once() -> None:
    """Float targets (N, 5) of noughts and ones: which properties a digit has."""
    x, y = digits()
    facts = torch.stack([y % 2 == 0, y > 4, y == 0, (y == 3) | (y == 8), y % 3 == 0], 1).float()
    batches = list(zip(x[:1280].split(64), facts[:1280].split(64), strict=True))
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(576, 5),
    )

    def loss(net: nn.Module, batch: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(net(batch[0]), batch[1])

    model = settled(train(model, batches, loss, epochs=4), batches)
    assert_cleared(look(model, batches))
    test = (x[1280:], facts[1280:])
    good = loss(model, test).item()
    epoch_ago(model, dose=1.2)
    bad = loss(model, test).item()
    assert bad > 1.3 * good, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert loss(model, test).item() < good + 0.15 * (bad - good)


@pytest.mark.parametrize(
    "kind", ["one-hot floats", "one-hot whole numbers", "soft labels of a teacher", "a column"]
)
def test_classes_in_other_clothes(kind: str) -> None:
    x, y = digits()
    given = {
        "one-hot floats": F.one_hot(y, 10).float(),
        "one-hot whole numbers": F.one_hot(y, 10),
        "soft labels of a teacher": 0.9 * F.one_hot(y, 10).float() + 0.01,
        "a column": y[:, None],
    }[kind]
    batches = list(zip(x[:1280].split(64), given[:1280].split(64), strict=True))
    model = digits_model()
    assert_cleared(look(model, batches))
    best = accuracy(model)
    epoch_ago(model, dose=1.5)
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert accuracy(model) > best - 1.5


def test_half_of_the_labels_are_missing() -> None:
    """-1 where nobody labelled, as in semi-supervised data: those samples have no accuracy."""
    x, y = digits()
    part = torch.where(torch.rand(len(y), generator=torch.Generator().manual_seed(0)) < 0.5, y, -1)
    batches = list(zip(x[:1280].split(64), part[:1280].split(64), strict=True))
    model = digits_model()
    found = look(model, batches)
    assert_cleared(found)
    if found.gap is not None and found.gap.eval_accuracy == found.gap.eval_accuracy:
        assert found.gap.eval_accuracy > 0.9, "samples without a label count as wrong"
    best = accuracy(model)
    epoch_ago(model, dose=1.5)
    _, done = mended(model, batches)
    assert_kept(done)
    assert accuracy(model) > best - 1.5


def test_labels_are_words() -> None:
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    batches = [(x, [names[int(i)] for i in y]) for x, y in digit_batches()]
    model = digits_model()
    assert_cleared(look(model, batches))
    epoch_ago(model, dose=1.5)
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)


def test_words_and_how_to_read_them() -> None:
    """labels= says what the classes are; then accuracy decides."""
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    batches = [(x, [names[int(i)] for i in y]) for x, y in digit_batches()]
    model = digits_model()
    more: dict[str, Any] = {"labels": lambda b: torch.tensor([names.index(n) for n in b[1]])}
    found = look(model, batches, **more)
    assert_cleared(found)
    assert found.gap is not None
    assert found.gap.eval_accuracy > 0.95


def test_user_ids_of_eight_digits() -> None:
    """(x, user id): whole numbers of eight digits must not become the length of a table."""
    ids = torch.tensor(np.random.default_rng(0).integers(10**7, 2 * 10**7, 1280))
    batches = [(x, i) for (x, _), i in zip(digit_batches(), ids.split(64), strict=True)]
    model = digits_model()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = look(model, batches)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 150, f"{grown:.0f} MiB"
    assert_cleared(found)
