"""What the first line says where two things are true, or where a healthy model looks odd."""

import math
from typing import Any

import pytest
import torch
from sklearn.datasets import load_wine
from torch import Tensor, nn
from torch.nn import functional as F

from normscope import doctor
from normscope.doctor import diagnose
from normscope.report.checks import advice, evidence
from tests.situations.situation import (
    accuracy,
    assert_cleared,
    assert_kept,
    blamed,
    digit_batches,
    digits_model,
    epoch_ago,
    fingerprint,
    look,
    mended,
    norms,
    reset,
    settled,
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
    """The first line says by how much, and to look at the preprocessing before statistics.

    Held-out batches are on that scale too: they would prove what ruins the model in use.
    """
    model, batches = digits_model(), [(change(x), y) for x, y in digit_batches()]
    best = accuracy(model)
    found, done = mended(model, batches)
    first = found.findings[0]
    assert (first.code, first.layer) == ("NS033", "1")
    assert (found.verdict.kind, found.verdict.warns) == ("data", "recalibrate")
    assert math.isclose(float(first.facts["factor"]), factor, rel_tol=0.15)
    assert "preprocessing" in advice(first.code).en
    assert first.facts["factor"] in evidence(first).en
    assert done.record.kept == ()
    assert "NS033" in done.record.advice
    assert accuracy(model) == best
    assert all("preprocessing" in trial.note for trial in done.record.trials)


def test_inputs_on_another_scale_that_are_as_in_use() -> None:
    """Whoever names the remedy has it."""
    model, batches = digits_model(), [(255 * x, y) for x, y in digit_batches()[:10]]
    found = diagnose(model, batches)
    assert_kept(doctor.repair(model, found, batches, remedies=["recalibrate"]))


class Sensors(nn.Module):
    """A picture and six numbers, each with a norm that no other comes before."""

    def __init__(self) -> None:
        super().__init__()
        self.image = digits_model()
        self.table = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU())

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return torch.cat([self.image(image), self.table(table)], 1)


def test_the_second_of_two_inputs_on_another_scale() -> None:
    """Its counter is low too, but a share of the start is not what is wrong."""
    draw = torch.Generator().manual_seed(0)
    tables = [torch.randn(64, 6, generator=draw) + 1 for _ in range(8)]
    batches = [((x, t), y) for (x, y), t in zip(digit_batches()[:8], tables, strict=True)]
    torch.manual_seed(0)
    model = settled(Sensors(), batches, lambda m, b: m(*b[0]))
    assert "NS033" in look(model, batches).passed
    found, done = mended(model, [((x, 50 * t), y) for (x, t), y in batches])
    assert [(f.code, f.layer) for f in found.findings[:1]] == [("NS033", "table.1")]
    assert "NS002" not in blamed(found)
    assert done.record.kept == ()


def test_other_statistics_are_not_called_a_scale() -> None:
    """Of another epoch, of pictures turned to negatives, behind a norm, of the variance alone."""
    sick = [epoch_ago(digits_model()), digits_model(), digits_model()]
    norms(sick[1])[1].running_var *= 16
    norms(sick[2])[0].running_var *= 16
    for model in sick:
        found, done = mended(model, digit_batches())
        assert found.findings[0].code == "NS003"
        assert "NS033" in found.passed
        assert_kept(done)
    assert "NS033" in look(digits_model(), [(1 - x, y) for x, y in digit_batches()]).passed
    assert accuracy(digits_model()) > 95


def wine() -> tuple[nn.Sequential, list[tuple[Tensor, Tensor]]]:
    """A network whose first layer normalises the columns of a table, and its batches."""
    columns, kinds = load_wine(return_X_y=True)
    order = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(0))
    x, y = (torch.as_tensor(t)[order] for t in (columns, kinds))
    batches = list(zip(x.float().split(30)[:5], y.split(30)[:5], strict=True)) * 3
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm1d(13), nn.Linear(13, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)
    )
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1])
    return train(model, batches, loss, epochs=6, lr=0.01), batches


@pytest.mark.parametrize("kind", ["order", "units"])
def test_columns_of_a_table_in_another_order_or_unit(kind: str) -> None:
    """The first layer normalises the inputs: its statistics are right, and these data are not."""
    model, batches = wine()
    before = fingerprint(model)
    if kind == "order":
        order = torch.randperm(13, generator=torch.Generator().manual_seed(1))
        other = [(x[:, order], y) for x, y in batches]
    else:
        units = torch.ones(13).index_put((torch.tensor([0, 5]),), torch.tensor([100, 1e-3]))
        other = [(x * units, y) for x, y in batches]
    found, done = mended(model, other)
    first = found.findings[0]
    assert (first.code, first.layer, first.facts["kind"]) == ("NS033", "0", "columns")
    assert (found.verdict.kind, found.verdict.warns) == ("data", "recalibrate")
    assert kind == "order" or first.channels == (0, 5)
    assert "order" in evidence(first).en
    assert "NS003" not in [f.code for f in found.findings if f.layer == "0"]
    assert all("order or units" in trial.note for trial in done.record.trials)
    assert done.record.kept == ()
    assert fingerprint(model) == before


