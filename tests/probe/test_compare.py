"""What a model returns, read as classes, yes or no, values or nothing; torch and sklearn judge."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor, nn

from normscope import InputError
from normscope.probe.batches import Loader
from normscope.probe.compare import SURE, Answer, Comparison, Goal, Quality, advantage, leaves
from normscope.probe.grammar import Batch

MODEL = nn.Linear(1, 1)


def batch(labels: Any, size: int) -> Batch:
    return next(Loader([(torch.zeros(size, 1), labels)], MODEL).read())


def answer(output: Any, labels: Any, size: int = 12, goal: Goal | None = None) -> Answer:
    return (goal or Goal()).answer(output, batch(labels, size))


def quality(*answers: Answer) -> Quality:
    found = Quality()
    for one in answers:
        found.add(one)
    return found


def compared(reference: Answer, other: Answer, **options: Any) -> Comparison:
    found = Comparison(**options)
    found.add(reference, other)
    return found


LABELS = torch.arange(12) % 4
SCORES = 2 * torch.eye(4)[LABELS] + torch.randn(12, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "labels",
    [LABELS, LABELS.int(), LABELS[:, None], torch.eye(4)[LABELS], torch.eye(4)[LABELS].long()],
    ids=["int64", "int32", "(N, 1)", "one-hot", "one-hot int64"],
)
@pytest.mark.parametrize(
    "form",
    [
        lambda y: y,
        lambda y: (y,),
        lambda y: [y, torch.zeros(2)],
        lambda y: {"loss": torch.tensor(3.0), "logits": y},
        lambda y: SimpleNamespace(loss=None, logits=y),
        lambda y: {"aux": torch.zeros(12, 7, 3), "deep": [{"out": (y,)}]},
    ],
    ids=["tensor", "tuple", "list", "dict", "object", "deep"],
)
def test_classes_against_sklearn(labels: Tensor, form: Any) -> None:
    found = quality(answer(form(SCORES), labels))
    probabilities = SCORES.double().softmax(1).numpy()
    assert found.accuracy == pytest.approx(accuracy_score(LABELS, SCORES.argmax(1)))
    assert found.loss == pytest.approx(log_loss(LABELS, probabilities))
    assert found.truth.tolist() == [3, 3, 3, 3]
    assert found.predicted.tolist() == torch.bincount(SCORES.argmax(1), minlength=4).tolist()


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("one_channel", [False, True])
@pytest.mark.parametrize("dims", [(5,), (4, 6), (2, 3, 4)], ids=["1d", "2d", "3d"])
def test_masks_against_torch(dims: tuple[int, ...], one_channel: bool, last: bool) -> None:
    mask = torch.randint(0, 3, (8, *dims))
    scores = torch.randn(8, 3, *dims) + 2 * F.one_hot(mask, 3).movedim(-1, 1)
    ignored = torch.rand(mask.shape) < 0.3
    ignored[0] = False
    marked = torch.where(ignored, torch.where(torch.rand(mask.shape) < 0.5, 255, -100), mask)
    given = marked[:, None] if one_channel else marked
    found = answer(scores.movedim(1, -1) if last else scores, given, 8)
    right = (scores.argmax(1) == mask) & ~ignored
    for i in range(8):
        used = ~ignored[i]
        if used.any():
            assert float(found.right[i]) == pytest.approx(int(right[i].sum()) / int(used.sum()))
            loss = F.cross_entropy(scores[i : i + 1], marked[i : i + 1].where(used, -100))
            assert float(found.losses[i]) == pytest.approx(float(loss), rel=1e-4)
    assert int(found.truth.sum()) == int((~ignored).sum())


def test_255_is_a_class_where_there_are_so_many() -> None:
    labels = torch.full((8, 2, 2), 255)
    scores = torch.zeros(8, 300, 2, 2)
    scores[:, 255] = 9
    assert quality(answer(scores, labels, 8)).accuracy == 1
    assert not len(answer(scores[:, :100], labels, 8).right), "nothing but ignored positions"


@pytest.mark.parametrize("shape", [(16,), (16, 1), (16, 1, 3, 3), (16, 5)], ids=str)
@pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.bool], ids=str)
def test_yes_or_no_by_logits_and_by_probabilities(shape: tuple[int, ...], kind: Any) -> None:
    wanted = torch.rand(shape) < 0.5
    wanted[0], wanted[1] = True, False
    logits = torch.randn(shape) + 2 * wanted
    labels = wanted.to(kind)
    loss = F.binary_cross_entropy_with_logits(logits, wanted.float())
    for output in (logits, logits.sigmoid()):
        if shape == (16, 5) and kind != torch.float32:
            output = output.clone()
        found = quality(answer(output, labels, 16))
        assert found.accuracy == pytest.approx(
            float(((logits > 0) == wanted).float().mean()), abs=1e-6
        )
        assert found.loss == pytest.approx(float(loss), rel=1e-3)


def test_values_are_squared_errors_and_no_classes() -> None:
    wanted = torch.randn(12, 3)
    found = quality(answer(wanted + 0.5, wanted))
    assert math.isnan(found.accuracy)
    assert found.loss == pytest.approx(0.25)
    ages = torch.randint(20, 80, (12,))
    found = quality(answer(ages.float()[:, None] + 1, ages))
    assert found.loss == pytest.approx(1)


@pytest.mark.parametrize(
    ("output", "labels"),
    [
        (torch.randn(12, 5), torch.arange(12) % 7),  # more classes than scores
        (torch.randn(12, 4, 6, 6), LABELS),  # dense scores, one label per sample
        (torch.randn(12, 4), torch.randn(12)),
        (torch.randn(12, 4), torch.full((12, 3), 7)),
        (torch.randn(12, 4), ["cat"] * 12),
        (torch.randn(12, 4), None),
        (torch.randn(5, 4), LABELS),
        (torch.randint(0, 4, (12, 4)), LABELS),
        (torch.randn(12, 4), torch.full((12,), -1)),
        ("text", LABELS),
        ([], LABELS),
    ],
    ids=range(11),
)
def test_what_does_not_fit_is_no_score_of_classes(output: Any, labels: Any) -> None:
    found = answer(output, labels)
    assert not len(found.right)
    assert not len(found.losses)
    both = compared(found, found)
    assert not both.known
    assert math.isnan(both.disagreement)
    assert math.isnan(both.advantage)
    assert both.relative == 0


@pytest.mark.parametrize("many", [4, 10, 100])
def test_actions_and_ages_are_no_labels_and_classes_are(many: int) -> None:
    labels = torch.randint(0, many, (400,))
    values = torch.randn(400, many)
    assert not quality(answer(values, labels, 400)).beats_chance()
    better = values + 3 * F.one_hot(labels, many)
    assert quality(answer(better, labels, 400)).beats_chance()


def test_a_frequent_class_is_no_skill() -> None:
    labels = (torch.rand(400) < 0.03).long()
    constant = torch.tensor([[1.0, 0.0]]).expand(400, 2)
    found = quality(answer(constant, labels, 400))
    assert found.accuracy > 0.9
    assert not found.beats_chance()
    assert not quality(answer(torch.randn(400, 1), labels[:, None], 400)).beats_chance()


def test_values_count_where_they_are_predicted_better_than_by_the_mean() -> None:
    wanted = 50 + 10 * torch.randn(300, 1)
    assert quality(answer(wanted + torch.randn(300, 1), wanted, 300)).beats_chance()
    assert not quality(answer(torch.full((300, 1), 50.0), wanted, 300)).beats_chance()
    assert not quality(answer(torch.randn(300, 1), wanted, 300)).beats_chance()


def test_where_labels_do_not_count_nothing_is_said_of_accuracy() -> None:
    labels = torch.randint(0, 5, (200,))
    one, other = torch.randn(200, 5), torch.randn(200, 5)
    both = compared(answer(one, labels, 200), answer(other, labels, 200))
    assert not both.known
    assert all(math.isnan(a) for a in both.accuracies)
    assert math.isnan(both.disagreement)
    assert both.relative == pytest.approx(2**0.5, rel=0.1)


def test_relative_difference_is_that_of_numpy() -> None:
    one, other = torch.randn(50, 3, 4), torch.randn(50, 3, 4)
    expected = float(
        (other - one).double().pow(2).mean().sqrt()
        / (one.double() - one.double().mean()).pow(2).mean().sqrt()
    )
    both = Comparison()
    for a, b in zip(one.split(10), other.split(10), strict=True):
        both.add(Goal().answer(a, batch(None, 10)), Goal().answer(b, batch(None, 10)))
    assert both.relative == pytest.approx(expected, rel=0.05)  # the mean is that of each batch
    assert both.samples == 50


def test_noise_is_subtracted() -> None:
    one = torch.randn(100, 4)
    a, b = answer(one, None, 100), answer(one + 0.5 * torch.randn(100, 4), None, 100)
    plain = compared(a, b).relative
    assert plain == pytest.approx(0.5, rel=0.15)
    assert compared(a, b, noise=0.3).relative == pytest.approx((plain**2 - 0.09) ** 0.5)
    assert compared(a, b, noise=0.9).relative == 0


def test_outputs_that_are_not_finite_give_no_nan() -> None:
    bad = SCORES.clone()
    bad[0], bad[1] = math.nan, math.inf
    both = compared(answer(SCORES, LABELS), answer(bad, LABELS))
    assert both.relative > 10
    assert math.isfinite(both.relative)
    assert math.isfinite(both.other.loss)
    assert both.other.accuracy <= both.reference.accuracy
    assert both.advantage < 0
    reverse = compared(answer(bad, None), answer(SCORES, None))
    assert math.isfinite(reverse.relative)
    assert reverse.relative > 10
    values = compared(answer(bad, SCORES), answer(SCORES, SCORES))
    assert math.isfinite(values.reference.loss)


def test_detections_of_other_shapes_are_compared_by_their_features() -> None:
    def boxes(count: int) -> list[dict[str, Tensor]]:
        return [
            {"boxes": torch.rand(count + i % 2, 4), "scores": torch.rand(count)} for i in range(4)
        ]

    features = torch.randn(4, 6)
    one = Goal().answer(boxes(3), batch(None, 4), features)
    same = Goal().answer(boxes(5), batch(None, 4), features)
    far = Goal().answer(boxes(5), batch(None, 4), features + 1)
    assert compared(one, same).relative == 0
    assert compared(one, far).relative > 0.5
    assert compared(one, far).samples == 4
    none = compared(
        Goal().answer(boxes(3), batch(None, 4)), Goal().answer(boxes(5), batch(None, 4))
    )
    assert none.samples == 0
    assert none.relative == 0


def test_an_autoencoder_with_labels_is_compared_by_its_reconstruction() -> None:
    x, mean, spread = torch.randn(12, 1, 8, 8), torch.randn(12, 4), torch.randn(12, 4)
    one = answer((x, mean, spread), torch.arange(12) % 10)
    other = answer((x + 0.1, mean, spread), torch.arange(12) % 10)
    assert not len(one.right), "10 classes do not fit into 4 scores"
    both = compared(one, other)
    assert both.relative == pytest.approx(0.1, rel=0.1)
    assert not both.known


def test_a_latent_code_as_wide_as_the_labels_is_no_classifier() -> None:
    """10 numbers per image and 10 digits: only skill would make them scores."""
    torch.manual_seed(0)
    labels, code = torch.randint(0, 10, (300,)), torch.randn(300, 10)
    both = compared(answer((torch.randn(300, 64), code), labels, 300),
                    answer((torch.randn(300, 64), code + 1), labels, 300))  # fmt: skip
    assert not both.known
    assert math.isnan(both.disagreement)


def test_advantage_has_the_sign_of_what_is_better() -> None:
    labels = torch.randint(0, 4, (300,))
    good = torch.randn(300, 4) + 3 * F.one_hot(labels, 4)
    bad = torch.randn(300, 4) + 1 * F.one_hot(labels, 4)
    a, b = answer(good, labels, 300), answer(bad, labels, 300)
    assert compared(b, a).advantage > SURE
    assert compared(a, b).advantage < -SURE
    assert abs(compared(a, a).advantage) == 0
    wanted = torch.randn(300, 1)
    near, far = (answer(wanted + s * torch.randn(300, 1), wanted, 300) for s in (0.1, 0.5))
    assert compared(far, near).advantage > SURE
    assert compared(near, far).advantage < -SURE


def test_a_small_rise_of_accuracy_does_not_hide_a_loss_that_rises() -> None:
    before, after = Quality(), Quality()
    right = torch.zeros(200, dtype=torch.float64)
    right[:100] = 1
    better = right.clone()
    better[100] = 1
    for q, r, loss in ((before, right, 0.5), (after, better, 0.9)):
        q.right, q.losses = [r], [torch.full((200,), loss) + 0.01 * torch.randn(200)]
    assert advantage(before, after) < -SURE


def test_metric_and_loss_say_what_good_is() -> None:
    goal = Goal(metric=lambda output, batch: float(output.mean()))
    zeros, ones = torch.zeros(12, 2), torch.ones(12, 2)
    one, other = (answer(v, LABELS, goal=goal) for v in (zeros, ones))
    both = compared(one, other, given=True)
    assert both.known
    assert both.advantage > SURE
    assert compared(other, one, given=True).advantage < -SURE
    slight = compared(other, answer(ones * 1.001, LABELS, goal=goal), given=True)
    assert slight.advantage == 0, "a thousandth in one batch may be chance"
    lower = Goal(loss=lambda output, batch: (output - 1).abs().mean(1))
    one, other = (answer(v, LABELS, goal=lower) for v in (zeros, ones))
    assert quality(one).loss == 1
    assert compared(one, other, given=True).advantage > SURE
    single = Goal(loss=lambda output, batch: output.mean())
    assert quality(answer(ones, LABELS, goal=single)).loss == 1


@pytest.mark.parametrize("what", ["metric", "loss"])
def test_metrics_that_fail_or_are_not_finite(what: str) -> None:
    with pytest.raises(InputError, match=rf"{what}\(output, batch\) failed on batch 0: Zero"):
        answer(SCORES, LABELS, goal=Goal(**{what: lambda output, batch: 1 / 0}))
    with pytest.raises(InputError, match=rf"{what}\(output, batch\) failed.*returns a number"):
        answer(SCORES, LABELS, goal=Goal(**{what: lambda output, batch: "good"}))
    goal = Goal(**{what: lambda output, batch: math.nan})
    found = quality(answer(SCORES, LABELS, goal=goal))
    assert math.isfinite(found.metric if what == "metric" else found.loss)
    assert (found.metric if what == "metric" else -found.loss) < -1e5


def test_leaves_of_anything() -> None:
    x, y = torch.zeros(1), torch.ones(1)
    assert list(leaves({"a": [x], "b": SimpleNamespace(c=(y, None, "s", 3))})) == [x, y]
    assert list(leaves(None)) == []


@pytest.mark.parametrize(("labels", "scores"), [(torch.zeros(12, 1), 1), (LABELS, 4)])
def test_a_score_that_is_no_number_is_never_right(labels: Any, scores: int) -> None:
    found = answer(torch.full((12, scores), torch.nan), labels)
    assert not found.right.any()
    assert (found.choices == -1).all()
    assert found.losses.isfinite().all()


def test_a_mask_without_any_label_says_nothing_of_its_sample() -> None:
    labels = LABELS[:, None].expand(12, 5).clone()
    labels[3] = -1
    labels[4, 1:] = -1
    found = answer(SCORES[:, :, None].expand(12, 4, 5), labels)
    known = F.cross_entropy(SCORES.double(), LABELS, reduction="none")
    keep = torch.arange(12) != 3
    torch.testing.assert_close(found.losses, known[keep])
    assert len(found.right) == 11


@pytest.mark.parametrize(("many", "kept"), [(30, 30), (4096, 4096), (5000, 2500), (9000, 3000)])
def test_of_many_answers_of_a_sample_some_are_compared(many: int, kept: int) -> None:
    scores = torch.randn(2, many)
    found = answer(scores, (scores > 0).long(), 2)
    assert found.choices.shape == (2, kept)
    step = many // kept
    assert torch.equal(found.choices, (scores > 0).long()[:, ::step])
    assert found.right.tolist() == [1, 1]
