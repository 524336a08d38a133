"""The worked example and the trap, in the numbers of the design and in other numbers."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from normscope.errors import InputError
from normscope.lesson import WORKED_CLASSES, best_thresholds, lesson
from normscope.records import Learning, Lesson, Stage

NAMES = [
    "input",
    "joint",
    "joint_scaled_shifted",
    "activated",
    "learned_joint",
    "standardised_per_class",
    "scaled_shifted",
    "learned_distribution",
    "identity",
    "learned_classification",
    "unlabelled",
    "inferred",
]


@pytest.fixture(scope="module")
def worked() -> Lesson:
    return lesson()


def stage(record: Lesson, name: str) -> Stage:
    return next(s for s in record.stages if s.name == name)


def values(record: Lesson, name: str) -> list[tuple[float, ...]]:
    return [c.values for c in stage(record, name).classes]


def starts(record: Lesson, way: str) -> tuple[Learning, ...]:
    return next(r for r in record.recoveries if r.name == way).learning


# --- the worked example -----------------------------------------------------------------------


def test_stages_come_in_the_order_of_the_story(worked: Lesson) -> None:
    assert [s.name for s in worked.stages] == NAMES


def test_each_class_standardised_by_itself_becomes_the_same_list(worked: Lesson) -> None:
    z = (-1.3416, -0.4472, 0.4472, 1.3416)
    for listed in values(worked, "standardised_per_class"):
        assert listed == pytest.approx(z, abs=1e-4)
    standardised = stage(worked, "standardised_per_class")
    assert standardised.threshold_accuracy == 4 / 8
    assert standardised.thresholds == ()
    assert standardised.eta2 == pytest.approx(0, abs=1e-12)
    assert standardised.facts["largest_difference"] < 1e-12
    for c in standardised.classes:
        assert (c.mean, c.var) == pytest.approx((0, 1), abs=1e-12)


def test_given_gamma_and_beta_leave_an_overlap(worked: Lesson) -> None:
    first, second = values(worked, "scaled_shifted")
    assert first == pytest.approx((3.292, 7.764, 12.236, 16.708), abs=1e-3)
    assert second == pytest.approx((0.317, 2.106, 3.894, 5.683), abs=1e-3)
    scaled = stage(worked, "scaled_shifted")
    assert scaled.threshold_accuracy == 7 / 8
    assert 5.683 < scaled.thresholds[0] < 7.764
    assert [(c.gamma, c.beta) for c in scaled.classes] == [(5, 10), (2, 3)]
    assert (scaled.classes[0].mean, scaled.classes[0].var) == pytest.approx((10, 25))


def test_each_way_says_whether_it_needs_labels(worked: Lesson) -> None:
    needs = {way.name: way.needs_labels for way in worked.recoveries}
    assert needs == {"distribution": True, "classification": True, "joint": False}


@pytest.mark.parametrize("way", ["distribution", "classification", "joint"])
def test_every_random_start_goes_down_all_the_way(worked: Lesson, way: str) -> None:
    paths = starts(worked, way)
    assert [path.seed for path in paths] == list(range(20))
    assert len({path.gamma[0] + path.beta[0] for path in paths}) == 20, "the starts differ"
    for path in paths:
        assert path.accuracy[-1] == 1.0
        assert (path.steps[0], path.steps[-1]) == (0, 200)
        assert len(path.steps) == len(path.loss) == len(path.gamma) == len(path.beta)
        if way == "distribution":  # ends at rounding, where it no longer falls
            assert path.loss[0] > 1000
            assert path.loss[-1] < 1e-20
        else:
            assert all(later < earlier for earlier, later in itertools.pairwise(path.loss))
    assert any(path.accuracy[0] < 1 for path in paths), "there is something to learn"


def test_learned_gamma_and_beta_bring_every_class_back_from_every_start(worked: Lesson) -> None:
    """Mean and standard deviation within 1 % of the input's, computed here from gamma and beta."""
    x = np.array(WORKED_CLASSES)
    z = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    for path in starts(worked, "distribution"):
        for k in range(2):
            y = path.gamma[-1][k] * z[k] + path.beta[-1][k]
            assert y.mean() == pytest.approx(x[k].mean(), rel=0.01)
            assert y.std() == pytest.approx(x[k].std(), rel=0.01)
            before = path.gamma[0][k] * z[k] + path.beta[0][k]
            assert abs(before.mean() - x[k].mean()) > 0.3 * x[k].mean(), "it started elsewhere"
    learned = stage(worked, "learned_distribution")
    assert learned.facts["back"] == learned.facts["starts"] == 20
    assert learned.facts["largest_error"] < 1e-9
    for listed, original in zip(values(worked, "learned_distribution"), x, strict=True):
        assert listed == pytest.approx(original, rel=1e-9)


