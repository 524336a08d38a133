"""What the first line says where two things are true, or where a healthy model looks odd."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscope.report.checks import advice, evidence
from tests.situations.situation import (
    accuracy,
    assert_cleared,
    assert_kept,
    digit_batches,
    digits_model,
    epoch_ago,
    look,
    mended,
    norms,
    train,
)


class Lower(nn.Module):
    """Runs under autocast, and hands scores on as they come or in float32."""

    def __init__(self, *, back: bool) -> None:
        super().__init__()
        self.model, self.back = digits_model(), back

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            scores: Tensor = self.model(x)
        return scores.float() if self.back else scores


@pytest.mark.parametrize("back", [False, True])
def test_a_healthy_model_in_mixed_precision(back: bool) -> None:
    """Folded it computes the same but for the rounding of bfloat16, in which it ran."""
    found = look(Lower(back=back).eval(), digit_batches()[:4])
    assert "NS024" in found.passed, [f.facts for f in found.findings]
    assert_cleared(found)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = digits_model()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(x + 0.2 * torch.randn_like(x))
        return scores


def test_a_layer_left_in_train_comes_before_data_that_cannot_judge() -> None:
    model = Noisy().eval()
    assert look(model, digit_batches()).findings[0].code == "NS029"
    norms(model)[1].train()
    found, done = mended(model, digit_batches())
    assert found.codes[:2] == ("NS001", "NS029")
    assert (found.verdict.kind, found.verdict.code) == ("statistics", "NS001")
    assert found.verdict.warns == "recalibrate"
    assert done.record.kept == ("eval_mode",)


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
def test_real_and_generated_pictures_in_batches_of_their_own(mixed: bool, column: bool) -> None:
    """A discriminator, whose labels are yes or no in floating point."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(72, 1)
    )
    draw = torch.Generator().manual_seed(0)
    batches = []
    for x, _ in digit_batches()[:8]:
        half = len(x) // 2
        both = torch.cat([x[:half], torch.rand(x[:half].shape, generator=draw)])
        order = torch.randperm(len(both), generator=draw) if mixed else torch.arange(len(both))
        labels = (torch.arange(len(both)) < half).float()
        rows = order.split(half)
        batches += [(both[i], labels[i, None] if column else labels[i]) for i in rows]

    def loss(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
        return F.binary_cross_entropy_with_logits(m(b[0]).flatten(), b[1].flatten())

    torch.manual_seed(0)
    found = look(train(model, batches, loss, epochs=3), batches)
    named = [f for f in found.findings if f.code == "NS008"]
    assert bool(named) != mixed, found.codes
    if named:
        assert found.verdict.code == "NS008"
        assert named[0].measured == pytest.approx(1, abs=0.05)


class Latent(nn.Module):
    """An auto-encoder that also returns a code of eight numbers, which are no scores of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8)
        )
        self.back = nn.Linear(8, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.code(x)
        return self.back(code).view_as(x), code


def test_labels_that_fit_an_output_in_some_batches_only() -> None:
    """Four labels below 8 fit the code; those of the whole batch do not."""
    torch.manual_seed(0)
    model = train(Latent(), digit_batches(), lambda m, b: F.mse_loss(m(b[0])[0], b[0]))
    norms(model)[0].train()
    found, done = mended(model, digit_batches()[:8])
    assert found.verdict.code == "NS001"
    assert_kept(done, "eval_mode")


def test_masks_without_a_label_in_some_pictures() -> None:
    """A layer left in train() is judged in small batches; some hold no labelled pixel."""
    batches = []
    for x, _ in digit_batches()[:6]:
        mask = (x[:, 0] > 0.5).long()
        mask[::16] = mask[1::16] = mask[2::16] = mask[3::16] = 255
        batches.append((x, mask))
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )

    def loss(m: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(m(b[0]), b[1], ignore_index=255)

    torch.manual_seed(0)
    model = train(model, batches, loss, epochs=12, lr=0.02)
    norms(model)[0].train()
    found, done = mended(model, batches)
    assert found.verdict.code == "NS001"
    assert done.record.after.accuracy > 0.8


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        (lambda x: 255 * x, 255.0),
        (lambda x: x / 255, 1 / 255),
        (lambda x: (x - 0.5) / 0.25, 4.0),
    ],
)
def test_inputs_on_another_scale(change: Any, factor: float) -> None:
    """The first line says by how much, and to look at the preprocessing before statistics."""
    found = look(digits_model(), [(change(x), y) for x, y in digit_batches()])
    first = found.findings[0]
    assert (first.code, first.layer, first.facts["kind"]) == ("NS003", "1", "scaled")
    assert math.isclose(float(first.facts["factor"]), factor, rel_tol=0.15)
    assert "preprocessing" in advice(first.code, first.facts["kind"]).en
    assert first.facts["factor"] in evidence(first).en


def test_other_statistics_are_not_called_a_scale() -> None:
    """Of another epoch, of pictures turned to negatives, and behind the first layer."""
    sick = [epoch_ago(digits_model()), digits_model()]
    norms(sick[1])[1].running_var *= 16
    for model in sick:
        stale = [f for f in look(model, digit_batches()).findings if f.code == "NS003"]
        assert stale
        assert {f.facts["kind"] for f in stale} == {""}
    found = look(digits_model(), [(1 - x, y) for x, y in digit_batches()])
    assert "scaled" not in {f.facts.get("kind") for f in found.findings}
    assert accuracy(digits_model()) > 95
