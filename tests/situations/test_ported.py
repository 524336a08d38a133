"""Models that came from another library, or did not arrive: what was carried over wrongly is told."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.situations.situation import (
    accuracy,
    assert_kept,
    blamed,
    digit_batches,
    digit_net,
    digits_model,
    look,
    mended,
    norms,
    train,
)


class KerasNorm(nn.Module):
    """As people write it by Keras' book: momentum is the weight of the old average."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.full((channels,), v)) for v in (1.0, 0.0))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.momentum, self.eps = momentum, 1e-3

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, 1 - self.momentum)
                self.running_var.lerp_(var, 1 - self.momentum)
        else:
            mean, var = self.running_mean, self.running_var
        mean, std = (v.view(-1, 1, 1) for v in (mean, (var + self.eps).sqrt()))
        return self.weight.view(-1, 1, 1) * (x - mean) / std + self.bias.view(-1, 1, 1)


@pytest.mark.parametrize(("momentum", "wrong"), [(0.9, False), (0.1, True)])
def test_a_layer_of_ones_own_has_a_momentum_by_its_own_rule(momentum: float, wrong: bool) -> None:
    """What a batch leaves in its statistics counts, not what the attribute is called."""
    torch.manual_seed(0)
    layer = KerasNorm(12, momentum)
    model = nn.Sequential(nn.Conv2d(1, 12, 3), layer, nn.ReLU(), nn.Flatten(), nn.Linear(432, 10))
    train(model, digit_batches(), lambda m, b: F.cross_entropy(m(b[0]), b[1]), epochs=1)
    found, done = mended(model, digit_batches())
    assert ("NS005" in blamed(found)) == wrong, found.codes
    assert ("momentum" in done.record.kept) == wrong
    assert layer.momentum == pytest.approx(0.9), "it was right, or was set right"


def test_statistics_that_were_multiplied_are_not_inputs_on_another_scale() -> None:
    """Caffe keeps sums and a scale factor, which the port did not divide out."""
    model = digits_model()
    for norm in norms(model):
        norm.running_mean *= 999.98
        norm.running_var *= 999.98
    found, done = mended(model, digit_batches())
    assert blamed(found)[0] == "NS003", found.codes
    assert found.verdict.kind == "statistics"
    assert_kept(done)
    assert accuracy(model) > 95


@pytest.mark.parametrize("what", ["nothing loaded", "scale and shift swapped", "other labels"])
def test_labels_that_neither_mode_predicts_are_told(what: str) -> None:
    """No repair of statistics helps there, so the first lines say more than a cause of a gap."""
    model, batches = digits_model(), digit_batches()
    if what == "nothing loaded":
        torch.manual_seed(5)
        model = digit_net().eval()
    elif what == "scale and shift swapped":
        for norm in norms(model):
            norm.weight.data, norm.bias.data = norm.bias.data, norm.weight.data
    else:
        batches = [(x, y.roll(1)) for x, y in batches]
    found = look(model, batches)
    assert found.gap.by_chance < 0.25
    assert "neither mode more than chance" in str(found)
    assert "chance" not in str(look(digits_model(), digit_batches()))


def test_mean_and_variance_that_changed_places() -> None:
    """Negative variances are what is seen; the other channels of these layers are as wrong."""
    model = digits_model()
    for norm in norms(model):
        norm.running_mean, norm.running_var = norm.running_var, norm.running_mean
    found, done = mended(model, digit_batches())
    assert blamed(found)[0] == "NS009", found.codes
    assert all("nan" not in value for f in found.findings for value in f.facts.values())
    assert_kept(done, "repair_channels")
    assert_kept(done)
    assert accuracy(model) > 96.5