def test_the_distance_is_that_of_the_sorted_values(worked: Lesson) -> None:
    """The oracle is the cheapest assignment of values to values, found without sorting."""
    x = np.array(WORKED_CLASSES, float)
    z = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    for path in starts(worked, "distribution")[:3]:
        for t in (0, 5):
            cost = []
            for k in range(2):
                y = path.gamma[t][k] * z[k] + path.beta[t][k]
                pairs = (y[:, None] - x[k][None]) ** 2
                cost.append(pairs[linear_sum_assignment(pairs)].mean())
            assert path.loss[t] == pytest.approx(np.mean(cost), rel=1e-12)


def test_learning_for_the_classification_does_not_bring_the_distribution_back(
    worked: Lesson,
) -> None:
    learned = stage(worked, "learned_classification")
    assert learned.facts == {"starts": 20, "apart": 20}
    for c, original in zip(learned.classes, WORKED_CLASSES, strict=True):
        assert abs(c.mean - np.mean(original)) > 1
        assert c.var < 0.01 * np.var(original)


def test_one_shared_gate_classifies_without_labels(worked: Lesson) -> None:
    """The head's answers follow from the values alone: joint statistics, one gamma, one beta."""
    x = np.array(WORKED_CLASSES).ravel()
    z = (x - x.mean()) / x.std()
    for path in starts(worked, "joint"):
        assert len(path.gamma[-1]) == len(path.beta[-1]) == 1
        for t, expected in ((0, 0.5), (-1, 1.0)):
            a = np.maximum(path.gamma[t][0] * z + path.beta[t][0], 0)
            weight, offset = np.array(path.head[t]).reshape(2, 2)
            answers = (a[:, None] * weight + offset).argmax(1)
            assert (answers == [0] * 4 + [1] * 4).mean() == path.accuracy[t] == expected
    learned = stage(worked, "learned_joint")
    assert learned.facts["right"] == learned.facts["starts"] == 20
    assert learned.facts["head_accuracy"] == 1
    assert learned.facts["gate"] == -learned.classes[0].beta / learned.classes[0].gamma
    assert learned.classes[0].gamma == learned.classes[1].gamma


@pytest.mark.parametrize("way", ["distribution", "classification", "joint"])
def test_the_learned_stage_is_the_end_of_the_first_start(worked: Lesson, way: str) -> None:
    learned, first = stage(worked, f"learned_{way}"), starts(worked, way)[0]
    shared = way == "joint"
    gamma, beta = (t[-1] * (2 if shared else 1) for t in (first.gamma, first.beta))
    assert tuple(c.gamma for c in learned.classes) == gamma
    assert tuple(c.beta for c in learned.classes) == beta
    z = values(worked, "joint" if shared else "standardised_per_class")
    for k, listed in enumerate(values(worked, f"learned_{way}")):
        again = gamma[k] * np.array(z[k]) + beta[k]
        assert listed == pytest.approx(np.maximum(again, 0) if shared else again, rel=1e-12)


def test_the_recorded_loss_is_the_cross_entropy_of_the_templates(worked: Lesson) -> None:
    z = np.array(values(worked, "standardised_per_class")[0])
    orders = set()
    for path in starts(worked, "classification"):
        orders.add(path.templates)
        y = np.array(path.gamma[0])[:, None] * z + np.array(path.beta[0])[:, None]
        density = np.exp(-((y[..., None] - np.array(path.templates)) ** 2) / 2)
        own = np.stack([density[k, :, k] for k in range(2)])
        assert path.loss[0] == pytest.approx(-np.log(own / density.sum(-1)).mean(), rel=1e-12)
    assert orders == {(-1, 1), (1, -1)}


