"""The numbers of a comparison by hand: limits, weights, bounds and what stands for nothing."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from normscope.probe.compare import (
    SAMPLED,
    SURE,
    WORST,
    Answer,
    Comparison,
    Goal,
    Quality,
    advantage,
    largest,
    largest_gap,
)
from normscope.probe.grammar import Batch

NAN = math.nan


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def answered(output: Any, labels: Any = None, size: int = 4, **goal: Any) -> Answer:
    return Goal(**goal).answer(output, Batch(0, None, size, labels=labels))


def of(values: Any, features: Any = None) -> Answer:
    more = {} if features is None else {"features": torch.tensor(features).double()}
    return Answer(torch.tensor(values).double(), **more)


def quality(right: Any = None, losses: Any = None, **more: Any) -> Quality:
    found = Quality(**more)
    if right is not None:
        found.right = [torch.tensor(right).double()]
    if losses is not None:
        found.losses = [torch.tensor(losses).double()]
    return found


def test_the_limits_that_answers_are_read_with() -> None:
    assert (SAMPLED, WORST, SURE) == (4096, 1e6, 2)


def test_the_largest_value_and_the_largest_gap() -> None:
    assert largest(wide(-3, 2)) == 3
    assert largest(wide(1, NAN, -5, math.inf)) == 5
    assert largest(wide(NAN)) == largest(torch.zeros(0)) == 0
    assert largest_gap(wide(2, -4), wide(2, -3)) == 0.25
    assert largest_gap(wide(2, -4), wide(2, -3), size=0.5) == 2
    assert largest_gap(wide(0), wide(1), size=0) == pytest.approx(1e30)
    assert largest_gap(wide(NAN, math.inf, 2), wide(NAN, math.inf, 1)) == 0.5
    assert largest_gap(wide(NAN, 1), wide(1, 1)) == math.inf
    assert largest_gap(wide(1), wide(1, 1)) == math.inf
    assert largest_gap(torch.zeros(0), torch.zeros(0)) == 0


def test_a_relative_difference_is_the_spread_of_the_reference_over_all_batches() -> None:
    both = Comparison()
    both.add(of([[1, 3], [5, 7]]), of([[2, 3], [5, 7]]))
    # squares: (1/2 + 0); about the mean 4: (9+1)/2 + (1+9)/2
    assert both.relative == pytest.approx((0.5 / 10) ** 0.5)
    both.add(of([[0, 0], [0, 0]]), of([[0, 0], [0, 4]]))
    assert both.relative == pytest.approx((8.5 / 10) ** 0.5)
    assert both.samples == 4
    assert (both.given, both.noise) == (False, 0)
    again = Comparison.of([of([[1, 3], [5, 7]])], [of([[2, 3], [5, 7]])], noise=0.1)
    assert again.relative == pytest.approx((0.05 - 0.01) ** 0.5)
    assert not again.given
    assert Comparison.of([], [], given=True).known
    with pytest.raises(ValueError, match="zip"):
        Comparison.of([of([[1]])], [])


def test_a_sample_that_is_finite_in_one_mode_alone_counts_as_lost() -> None:
    both = Comparison()
    both.add(
        of([[1, 3], [NAN, 7], [NAN, 1], [5, 5]]), of([[2, 3], [5, 7], [NAN, 2], [math.inf, 1]])
    )
    # known rows of the reference: (1, 3) and (5, 5), about their mean 3.5
    scale = (6.25 + 0.25) / 2 + 2.25
    assert both.relative == pytest.approx(((0.5 + 2 * WORST * scale) / scale) ** 0.5)
    none = Comparison()
    none.add(of([[NAN, NAN]]), of([[1, 1]]))
    assert none.relative == pytest.approx((WORST * 1e-12 / 1e-12) ** 0.5)
    assert Comparison().relative == 0


def test_answers_of_other_shapes_are_compared_by_their_features() -> None:
    both = Comparison()
    both.add(of([[1], [2]], [[0, 2], [0, 2]]), of([[1], [2], [3]], [[0, 2], [0, 4]]))
    assert both.relative == pytest.approx((2 / 2) ** 0.5)
    assert both.samples == 2
    other = Comparison()
    other.add(of([[1], [2]], [[0, 2]]), of([[1]], [[0, 2], [0, 4]]))
    other.add(of([[1], [2]]), of([[1]]))
    assert other.samples == 0
    same = Comparison()
    same.add(of([[1], [2]], [[0, 2]]), of([[1], [2]], [[5, 5]]))
    assert same.relative == 0, "outputs come first"


def test_other_classes_are_a_share_of_what_was_chosen() -> None:
    labels = torch.arange(400) % 2
    right = 4 * torch.eye(2)[labels]
    wrong = right.clone()
    wrong[:100] = wrong[:100].flip(1)
    a, b = answered(right, labels, 400), answered(wrong, labels, 400)
    assert Comparison.of([a], [b]).disagreement == 0.25
    assert Comparison.of([a, a], [a, b]).disagreement == 0.125
    assert Comparison.of([a], [b]).accuracies == (1, 0.75)
    assert Comparison.of([b], [a]).accuracies == (0.75, 1)
    assert math.isnan(Comparison().disagreement)


def test_how_well_a_state_does_adds_up_over_batches() -> None:
    found = Quality()
    assert all(math.isnan(v) for v in (found.accuracy, found.loss, found.metric))
    found.add(
        Answer(
            wide(1),
            losses=wide(1, 2),
            right=wide(1, 0),
            metric=3,
            predicted=wide(1, 1),
            truth=wide(2, 0),
        )
    )
    found.add(
        Answer(
            wide(1), losses=wide(6), right=wide(1), metric=5, predicted=wide(0, 1), truth=wide(1, 0)
        )
    )
    assert (found.loss, found.metric) == (3, 4)
    assert found.accuracy == pytest.approx(2 / 3)
    assert (found.predicted.tolist(), found.truth.tolist()) == ([1, 2], [3, 0])
    found.add(Answer(wide(1)))
    assert found.metrics == [3, 5]
    assert found.predicted.tolist() == []  # an answer without classes
    found.add(Answer(wide(1), predicted=torch.tensor([4, 5, 6])))
    assert found.predicted.tolist() == [4, 5, 6]
    assert found.predicted.dtype == torch.float64


@pytest.mark.parametrize(
    ("right", "truth", "beats"),
    [
        ([1] * 61 + [0] * 39, (50, 50), True), ([1] * 59 + [0] * 41, (50, 50), False),
        ([1] * 79 + [0] * 21, (100, 0), False), ([1] * 84 + [0] * 16, (100, 0), True),
        ([1] * 100, (100, 0), True), ([1], (1, 1), False), ([1] * 3, (1, 2), True),
    ],
)  # fmt: skip
def test_labels_are_predicted_better_than_by_chance(
    right: list[int], truth: tuple[int, int], beats: bool
) -> None:
    """Chance is a half, or three quarters where all labels are one class of two."""
    found = quality(right, truth=wide(*truth), predicted=wide(1, 1))
    assert found.beats_chance() is beats


def test_values_are_predicted_better_than_by_their_mean() -> None:
    targets = wide(4, 8, 36)  # a variance of 36 / 4 - 4
    assert quality(losses=[4.8, 4.9, 4.8, 4.9], targets=targets).beats_chance()
    assert not quality(losses=[5.1, 5.2, 5.1, 5.2], targets=targets).beats_chance()
    assert not quality(losses=[1, 9, 1, 7], targets=targets).beats_chance(), "within the error"
    assert not quality(losses=[1], targets=targets).beats_chance(), "one number"
    assert not quality(losses=[0.0], targets=targets).beats_chance()
    assert not quality(losses=[0.0] * 9).beats_chance()
    assert not quality(targets=targets).beats_chance()


def test_a_gain_is_of_the_metric_else_of_what_says_most() -> None:
    assert math.isnan(advantage(Quality(), Quality()))
    by_metric = [Quality(metrics=list(m)) for m in ((0.5, 0.5, 0.5), (0.6, 0.7, 0.8))]
    assert advantage(*by_metric) == pytest.approx(0.2 / (0.1 / 3**0.5), rel=1e-4)
    assert advantage(*by_metric[::-1]) == pytest.approx(-0.2 / (0.1 / 3**0.5), rel=1e-4)
    lower = quality(losses=[1.0, 2.0, 3.0]), quality(losses=[0.9, 1.8, 2.7])
    assert advantage(*lower) == pytest.approx(0.2 / (0.1 / 3**0.5))
    single = [Quality(losses=[wide(v)]) for v in (1.0, 0.98)]
    assert advantage(*single) == 2 * SURE
    assert advantage(*single[::-1]) == -2 * SURE
    slight = [Quality(losses=[wide(v)]) for v in (1.0, 0.995)]
    assert advantage(*slight) == 0
    pair = [Quality(losses=[wide(v, v)]) for v in (1.0, 0.98)]
    assert advantage(*pair) == pytest.approx(0.02 / 1e-4), "a number for every sample"
    rises = quality([0, 0, 0, 0], [1.0, 1, 1, 1]), quality([1, 1, 1, 1], [2.0, 2, 2, 2])
    assert advantage(*rises) == pytest.approx(1e4), "accuracy says it"
    alike = quality([1, 0, 1, 0], [1.0, 1, 1, 1]), quality([1, 0, 1, 0], [2.0, 2, 2, 2])
    assert advantage(*alike) == pytest.approx(-1e4), "the loss speaks where accuracy does not"
    right = quality([0, 1, 1, 0]), quality([1, 1, 1, 1])
    assert advantage(*right) == pytest.approx(0.5 / (float(wide(1, 0, 0, 1).std()) / 2))


def test_what_is_not_finite_counts_as_bad_as_it_can_be() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    scores = torch.tensor([[0.0, 0], [NAN, 1], [-1e9, 1e9], [-1e9, 1e9]])
    found = answered(scores, labels)
    worst = math.log(WORST)
    torch.testing.assert_close(found.losses, wide(math.log(2), worst, 0, worst))
    assert found.choices.flatten().tolist() == [0, -1, 1, 1]
    assert found.right.tolist() == [1, 0, 1, 0]
    assert found.predicted.tolist() == [2, 2]
    assert found.truth.tolist() == [2, 2]
    wanted = wide(0, 1, 2, 3)[:, None]
    values = answered(torch.tensor([[0.0], [NAN], [4], [3]]), wanted)
    assert values.losses.tolist() == [0, WORST, 4, 0]
    assert values.targets.tolist() == [4, 6, 14]
    assert values.targets.dtype == torch.float64


def test_one_score_for_yes_or_no_is_a_logit_unless_all_are_probabilities() -> None:
    wanted = torch.tensor([[0.0], [1], [1], [0]])
    chance = torch.tensor([[0.2], [0.6], [0.4], [1.0]])
    found = answered(chance, wanted)
    expected = -wide(0.8, 0.6, 0.4, 1e-6).log()
    torch.testing.assert_close(found.losses, expected, rtol=1e-4, atol=1e-6)
    assert found.choices.flatten().tolist() == [0, 1, 0, 1]
    logit = answered(torch.tensor([[-2.0], [0.6], [NAN], [0.0]]), wanted)
    assert logit.choices.flatten().tolist() == [0, 1, -1, 0]
    assert logit.losses[0] == pytest.approx(math.log1p(math.exp(-2)), rel=1e-6)
    assert logit.right.tolist() == [1, 1, 0, 1]
    assert logit.predicted.tolist() == [3, 1]
    assert logit.truth.tolist() == [2, 2]
    many = answered(torch.tensor([[-1.0, 1]] * 4), torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]))
    assert many.right.tolist() == [0.5, 1, 0, 0.5]


def test_ignored_positions_have_no_share_in_a_mask() -> None:
    labels = torch.tensor([[0, 1, -100, 255], [1, -1, -1, -1], [255, 255, -1, 255], [1, 1, 1, 1]])
    scores = torch.zeros(4, 2, 4)
    scores[:, 1] = 1.0
    found = answered(scores, labels)
    low, high = math.log1p(math.exp(-1)), math.log1p(math.e)
    torch.testing.assert_close(found.losses, wide((low + high) / 2, low, low), rtol=1e-6, atol=0)
    assert found.right.tolist() == [0.5, 1, 1]
    assert found.choices.shape == (4, 4)
    assert (found.predicted.tolist(), found.truth.tolist()) == ([0, 7], [1, 6])
    assert not len(answered(scores, torch.full((4, 4), 255)).right)


def test_which_output_is_compared() -> None:
    values, wider = torch.randn(4, 3), torch.randn(4, 3, 2)
    assert torch.equal(
        answered((torch.tensor(1.0), torch.randn(3, 9), values)).values, values.double()
    )
    assert torch.equal(answered(wider).values, wider.double().flatten(1))
    whole = torch.tensor([[1, 2]] * 4)
    assert torch.equal(answered(whole).values, whole.double()), (
        "whole numbers where there is no other"
    )
    assert answered("text").values.tolist() == [[0]]
    assert answered(torch.tensor(3)).values.tolist() == [[3]]
    labels = torch.tensor([0, 1, 2, 0])
    features, scores = torch.randn(4, 9), 5 * torch.eye(3)[labels]
    found = answered((features, scores), labels)
    assert torch.equal(found.values, scores.double()), "features have more columns than classes"
    assert len(found.truth) == 3
    kept = Goal().answer(scores, Batch(0, None, 4), torch.randn(4, 2, 2))
    assert kept.features.shape == (4, 4)
    assert math.isnan(kept.metric)
    assert not len(answered(scores).features)
    assert answered(torch.randn(2, 4096), size=2).values.shape == (2, 4096)
    assert answered(torch.randn(2, 4097), size=2).values.shape == (2, 2049)
    wide_rows = torch.randn(2, SAMPLED + 1)
    assert torch.equal(answered(wide_rows, size=2).values, wide_rows[:, ::2].double())
    assert answered(wide_rows[:, :SAMPLED], size=2).values.shape == (2, SAMPLED)


def test_a_loss_and_a_metric_are_asked_for_the_batch_as_it_was_given() -> None:
    seen: list[Any] = []

    def score(output: Any, batch: Any) -> Tensor:
        seen.append(batch)
        mean: Tensor = output.mean(1, keepdim=True)
        return mean

    output = torch.tensor([[1.0, 3], [5, 7], [0, 0], [2, 2]], requires_grad=True)
    goal = Goal(metric=score, loss=score)
    found = goal.answer(output, Batch(3, "as given", 4))
    assert seen == ["as given"] * 2
    assert found.losses.tolist() == [2, 6, 0, 2]
    assert found.metric == 2.5
    assert not found.losses.requires_grad
    assert not found.values.requires_grad
    assert (goal.given, Goal(metric=score).given, Goal(loss=score).given) == (True, True, True)
    assert not Goal().given
    infinite = Goal(metric=lambda output, batch: [1.0, math.inf], loss=lambda *_: [NAN, 2.0])
    bad = infinite.answer(output, Batch(0, None, 4))
    assert (bad.metric, bad.losses.tolist()) == (-WORST, [WORST, WORST])


def test_nothing_is_known_where_chance_does_as_well_unless_told() -> None:
    scores, labels = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    both = Comparison.of([answered(scores, labels)], [answered(scores, labels)])
    assert not both.known
    assert math.isnan(both.accuracies[0])
    told = Comparison.of([answered(scores, labels)], [answered(scores, labels)], given=True)
    assert told.known
    assert told.accuracies == (0.5, 0.5)
    assert told.disagreement == 0
    good = 9 * torch.eye(2)[labels.repeat(50)]
    reference = answered(good, labels.repeat(50), 200)
    other = answered(0 * good, labels.repeat(50), 200)
    assert Comparison.of([reference], [other]).known
    assert Comparison.of([other], [reference]).known, "one of the two is enough"
