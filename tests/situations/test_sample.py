"""What the data at hand can say: few sources, groups that were never seen, another domain in use."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscope import ConditionalBatchNorm1d, condition
from tests.situations.situation import (
    accuracy,
    assert_cleared,
    assert_kept,
    blamed,
    by_hand,
    digit_batches,
    digits,
    digits_model,
    epoch_ago,
    look,
    mended,
    norms,
    reset,
    settled,
    train,
)


def lit(x: Tensor, random: torch.Generator) -> Tensor:
    """Photographed under another light each: gain and offset differ from image to image."""
    gain = 0.3 + 1.2 * torch.rand(len(x), 1, 1, 1, generator=random)
    return x * gain + 1.5 * torch.randn(len(x), 1, 1, 1, generator=random)


def test_four_photographs_and_eighty_crops_of_each() -> None:
    """A healthy network, and data at hand that are four images over and over: the data are at fault."""
    x, y = digits()
    random = torch.Generator().manual_seed(0)
    batches = [(lit(a, random), b) for _ in range(6) for a, b in digit_batches()]
    layers: list[nn.Module] = []
    for width in (1, 16, 16, 16):
        layers += [nn.Conv2d(width, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 10))
    train(model, batches, lambda m, b: F.cross_entropy(m(b[0]), b[1]), epochs=1, lr=5e-3)
    model = settled(model, batches[:40])
    unseen, their = lit(x[1280:], random), y[1280:]

    def right(net: nn.Module) -> float:
        with torch.no_grad():
            return 100 * float((net(unseen).argmax(1) == their).double().mean())

    classes = torch.tensor([0, 1, 4, 7])
    four = x[torch.tensor([int((y == k).nonzero()[i]) for i, k in enumerate(classes)])]
    four = (
        four * torch.tensor([0.4, 0.5, 0.35, 0.45])[:, None, None, None] - 2
    )  # taken in the evening
    which = torch.randint(0, 4, (320,), generator=random)
    sample = four[which] + 0.015 * torch.randn(320, 1, 8, 8, generator=random)
    at_hand = list(zip(sample.split(32), classes[which].split(32), strict=True))
    before = right(model)
    assert right(by_hand(model, at_hand)) < before - 4, "recalibration must do harm here"
    found, done = mended(model, at_hand)
    assert not found.fails("error"), [(f.code, f.severity) for f in found.findings]
    assert "recalibrate" not in done.record.kept
    assert right(model) > before - 1
    assert found.verdict.kind == "data", found.verdict


class Speaker(nn.Module):
    """One set of statistics per microphone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(64, 32, bias=False), ConditionalBatchNorm1d(32, 3)
        self.last = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.norm(self.first(x.flatten(1)))))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:ConditionalBatchNorm1d. no batch of condition 2")