def test_identity_gives_the_input_back(worked: Lesson) -> None:
    for listed, original in zip(values(worked, "identity"), WORKED_CLASSES, strict=True):
        assert listed == pytest.approx(original, rel=1e-9)
    assert stage(worked, "identity").facts["largest_error"] < 1e-12
    assert [c.gamma for c in stage(worked, "identity").classes] == pytest.approx([5**0.5] * 2)


def test_joint_batch_norm_keeps_the_classes_apart(worked: Lesson) -> None:
    x = np.array(WORKED_CLASSES)
    expected = (x - x.mean()) / x.std()
    np.testing.assert_allclose(values(worked, "joint"), expected, rtol=1e-12)
    np.testing.assert_allclose(values(worked, "joint_scaled_shifted"), 5 * expected + 10)
    between = ((x.mean(1) - x.mean()) ** 2).mean() / x.var()
    for name in ("input", "joint", "joint_scaled_shifted"):
        assert stage(worked, name).threshold_accuracy == 1
        assert stage(worked, name).eta2 == pytest.approx(between, rel=1e-12)


def test_without_a_label_the_readers_disagree_with_the_values(worked: Lesson) -> None:
    unlabelled = stage(worked, "unlabelled")
    path = starts(worked, "classification")[0]
    gamma, beta = np.mean(path.gamma[-1]), np.mean(path.beta[-1])
    expected = gamma * np.array(values(worked, "joint")) + beta
    np.testing.assert_allclose(values(worked, "unlabelled"), expected, rtol=1e-9)
    # each start drew its own order of the classes, so about half the readers are upside down
    assert 0.2 < unlabelled.facts["reader_accuracy"] < 0.8
    assert 0 < unlabelled.facts["readers_right"] < unlabelled.facts["readers"] == 20
    assert unlabelled.facts["follows_label"] == 1


def test_the_posterior_finds_the_class_again(worked: Lesson) -> None:
    assert stage(worked, "inferred").facts == {"picked_right": 1, "reader_accuracy": 1}
    assert values(worked, "inferred") == values(worked, "learned_classification")
    for p in worked.posteriors:
        assert p.probability[p.truth] > 0.999
    assert [p.value for p in worked.posteriors] == [*WORKED_CLASSES[0], *WORKED_CLASSES[1]]


def test_the_gate_lets_a_different_share_of_each_class_pass(worked: Lesson) -> None:
    activated = stage(worked, "activated")
    assert activated.facts == {"gate": 0, "passes_1": 1, "passes_2": 0}
    expected = np.maximum(values(worked, "joint"), 0)
    np.testing.assert_allclose(values(worked, "activated"), expected)
    assert activated.eta2 != pytest.approx(stage(worked, "joint").eta2, abs=1e-3)


def test_the_composition_law_agrees_with_simulated_batches(worked: Lesson) -> None:
    assert {c.r for c in worked.composition} == {0, 0.25, 0.5, 0.75, 1}
    for c in worked.composition:
        assert c.predicted == pytest.approx((1 - c.r) * (1 - 1 / c.m))
        assert c.measured == pytest.approx(c.predicted, abs=0.01)


def test_the_lesson_is_the_same_every_time_and_survives_json(worked: Lesson) -> None:
    assert lesson() == worked
    assert Lesson.from_json(worked.to_json()) == worked