@pytest.mark.parametrize("kind", ["right", "start", "half", "foreign"])
def test_statistics_of_columns_that_are_the_layers_fault(kind: str) -> None:
    model, batches = wine()
    norm = norms(model)[0]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    draw = torch.Generator().manual_seed(3)
    if kind == "start":
        reset(model)
    elif kind == "half":  # as after few steps
        norm.running_mean /= 2
        norm.running_var.add_(1).div_(2)
    elif kind == "foreign":
        norm.running_mean *= 1 + torch.rand(13, generator=draw)
        norm.running_var *= 1 + 2 * torch.rand(13, generator=draw)
    found, done = mended(model, batches)
    assert "NS033" not in found.codes
    if kind != "right":
        assert_kept(done)


def test_half_precision_is_widened_layer_by_layer() -> None:
    """torch's kernels take one dtype for statistics, scale and shift; undone to the byte."""
    model = digits_model().to(torch.bfloat16)
    before = fingerprint(model)
    found, done = mended(model, digit_batches()[:8])
    assert blamed(found) == ("NS023",)
    assert done.record.kept == ("widen",)
    assert {t.dtype for t in norms(model)[0].state_dict().values()} == {torch.float32, torch.int64}
    assert model[0].weight.dtype == torch.bfloat16
    done.undo()
    assert fingerprint(model) == before


def test_frozen_norms_whose_statistics_stayed() -> None:
    """In eval() while the head learned: nothing is half frozen. In train() it is."""
    model = digits_model()
    for part in model[:6]:
        part.requires_grad_(False)
    found, done = mended(model, digit_batches())
    assert_cleared(found)
    assert done.record.kept == ()
    assert look(model.train(), digit_batches()).findings[0].code == "NS014"
    model.eval()
    norms(model)[0].running_mean += norms(model)[0].running_var.sqrt()
    assert "NS014" in blamed(look(model, digit_batches()))


def test_layers_that_somebody_froze_are_said_to_be_so() -> None:
    """In eval() inside a model in train(): left as they are, and the reason is given."""
    model = epoch_ago(digits_model(), dose=1.5).train()
    for norm in norms(model):
        norm.eval()
    _, done = mended(model, digit_batches()[:8])
    (trial,) = [t for t in done.record.trials if t.remedy == "recalibrate"]
    assert "somebody froze it" in trial.note
    assert not trial.kept


class Bootstrap(nn.Module):
    """As BYOL: the target has no gradients and follows the online network."""

    def __init__(self) -> None:
        super().__init__()
        self.online = digits_model()
        self.target = digits_model().requires_grad_(False)
        self.predictor = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.predictor(self.online(x)) - self.target(x.roll(1, 3))  # type: ignore[no-any-return]


def test_a_target_network_is_not_frozen_by_half() -> None:
    torch.manual_seed(0)
    model = Bootstrap()
    with torch.no_grad():
        for own in model.target.parameters():
            own += 0.1 * own.std() * torch.randn_like(own) if own.dim() > 1 else 0
    for mode in (True, False):
        assert "NS014" in diagnose(model.train(mode), select=["NS014"]).passed
    reset(model.target.eval())
    found, done = mended(model.eval(), [x for x, _ in digit_batches()])
    assert blamed(found)[0] == "NS002"
    assert {f.layer for f in found.findings if f.code == "NS002"} == {"target.1", "target.4"}
    assert done.record.kept == ("recalibrate",)


def test_padding_that_the_weights_have_learned_with() -> None:
    """It counts as data, which is said; where eval() does as well it is no fault."""
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (320,), generator=draw)
    x = torch.randn(320, 4, 20, generator=draw) + 0.4 * F.one_hot(y, 4)[:, :, None]
    x[:, :, 12:] = 0
    batches = list(zip(x.split(32), y.split(32), strict=True))
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
    )
    train(model, batches, lambda m, b: F.cross_entropy(m(b[0]), b[1]), lr=1e-2)
    found = look(settled(model, batches), batches)
    assert [f.severity for f in found.findings if f.code == "NS020"] == ["info"]
    assert found.verdict.code != "NS020"


def test_a_loss_a_few_hundredths_apart_is_no_error() -> None:
    """A mean that is off moves a value by a fifth of its noise: sure, and of no weight."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.tensor([[0.2, 1.0, -1.0]])
    x = torch.randn(2048, 3, generator=draw)
    y = x @ weight.T + torch.randn(2048, 1, generator=draw)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).eval()
    norm, linear = norms(model)[0], model[1]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.zero_()
    norm.num_batches_tracked.fill_(100)
    norm.running_mean[0] = 1.0
    batches = list(zip(x.split(64), y.split(64), strict=True))
    found = diagnose(model, batches, loss=lambda out, b: (out - b[1]).pow(2).mean(1))
    (stale,) = (f for f in found.findings if f.code == "NS003")
    assert stale.severity == "warning"
    norm.running_mean[1] = 1.0
    found = diagnose(model, batches, loss=lambda out, b: (out - b[1]).pow(2).mean(1))
    assert {f.severity for f in found.findings if f.code == "NS003"} == {"error"}
