"""Faults that training left behind, each with what shows it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from normscope import convert
from normscope.doctor import diagnose, repair
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
    error,
    look,
    mended,
    norms,
    settled,
    train,
)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Recomputed(nn.Module):
    """Every block runs twice per step in training: once forward, once for the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        net = digit_net()
        self.first, self.second, self.last = net[:3], net[3:6], net[6:]

    def forward(self, x: Tensor) -> Tensor:
        for part in (self.first, self.second):
            x = checkpoint(part, x, use_reentrant=False) if self.training else part(x)
        return self.last(x)  # type: ignore[no-any-return]


def recomputed(make: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Recomputed()
    steps = make(model.parameters())
    for batch in digit_batches() * 2:
        steps.zero_grad()
        cross_entropy(model, batch).backward()
        steps.step()
    return model.eval(), steps


def test_recomputation_updates_twice_and_adam_knows_the_steps() -> None:
    model, adam = recomputed(lambda p: torch.optim.Adam(p, 3e-3))
    assert int(norms(model)[0].num_batches_tracked) == 80, "40 steps"
    found = look(model, digit_batches(), optimizer=adam)
    assert "NS027" in found.codes, (found.codes, "NS027" in found.passed)


def test_recomputation_updates_twice_and_sgd_does_not_know() -> None:
    """Nothing tells how many steps there were; then the check did not pass, it was not made."""
    model, sgd = recomputed(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
    found = look(model, digit_batches(), optimizer=sgd)
    assert "NS027" not in found.passed
    assert "NS027" in found.codes or "NS027" in [s.code for s in found.skipped]


def test_one_update_a_step_is_no_double_update() -> None:
    torch.manual_seed(0)
    model = digit_net()
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for batch in digit_batches() * 2:
        adam.zero_grad()
        cross_entropy(model, batch).backward()
        adam.step()
    found = look(settled(model, digit_batches()), digit_batches(), optimizer=adam)
    assert "NS027" not in found.codes


def test_dropout_before_the_norms() -> None:
    """Dropout 0.5 in front of a norm: in eval() the variance is another one (Li et al. 2019)."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(48, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10),
    )  # fmt: skip
    train(model, digit_batches(), cross_entropy, epochs=8)
    before = accuracy(model)
    found, done = mended(model, digit_batches())
    assert "NS013" in blamed(found)[:2], found.codes
    assert accuracy(model) > before - 1, done.record.kept


def slices(n: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """One scan of (1, 24, 24) at a time; every scanner has an own gain and offset; lesions are bright."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(n):
        mask = torch.zeros(1, 1, 24, 24)
        row, column = torch.randint(2, 14, (2,), generator=random).tolist()
        mask[..., row : row + 7, column : column + 7] = 1
        picture = mask + 0.25 * torch.randn(1, 1, 24, 24, generator=random)
        gain, offset = (
            torch.exp(1.2 * torch.randn((), generator=random)),
            4 * torch.randn((), generator=random),
        )
        found.append((gain * picture + offset, mask))
    return found


def overlap(model: nn.Module, training: bool = False) -> float:
    model = copy.deepcopy(model).train(training)
    both = either = 0.0
    with torch.no_grad():
        for x, y in slices(40, 9):
            guess = (model(x) > 0).float()
            both, either = both + float((guess * y).sum()), either + float(((guess + y) > 0).sum())
    return 100 * both / either


def test_trained_with_one_scan_per_batch() -> None:
    """Every scan was normalised by itself: no running statistics stand for that; nothing that loses is kept."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 1, 1),
    )  # fmt: skip
    batches = slices(60, 1)
    train(model, batches, lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]), b[1]), epochs=4)
    before = overlap(model)
    assert before < overlap(model, training=True) - 15, "the fault must show"
    found, done = mended(model, batches)
    assert "NS007" in blamed(found)[:2], found.codes
    assert overlap(model) > before - 1, done.record.kept


def test_batches_of_four_of_another_loudness_each() -> None:
    """The spread between batches is not in what training saw: the mean of per-batch variances fits better."""
    random = torch.Generator().manual_seed(0)
    x, y = digits()
    batches = []
    for a, b in zip(x[:480].split(4), y[:480].split(4), strict=True):
        batches.append((torch.exp(0.6 * torch.randn((), generator=random)) * a, b))
    torch.manual_seed(0)
    model = train(digit_net(), batches, cross_entropy, epochs=2)

    def right(net: nn.Module) -> float:
        loud = torch.Generator().manual_seed(7)
        gain = torch.exp(0.6 * torch.randn(517, 1, 1, 1, generator=loud))
        with torch.no_grad():
            return 100 * float((net.eval()(gain * x[1280:]).argmax(1) == y[1280:]).double().mean())

    peer = right(by_hand(model, batches))
    for norm in norms(model):
        norm.reset_running_stats()
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert right(model) > peer - 1.5


def test_a_ported_model_with_momentum_nought() -> None:
    """Momentum 0 never moves a statistic; in eval() it explains nothing. A hazard only for those who train on."""
    model = digits_model()
    for norm in norms(model):
        norm.momentum = 0.0
    found = look(model, digit_batches())
    assert not found.fails("error"), [(f.code, f.severity) for f in found.findings]
    assert_cleared(found, but="NS005")
    if "NS005" in found.codes:
        assert all(f.severity == "info" for f in found.findings if f.code == "NS005"), (
            "it costs nothing as it is"
        )


def test_a_ported_model_with_momentum_nought_and_stale_statistics() -> None:
    """The statistics are the cause; the momentum is not."""
    model = digits_model()
    best = accuracy(model)
    for norm in norms(model):
        norm.momentum = 0.0
        norm.running_mean += 1.5 * norm.running_var.sqrt()
    assert accuracy(model) < best - 5, "the fault must show"
    found, done = mended(model, digit_batches())
    assert blamed(found)[0] in {"NS002", "NS003"}, found.codes
    assert accuracy(model) > best - 1, done.record.kept


def test_dead_channels_are_not_an_eps_of_another_library() -> None:
    """A third of the channels is constant: variance 0 beside a healthy eps. Exactly removable, no fault of eps."""
    torch.manual_seed(0)
    model = digit_net(24)
    with torch.no_grad():
        model[0].weight[:8] = 0
        model[0].weight.requires_grad_(True)
    mask = torch.ones(24, 1, 1, 1)
    mask[:8] = 0
    model[0].weight.register_hook(lambda g: g * mask)
    train(model, digit_batches(), cross_entropy, epochs=3)
    model = settled(model, digit_batches())
    assert float(norms(model)[0].running_var[:8].max()) < 1e-30
    best = accuracy(model)
    found, done = mended(model, digit_batches())
    assert not found.fails("error"), [(f.code, f.severity) for f in found.findings]
    assert "NS006" not in blamed(found), "eps is right"
    assert accuracy(model) > best - 0.5, done.record.kept
    dead = [f for f in found.findings if set(range(8)) & set(f.channels)]
    assert dead, "eight dead channels and no finding lists them"


def test_an_eps_that_was_lost_on_the_way() -> None:
    """Trained with 1e-3 on a sensor's volts, rebuilt with torch's 1e-5: the first layer's variances are near both."""
    volts = [(0.01 * x, y) for x, y in digit_batches()]
    x, y = digits()
    torch.manual_seed(0)
    model = digit_net()
    for norm in norms(model):
        norm.eps = 1e-3
    train(model, volts, cross_entropy, epochs=5, lr=1e-2)
    model = settled(model, volts)

    def right() -> float:
        with torch.no_grad():
            return 100 * float((model(0.01 * x[1280:]).argmax(1) == y[1280:]).double().mean())

    best = right()
    assert float(norms(model)[0].running_var.median()) < 1e-3, "eps must matter"
    for norm in norms(model):
        norm.eps = 1e-5
    assert right() < best - 1.5, "the fault must show"
    found, done = mended(model, volts)
    assert "NS006" in blamed(found)[:2], found.codes
    assert right() > best - 0.8, done.record.kept


def test_frozen_by_half_on_another_domain() -> None:
    """Fine-tuned on negatives: gamma and beta do not learn, the statistics did follow; used on the old data."""
    model = digits_model()
    best = accuracy(model)
    for norm in norms(model):
        norm.weight.requires_grad_(False)
        norm.bias.requires_grad_(False)
    model.train()
    with torch.no_grad():
        for x, _ in digit_batches():
            model(1 - x)
    model.eval()
    assert accuracy(model) < best - 4, "the fault must show"
    found, done = mended(model, digit_batches())
    assert {"NS014", "NS003"} & set(blamed(found)[:2]), found.codes
    assert accuracy(model) > best - 1, done.record.kept


def test_statistics_of_a_dummy_forward() -> None:
    """A library ran noise through the pretrained model in train() to find out shapes."""
    model = digits_model()
    best = accuracy(model)
    for norm in norms(model):
        norm.momentum = None
        norm.reset_running_stats()
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 1, 8, 8))
    model.eval()
    for norm in norms(model):
        norm.momentum = 0.1
    assert accuracy(model) < best - 10, "the fault must show"
    found, done = mended(model, digit_batches())
    assert_stale(found)
    assert_kept(done)
    assert accuracy(model) > best - 1