# --- other numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "classes",
    [
        [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        [[1, 2], [1, 3]],
        np.random.default_rng(0).normal(size=(7, 9)).tolist(),
        np.random.default_rng(0).standard_cauchy(size=(4, 30)).tolist(),
        [[1e90, 2e90], [1e-90, 3e-90]],
        [[1e9, 1e9 + 1], [1e9 + 2, 1e9 + 5]],
        [[0.0] * 99 + [1e6], [0.0] * 99 + [1e6]],
        np.random.default_rng(0).normal(size=(30, 3)).tolist(),
    ],
    ids=["three", "touching", "seven", "heavy tails", "scales", "offset", "outlier", "thirty"],
)
def test_any_numbers_give_a_finite_lesson_that_learns(classes: list[list[float]]) -> None:
    record = lesson(classes, None, None, seeds=5)
    assert [s.name for s in record.stages] == NAMES
    for s in record.stages:
        assert 0 <= s.eta2 <= 1 + 1e-12
        assert 1 / len(classes) - 1e-12 <= s.threshold_accuracy <= 1
        assert len(s.thresholds) < len(classes)
        for c in s.classes:
            assert all(map(math.isfinite, (*c.values, c.mean, c.var)))
            assert (c.min, c.max) == (min(c.values), max(c.values))
    for path in starts(record, "classification"):
        assert path.accuracy[-1] == 1
    for path in itertools.chain(*(way.learning for way in record.recoveries)):
        assert all(map(math.isfinite, path.loss))
        assert path.loss[-1] <= path.loss[0]
        assert 0 <= path.accuracy[-1] <= 1
    back = stage(record, "learned_distribution")
    # rounding at 1e90 is more than everything that a class at 1e-90 has
    assert back.facts["back"] == (0 if classes[-1][0] == 1e-90 else 5)
    assert stage(record, "identity").facts["largest_error"] < 1e-9
    joint, before = stage(record, "joint"), stage(record, "input")
    assert joint.eta2 == pytest.approx(before.eta2, rel=1e-6)
    assert joint.threshold_accuracy == before.threshold_accuracy


def test_without_gamma_and_beta_a_fresh_layer_changes_nothing() -> None:
    record = lesson([[1, 2, 4], [2, 3, 9]], None, None, seeds=1, steps=1)
    assert values(record, "scaled_shifted") == values(record, "standardised_per_class")


def test_classes_of_other_shapes_stay_a_little_apart_when_standardised() -> None:
    standardised = stage(
        lesson([[1, 2, 3], [1, 2, 9]], None, None, seeds=1), "standardised_per_class"
    )
    assert standardised.facts["largest_difference"] > 0.1
    assert standardised.threshold_accuracy > 0.5
    assert standardised.eta2 == pytest.approx(0, abs=1e-12)


def test_classes_with_the_same_mean_have_no_signal_to_lose() -> None:
    assert lesson([[1, 3], [0, 4]], None, None, seeds=1).composition == ()


def test_overlapping_classes_cannot_be_inferred_for_sure() -> None:
    record = lesson([[1, 2, 3, 4], [3, 4, 5, 6]], None, None, seeds=1)
    inferred = stage(record, "inferred")
    assert inferred.facts["picked_right"] == 0.75
    assert inferred.threshold_accuracy < 1
    # two unit-free Gaussians of equal variance: the posterior is a logistic function
    p = record.posteriors[0]
    odds = ((1 - 2.5) ** 2 - (1 - 4.5) ** 2) / (2 * 1.25)
    assert p.probability[0] == pytest.approx(1 / (1 + math.exp(odds)))


def test_a_shared_gamma_of_zero_loses_the_classes() -> None:
    record = lesson(gamma=(0, 1), beta=(1, 1), seeds=1)
    assert stage(record, "joint_scaled_shifted").threshold_accuracy == 0.5
    assert stage(record, "joint_scaled_shifted").eta2 == 0


def test_eps_makes_a_constant_class_possible() -> None:
    record = lesson([[3, 3], [4, 4]], None, None, eps=1e-5, seeds=1)
    assert values(record, "standardised_per_class") == [(0, 0), (0, 0)]
    assert values(record, "identity") == [(3, 3), (4, 4)]
    z = lesson(eps=4.0, seeds=1)
    assert values(z, "standardised_per_class")[0][3] == pytest.approx(3 / 9**0.5)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"classes": [[1, 2]]}, "at least 2 classes are needed to compare; 1 came"),
        ({"classes": []}, "at least 2 classes are needed to compare; 0 came"),
        ({"classes": [[1, 2], [3]]}, "at least 2 values are needed for a variance; class 2 has 1"),
        ({"classes": [[1, 2], []]}, "at least 2 values .* class 2 has 0"),
        ({"classes": [[1, 2], [3, 4, 5]]}, "class 1 has 2 values and class 2 has 3; give every"),
        ({"classes": [[1, 2], [3, 3]]}, r"class 2 has a variance of zero .* an eps above 0"),
        ({"classes": [[0.1, 0.1, 0.1], [1, 2, 3]]}, "class 1 has a variance of zero"),
        ({"classes": [[1, 2], [1e-200, 3e-200]]}, "class 2 has a variance of zero"),
        ({"classes": [[1, math.nan], [3, 4]]}, "class 1 holds nan; give finite numbers"),
        ({"classes": [[1, 2], [3, -math.inf]]}, "class 2 holds -inf; give finite numbers"),
        ({"classes": [[1, 2], [3, 1e200]]}, r"class 2 holds 1e\+200; give finite numbers"),
        ({"classes": [[1, 2], [3, "x"]]}, "class 2 holds 'x', which is no number"),
        ({"gamma": (1, 2, 3)}, "gamma has length 3 for 2 classes; give one number per class"),
        ({"beta": (1,)}, "beta has length 1 for 2 classes"),
        ({"beta": (1, math.nan)}, "beta holds nan; give finite numbers"),
        ({"eps": -1e-5}, "eps is -1e-05; it must be a number of at least 0"),
        ({"eps": math.nan}, "eps is nan; it must be a number of at least 0"),
        ({"seeds": 0}, "seeds is 0; at least 1 is needed"),
        ({"steps": 0}, "steps is 0; at least 1 is needed"),
    ],
)
def test_bad_input_gives_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        lesson(**arguments)
    assert "\n" not in str(caught.value)