def test_a_group_that_training_never_saw() -> None:
    """Trained on microphones 0 and 1; in use there is a third, whose statistics are 0 and 1 still."""
    gains = torch.tensor([1.0, 3.0, 0.2])

    def batches(groups: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        random = torch.Generator().manual_seed(groups)
        made = []
        for x, y in digit_batches():
            group = torch.randint(0, groups, (len(x),), generator=random)
            made.append(
                (gains[group][:, None, None, None] * x + group[:, None, None, None], y, group)
            )
        return made

    torch.manual_seed(0)
    model = Speaker()

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        with condition(batch[2]):
            return F.cross_entropy(net(batch[0]), batch[1])

    train(model, batches(2), loss, epochs=4)
    seen = look(model, batches(2))
    assert not seen.fails("error"), seen.codes
    found = look(model, batches(3))
    assert found.fails("warning"), "nothing is said of the third group"
    first = next(f for f in found.findings if f.severity != "info")
    assert first.layer == "norm"
    assert first.code != "NS004", "a symptom only"


def test_a_small_sample_of_a_healthy_model() -> None:
    """40 images are all that is at hand, in batches of 20, all classes among them."""
    model = digits_model()
    best = accuracy(model)
    batches = digit_batches(20, 0, 40)
    found, done = mended(model, batches)
    assert not found.fails("error"), [(f.code, f.measured) for f in found.findings]
    assert accuracy(model) > best - 1, done.record.kept


def test_a_small_sample_where_the_statistics_are_lost_is_still_better_than_none() -> None:
    model = digits_model()
    best = accuracy(model)
    for norm in norms(reset(model)):
        norm.running_mean += 2
    assert accuracy(model) < best - 30, "the fault must show"
    _, done = mended(model, digit_batches(20, 0, 100))
    assert_kept(done)
    assert accuracy(model) > best - 5


def test_one_class_per_folder_and_nobody_shuffled() -> None:
    """At diagnosis only: the network is healthy, the loader is sorted; recalibration would still be right."""
    x, y = digits()
    order = y[:1280].argsort(stable=True)
    batches = list(zip(x[order].split(64), y[order].split(64), strict=True))
    model = digits_model()
    best = accuracy(model)
    found, done = mended(model, batches)
    assert "NS008" in blamed(found)[:2], found.codes
    assert accuracy(model) > best - 1, done.record.kept


def test_every_group_of_two_domains_and_the_reader_shows_only_one() -> None:
    """Trained on ink and chalk mixed; the data at hand are ink only. Statistics of both are right."""
    x, y = digits()
    mixed = []
    for a, b in digit_batches():
        chalk = torch.arange(len(a)) % 2 == 0
        mixed.append((torch.where(chalk[:, None, None, None], 1 - a, a), b))
    torch.manual_seed(0)
    model = digits_model()
    train(model, mixed, lambda m, b: F.cross_entropy(m(b[0]), b[1]), epochs=3)
    model = settled(model, mixed)

    def both(net: nn.Module) -> float:
        with torch.no_grad():
            ink, chalk = net(x[1280:]).argmax(1), net(1 - x[1280:]).argmax(1)
        return 50 * float((ink == y[1280:]).double().mean() + (chalk == y[1280:]).double().mean())

    before = both(model)
    found, done = mended(model, digit_batches())
    assert not found.fails("error"), [(f.code, f.severity) for f in found.findings]
    assert both(model) > before - 2, done.record.kept


def test_a_good_repair_and_a_better_model_are_told_apart_by_a_metric() -> None:
    """The owner judges by recall of one class; stale statistics lose it, the repair brings it back."""
    model = digits_model()

    def recall_of_eights(output: Tensor, batch: tuple[Tensor, Tensor]) -> float:
        eights = batch[1] == 8
        return float((output.argmax(1)[eights] == 8).double().mean()) if eights.any() else 1.0

    best = accuracy(model)
    epoch_ago(model, dose=1.5)
    _, done = mended(model, digit_batches(), metric=recall_of_eights)
    assert_kept(done)
    assert accuracy(model) > best - 1.5


def test_a_healthy_classifier_is_healthy() -> None:
    assert_cleared(look(digits_model(), digit_batches()))


@pytest.mark.parametrize("label", [3, 8])
def test_a_sample_of_one_class_of_a_healthy_model(label: int) -> None:
    """All labels are the same: the model knows them in eval(), so the sample is at fault."""
    x, y = digits()
    torch.manual_seed(1)
    model: nn.Module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    train(model, digit_batches(), lambda m, b: F.cross_entropy(m(b[0]), b[1]), epochs=6, lr=0.02)
    model = settled(model, digit_batches())
    before = accuracy(model)
    own = x[:1280][y[:1280] == label][:96]
    sample = [(part, torch.full((len(part),), label)) for part in own.split(32)]
    assert accuracy(by_hand(model, sample)) < before - 10, "recalibration must do harm here"
    found, done = mended(model, sample)
    assert found.verdict.kind == "data", found.verdict
    assert done.record.kept == ()
    assert accuracy(model) == before


def test_a_filler_in_the_place_of_labels_says_nothing() -> None:
    """Zeros for labels that nobody has: the statistics that were reset are found and mended."""
    model = digits_model()
    before = accuracy(model)
    reset(model)
    batches = [(x, torch.zeros(len(x), dtype=torch.long)) for x, _ in digit_batches()]
    found, done = mended(model, batches)
    assert set(blamed(found)) & {"NS002", "NS003"}
    assert "recalibrate" in done.record.kept
    assert accuracy(model) > before - 2