def test_cold_statistics_after_few_steps_of_regression() -> None:
    """Momentum 0.01 and 40 steps: statistics are a third on their way. The first line names what closes most."""
    torch.manual_seed(0)
    x = torch.randn(640, 6, generator=torch.Generator().manual_seed(0)) * 2 + 3
    y = (x[:, :1] * x[:, 1:2]).tanh() + 0.3 * x[:, 2:3]
    batches = list(zip(x.split(32), y.split(32), strict=True))
    model = nn.Sequential(
        nn.Linear(6, 64), nn.BatchNorm1d(64, momentum=0.01), nn.ReLU(), nn.Linear(64, 1)
    )
    train(model, batches, lambda m, b: F.mse_loss(m(b[0]), b[1]), epochs=2)
    good, bad = error(by_hand(model, batches), x, y), error(model, x, y)
    assert bad > 2 * good, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    first = blamed(found)[0]
    closes = {c.code: c.closes for c in found.causes if c.code}
    assert closes.get(first, 0) > max(closes.values()) - 0.1, (found.codes, closes)
    assert error(model, x, y) < good + 0.1 * (bad - good), done.record.kept


def test_a_checkpoint_alone_is_not_called_healthy() -> None:
    """Most checks need a model or data; a check that was not made is no check that passed."""
    found = diagnose(digits_model().state_dict())
    skipped = {s.code for s in found.skipped}
    assert len(skipped) > 10
    assert not skipped & set(found.passed)
    verdict = getattr(found, "verdict", None)
    assert verdict is None or verdict.kind != "healthy" or len(found.passed) >= len(skipped)