# --- the best thresholds ----------------------------------------------------------------------


def brute_force(classes: Sequence[Sequence[float]]) -> float:
    """Every choice of K - 1 cuts and every order of the classes."""
    line = sorted({v for c in classes for v in c})
    best = 0
    for cuts in itertools.combinations_with_replacement(range(len(line) + 1), len(classes) - 1):
        intervals = {v: sum(i >= cut for cut in cuts) for i, v in enumerate(line)}
        for order in itertools.permutations(range(len(classes))):
            hits = sum(order[intervals[v]] == k for k, c in enumerate(classes) for v in c)
            best = max(best, hits)
    return best / sum(map(len, classes))


def accuracy_of(cuts: Sequence[float], classes: Sequence[Sequence[float]]) -> float:
    """What the cuts reach when their intervals are given to classes as well as possible."""
    intervals = [[sum(v > cut for cut in cuts) for v in c] for c in classes]
    hits = max(
        sum(order[i] == k for k, placed in enumerate(intervals) for i in placed)
        for order in itertools.permutations(range(len(classes)))
    )
    return hits / sum(map(len, classes))


small = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=2, max_size=4)


@given(small)
def test_thresholds_are_as_good_as_brute_force(classes: list[list[int]]) -> None:
    accuracy, cuts = best_thresholds(classes)
    assert accuracy == pytest.approx(brute_force(classes), abs=1e-12)
    assert accuracy_of(cuts, classes) == pytest.approx(accuracy, abs=1e-12)
    assert list(cuts) == sorted(cuts)
    assert len(cuts) < len(classes)


@given(small, st.floats(0.1, 10) | st.floats(-10, -0.1), st.floats(-100, 100))
def test_an_affine_map_changes_no_accuracy(
    classes: list[list[int]], gamma: float, beta: float
) -> None:
    mapped = [[gamma * v + beta for v in c] for c in classes]
    assert best_thresholds(mapped)[0] == best_thresholds(classes)[0]


def test_values_that_differ_by_rounding_cannot_be_separated() -> None:
    apart = [0.1 + 0.2, 1.0], [0.3, 1.0]
    assert best_thresholds(apart) == (0.5, ())


def test_a_middle_class_needs_two_cuts() -> None:
    assert best_thresholds([[1, 9], [4, 5]])[0] == 0.75
    assert best_thresholds([[1, 2], [8, 9], [4, 5]]) == (1.0, (3.0, 6.5))


def test_many_classes_follow_the_order_of_their_means() -> None:
    shuffled = np.random.default_rng(0).permutation(40)
    accuracy, cuts = best_thresholds([[k, k + 0.5] for k in shuffled])
    assert accuracy == 1
    assert cuts == pytest.approx(np.arange(39) + 0.75)
    # beyond the exact table the answer is a rule that exists, so it never promises too much
    noise = np.random.default_rng(0).normal(size=(13, 20))
    accuracy, cuts = best_thresholds(noise.tolist())
    order = np.argsort(noise.mean(1))
    assert 1 / 13 < accuracy < 0.5
    assert len(cuts) <= len(order) - 1
