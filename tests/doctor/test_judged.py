"""What judges a repair: which batches, how many, in which pieces, and what counts as better."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normscope.doctor import held_out
from normscope.doctor.held_out import Evaluation, HeldOut, gain, harms, helps, same
from normscope.doctor.pooled import Pool, _neighbours, joined
from normscope.probe.batches import Loader
from normscope.probe.batches import held_out as is_held_out
from normscope.probe.compare import Answer, Comparison, Goal
from normscope.probe.grammar import Batch
from normscope.records import Score

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(60, 3, generator=DRAW) + 1
Y = torch.arange(60) % 3


def model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)).eval()


def batches(size: int = 6) -> list[tuple[Tensor, Tensor]]:
    return list(zip(X.split(size), Y.split(size), strict=True))


def test_enough_samples_judge_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert held_out.SAMPLES == 2048
    net = model()
    loader = Loader(batches(), net)
    for most, number in ((6, 1), (7, 2), (12, 2), (13, 3), (999, 10)):
        monkeypatch.setattr(held_out, "SAMPLES", most)
        judge = HeldOut.of(net, None, loader, Goal())
        assert [b.index for b in judge.batches] == list(range(number))
        assert len(judge.reference) == number
        assert judge.evaluate(net).score.samples == 6 * number
    apart = HeldOut.of(net, loader, None, Goal())
    assert [b.index for b in apart.batches] == [i for i in range(10) if is_held_out(i)]
    assert (apart.part, apart.loader is loader) == ("first", True)
    nothing = HeldOut.of(net, None, None, Goal())
    assert (nothing.part, nothing.batches, nothing.loader) == ("all", (), None)
    assert nothing.evaluate(net).score.samples == 0
    assert nothing.evaluate(net).compared is None


def test_a_score_is_of_eval_beside_train_as_the_model_was() -> None:
    net = model()
    judge = HeldOut.of(net, None, Loader(batches(20), net), Goal())
    net[0].running_mean.fill_(1)
    found = judge.evaluate(net)
    with torch.no_grad():
        plain = torch.cat([net(x) for x, _ in batches(20)]).double()
        by_batch = [net[1](nn.BatchNorm1d(3)(x)).double() for x, _ in batches(20)]
    spread = sum(((a - a.mean()) ** 2).mean(1).sum() for a in by_batch)
    apart = sum(
        ((a - b) ** 2).mean(1).sum() for a, b in zip(by_batch, plain.split(20), strict=True)
    )
    assert found.score.gap == pytest.approx(float((apart / spread).sqrt()), rel=1e-4)
    assert found.score.samples == 60
    assert math.isnan(found.score.accuracy), "no better than chance"
    assert math.isnan(found.score.loss)
    torch.testing.assert_close(torch.cat([a.values for a in found.answers]), plain)


def test_layers_left_in_train_are_judged_by_four_samples_at_a_time() -> None:
    net = model()
    net[0].train()
    judge = HeldOut.of(net, None, Loader(batches(10), net), Goal())
    found = judge.evaluate(net)
    with torch.no_grad():
        expected = torch.cat([
            net[1](nn.BatchNorm1d(3)(part)) for x, _ in batches(10) for part in x.split(4)
        ])  # fmt: skip
    values = torch.cat([a.values for a in found.answers])
    torch.testing.assert_close(values, expected.double(), rtol=1e-4, atol=1e-5)
    assert net[0].training
    assert int(net[0].num_batches_tracked) == 0
    net.train()
    whole = judge.evaluate(net)
    with torch.no_grad():
        stored = net.eval()(X)
    torch.testing.assert_close(torch.cat([a.values for a in whole.answers]), stored.double())


def test_small_batches_are_judged_together_also_with_a_layer_left_in_train() -> None:
    net = model()
    judge = HeldOut.of(net, None, Loader(batches(2), net), Goal())
    sizes = [14, 14, 14, 14, 4]
    assert [len(a.values) for a in judge.evaluate(net).answers] == sizes
    net[0].train()
    found = judge.evaluate(net)
    assert [len(a.values) for a in found.answers] == sizes
    with torch.no_grad():
        by_pairs = torch.cat([net[1](nn.BatchNorm1d(3)(x)) for x in X.split(2)])
    values = torch.cat([a.values for a in found.answers])
    torch.testing.assert_close(values, by_pairs.double(), rtol=1e-3, atol=1e-4)
    assert found.score.gap < 1e-3, "so it did in train()"


def test_a_metric_and_a_loss_stand_in_the_score() -> None:
    net = model()
    goal = Goal(metric=lambda output, batch: 0.25, loss=lambda output, batch: output[:, 0] * 0 + 3)
    judge = HeldOut.of(net, None, Loader(batches(), net), goal)
    score = judge.evaluate(net).score
    assert (score.metric, score.loss) == (0.25, 3)


def evaluated(gap: float, accuracy: float = 0.5, samples: int = 100, **of: Any) -> Evaluation:
    compared = Comparison(given=True)
    compared.other.losses = [of["losses"]] if "losses" in of else []
    if not of:
        compared = Comparison()
    return Evaluation(Score(accuracy=accuracy, loss=1, gap=gap, samples=samples), compared)


LOSSES = torch.linspace(0.5, 1.5, 100).double()
NOISE = torch.linspace(-1, 1, 100).double()
STEP = float(NOISE.std()) / 10  # a standard error


@pytest.mark.parametrize(
    ("better", "gap", "rise", "helped", "harmed"),
    [
        (2.1, 1.0, 0.0, True, False), (1.9, 1.0, 0.0, False, False), (1.9, 0.94, 0.0, True, False),
        (1.9, 0.96, 0.0, False, False), (-1.0, 0.49, 0.0, False, False),
        (-1.0, 0.49, 0.02, True, False), (-1.0, 0.51, 0.02, False, False),
        (-1.0, 0.49, 0.014, False, False), (-2.1, 0.1, 0.0, False, True),
        (0.0, 0.49, 0.0, True, False), (0.0, 0.51, 0.0, False, False),
    ],
)  # fmt: skip
def test_what_helps_and_what_harms(
    better: float, gap: float, rise: float, helped: bool, harmed: bool
) -> None:
    before = evaluated(1.0, losses=LOSSES)
    lower = LOSSES - (better * STEP + NOISE) if better else LOSSES
    after = evaluated(gap, 0.5 + rise, losses=lower)
    assert gain(before, after) == pytest.approx(better, abs=1e-6)
    assert helps(before, after) is helped
    assert harms(before, after) is harmed


@pytest.mark.parametrize(
    ("gap", "helped", "harmed"),
    [(0.94, True, False), (0.96, False, False), (1.04, False, False), (1.06, False, True)],
)
def test_without_a_goal_the_gap_helps_and_harms(gap: float, helped: bool, harmed: bool) -> None:
    before, after = evaluated(1.0), evaluated(gap)
    assert math.isnan(gain(before, after))
    assert helps(before, after) is helped
    assert harms(before, after) is harmed
    assert not helps(evaluated(1.0, samples=0), after)
    assert math.isnan(gain(before, Evaluation()))
    assert math.isnan(gain(Evaluation(), after))
    one_known = evaluated(1.0, losses=LOSSES)
    assert not math.isnan(gain(evaluated(1.0, losses=LOSSES), one_known))


def test_same_is_a_relative_difference_below_a_thousandth() -> None:
    def of(values: Tensor) -> Evaluation:
        return Evaluation(answers=[Answer(values.double())])

    base = torch.tensor([[1.0], [-1.0]])
    assert same(of(base), of(base * 1.0009))
    assert not same(of(base), of(base * 1.0011))
    assert not same(Evaluation(), of(base))


def test_answers_to_parts_are_one_answer() -> None:
    a = Answer(
        torch.ones(2, 3).double(), losses=torch.ones(2), right=torch.ones(2), metric=1.0,
        choices=torch.ones(2, 1), predicted=torch.tensor([1, 1]), truth=torch.tensor([2, 0]),
        targets=torch.tensor([1.0, 2, 3]),
    )  # fmt: skip
    b = Answer(torch.zeros(1, 3).double(), metric=4.0, predicted=torch.tensor([1, 0]))
    found = joined([a, b])
    assert found.values.tolist() == [[1] * 3, [1] * 3, [0] * 3]
    assert found.metric == 2.5
    assert found.predicted.tolist() == [2, 1]
    assert found.truth.tolist() == [2, 0]
    assert found.targets.tolist() == [1, 2, 3]
    assert (found.losses.tolist(), found.right.tolist()) == ([1, 1], [1, 1])
    assert joined([b, b]).truth.tolist() == []
    pool = Pool([], [[0], [1, 2]])
    one, two = pool.join([b, a, a])
    assert one is b
    assert len(two.values) == 4


def numbered(*sizes: int, width: int = 1) -> list[Batch]:
    return [Batch(i, None, n, (torch.zeros(n, width),)) for i, n in enumerate(sizes)]


def test_neighbours_are_grouped_up_to_a_quarter_of_all_and_128() -> None:
    assert _neighbours(numbered(*[2] * 16)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11],
                                                [12, 13, 14, 15]]  # fmt: skip
    groups = _neighbours(numbered(*[60] * 12))
    assert groups == [[i, i + 1] for i in range(0, 12, 2)]
    assert _neighbours(numbered(*[64] * 16))[0] == [0, 1]
    assert _neighbours(numbered(*[65] * 16))[0] == [0]
    assert _neighbours(numbered(*[32] * 16, width=2**12))[0] == [0, 1], "2**18 values"
    assert _neighbours(numbered(*[32] * 16, width=2**12 + 1))[0] == [0]
    assert _neighbours(numbered(200, 1)) == [[0], [1]]
    assert _neighbours([]) == []