def test_the_cost_stays_in_bounds_with_many_layers() -> None:
    """30 norm layers: at most 30 forwards of the samples for each of diagnosis and repair."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, 24)]
    for _ in range(30):
        layers += [nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24)]
    model: nn.Module = nn.Sequential(*layers, nn.Linear(24, 10))
    batches = digit_batches(64, 0, 640)
    model = settled(model, batches)
    for norm in norms(model)[10:12]:
        norm.running_mean += norm.running_var.sqrt()
    seen = 0

    def run(net: nn.Module, batch: Any) -> Tensor:
        nonlocal seen
        seen += len(batch[0])
        return net(batch[0])  # type: ignore[no-any-return]

    found = diagnose(model, batches, forward=run)
    assert seen <= 30 * 640, f"diagnosis: {seen / 640:.0f} forwards"
    seen = 0
    repair(model, found, batches, forward=run)
    assert seen <= 30 * 640, f"repair: {seen / 640:.0f} forwards"


def test_an_instance_norm_that_tracks_is_left_alone() -> None:
    """convert(model, "batch") must not make a batch norm of it: training would compute something else."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.ReLU(),
        nn.BatchNorm2d(4),
    )
    torch.manual_seed(0)
    other = copy.deepcopy(model)
    convert(model, "batch")
    for x, _ in digit_batches()[:3]:
        torch.testing.assert_close(model(x), other(x), rtol=1e-4, atol=1e-5)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_batches_of_one_image_are_too_small_even_with_many_pixels(size: int) -> None:
    """Images of other light each: 64 pixels of one image are no 64 samples."""
    random = torch.Generator().manual_seed(0)
    x, y = digits()
    gain, offset = (
        torch.exp(torch.randn(320, 1, 1, 1, generator=random)),
        3 * torch.randn(320, 1, 1, 1, generator=random),
    )
    batches = list(zip((gain * x[:320] + offset).split(size), y[:320].split(size), strict=True))
    torch.manual_seed(0)
    found = look(digit_net().eval(), batches)
    assert "NS007" in blamed(found), (found.codes, "NS007" in found.passed)
